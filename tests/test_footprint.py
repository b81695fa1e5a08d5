"""Predicted memory of a training step, against the memory that it takes on the CPU."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.footprint import Training, largest_batch, predict
from itpn_mm.backbones import FastiTPN, HiViT

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tools'))
from benchmark import main, parse_args

pytestmark = pytest.mark.checklist('memory')

SIZE = (128, 128)
ARCH = dict(embed_dims=64, depths=(1, 1, 2), num_heads=2)
needs_linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='needs Linux')
slow = pytest.mark.slow


@needs_linux
@pytest.mark.parametrize(
    'training',
    [
        Training('hivit-test', SIZE, 8, checkpointing='all'),
        pytest.param(Training('hivit-test', SIZE, 8), marks=slow),
        pytest.param(Training('fastitpn-test', SIZE, 8, 'amp'), marks=slow),
        pytest.param(Training('hivit-tiny', (224, 224), 4), marks=slow),
        pytest.param(Training('fastitpn-tiny', (384, 384), 2, checkpointing='all'), marks=slow),
        pytest.param(Training('hivit-test', SIZE, 8, pretrain=True), marks=slow),
        pytest.param(Training('hivit-tiny', (224, 224), 8, 'amp', pretrain=True), marks=slow),
    ],
    ids=str,
)
def test_prediction_is_what_is_measured(training, record_figure):
    if training.pretrain:
        pytest.importorskip('mmpretrain')
    ratio = training.predict().step / training.measure()
    record_figure(f'{training}: predicted / measured', round(ratio, 4), '0.97..1.03')
    assert 0.97 <= ratio <= 1.03


def test_checkpointing_saves(record_figure):
    kinds = ('none', 'attention', 'backbone', 'pyramid', 'all')
    steps = {
        kind: Training('hivit-base', (800, 1280), 1, 'amp', kind).predict().step for kind in kinds
    }
    for kind, step in steps.items():
        what = f'HiViT-B and pyramid, 800x1280, amp, recomputed: {kind}: MiB of a step, predicted'
        record_figure(what, round(step / 2**20))
    assert steps['none'] > steps['attention'] > steps['backbone'] > steps['all']
    assert steps['none'] > steps['pyramid'] > steps['all']
    assert steps['all'] < 0.3 * steps['none']


def step_of(kind, rel_pos_bias: str | None, side: int) -> int:
    with torch.device('meta'):
        model = kind(ARCH, img_size=side, rel_pos_bias=rel_pos_bias).train()
    return predict(model, lambda m: m(torch.randn(1, 3, side, side))[2].mean(), 'fp32').step


@pytest.mark.parametrize('kind', [HiViT, FastiTPN])
def test_attention_without_bias_makes_no_table(kind, record_figure):
    """4 times the tokens take 4 times the memory, up to what is there without any."""
    steps = [step_of(kind, None, side) for side in (512, 1024)]
    record_figure(f'{kind.__name__}: memory of a step, 4096 over 1024 tokens', steps[1] / steps[0])
    assert steps[1] < 4.1 * steps[0]


@pytest.mark.parametrize(
    ('kind', 'rel_pos'),
    [
        *((HiViT, name) for name in ('block', 'shared', 'decomposed')),
        *((FastiTPN, name) for name in ('block', 'shared', 'decoupled')),
    ],
)
def test_relative_positions_make_tables(kind, rel_pos, record_figure):
    """Of all pairs of tokens, for each head; in each block or once for all."""
    extra = step_of(kind, rel_pos, 512) - step_of(kind, None, 512)
    tables = extra / (4 * ARCH['num_heads'] * 1024**2)
    record_figure(f'{kind.__name__}, {rel_pos}: tables of N x N at a time, 2 blocks', tables)
    assert tables > 0.9


def test_largest_batch_fits_and_a_larger_one_does_not():
    training = Training('hivit-test', SIZE, 1)
    limit = 2**30
    count = largest_batch(training, limit)
    taken = [Training('hivit-test', SIZE, n).predict().total for n in (count, count + 2)]
    assert count > 4 and taken[0] <= limit < taken[1]
    assert largest_batch(training, 2**20) == 0


def test_tool_predicts(tmp_path, capsys):
    arguments = ['--memory', '--models', 'hivit-test', '--sizes', '64x64', '--batch', '1', '2']
    arguments += ['--checkpointing', 'none', 'all', '--gib', '0.25']
    main([*arguments, '--out', str(tmp_path)])
    out = capsys.readouterr().out
    assert '| hivit-test | 64x64 | 2 | fp32 | all |' in out
    [path] = tmp_path.glob('*.json')
    rows = json.loads(path.read_text())['rows']
    assert len(rows) == 4 and all(row['largest_batch']['0.25'] > 2 for row in rows)
    assert path.with_suffix('.png').stat().st_size > 5000


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--memory', '--train'], 'not allowed with argument'),
        (['--memory', '--settings', 'windows'], '--memory takes no --settings'),
        (['--memory', '--dtype', 'bf16'], '--memory takes --dtype fp32 or amp'),
        (['--checkpointing', 'all'], 'need --memory'),
        (['--memory', 'pretrain', '--models', 'fastitpn-base'], 'takes hivit-* as --models'),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_args(arguments)
    assert message in capsys.readouterr().err
