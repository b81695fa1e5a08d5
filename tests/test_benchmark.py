import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import inference  # noqa: E402
from benchmarks.measure import peak_memory_cpu  # noqa: E402
from benchmarks.models import ARCHS, build_model, randomise  # noqa: E402
from benchmarks.plain import PlainModel  # noqa: E402


def load_tool():
    spec = importlib.util.spec_from_file_location('benchmark_tool', ROOT / 'tools/benchmark.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def models():
    return build_model('plain', 'test'), build_model('ours', 'test')


@torch.no_grad()
@pytest.mark.parametrize('size', [(64, 64), (64, 96), (224, 224), (240, 80)])
def test_plain_equals_ours(models, size):
    img = torch.randn(2, 3, *size)
    plain, ours = (model(img) for model in models)
    assert [x.shape for x in plain] == [
        (2, 256, size[0] // s, size[1] // s) for s in (4, 8, 16, 32, 64)
    ]
    assert inference.relative_error(ours, plain) < 5e-6


@torch.no_grad()
def test_every_weight_of_the_comparison_matters():
    """A weight that could be wrong unseen would make the comparison of outputs worthless."""
    plain = PlainModel(**ARCHS['test'])
    randomise(plain)
    img = torch.randn(1, 3, 96, 64)
    reference = plain(img)
    for name, parameter in plain.named_parameters():
        saved = parameter.clone()
        parameter.mul_(1.1)
        change = inference.relative_error(plain(img), reference)
        parameter.copy_(saved)
        if name.endswith('qkv.bias'):
            continue  # the part that belongs to keys cancels in the softmax
        assert change > inference.TOLERANCE['fp32'], name


def test_plain_refuses_partial_patches(models):
    with pytest.raises(ValueError, match='multiples of 16: 70x64'):
        models[0](torch.zeros(1, 3, 70, 64))


def test_relative_error():
    a, b = torch.tensor([1.0, -2.0]), torch.tensor([1.0, -2.2])
    assert inference.relative_error([a, a], [a, b]) == pytest.approx(0.2 / 2.2)
    with pytest.raises(ValueError, match='must hold 2 maps, but got 1'):
        inference.relative_error([a], [a, b])


def test_count_gflop():
    linear = torch.nn.Linear(32, 8, bias=False)
    assert inference.count_gflop(linear, (5, 32)) == pytest.approx(2 * 5 * 32 * 8 / 1e9)
    assert linear.weight.device.type == 'cpu'


def test_rounds():
    sizes = [(64, 64), (224, 224), (800, 1280)]
    assert [inference.rounds(size, sizes, 3) for size in sizes] == [12, 12, 3]


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_peak_memory_counts_what_is_freed_within_the_call():
    peak = peak_memory_cpu(lambda: torch.ones(64, 2**18).sum())  # 64 MiB
    assert 60 * 2**20 < peak < 80 * 2**20


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_tool_writes_table_json_and_plot(tmp_path, capsys):
    out = tmp_path / 'report'
    arguments = ['--arch', 'test', '--sizes', '64x64', '--repeats', '1', '--out', str(out)]
    load_tool().main(arguments)
    assert 'ETA' in capsys.readouterr().out
    results = json.loads((out / 'results.json').read_text())
    assert [row['variant'] for row in results['rows']] == ['plain', 'ours']
    ours = results['rows'][1]
    assert ours['relative_error'] < 1e-4
    assert ours['median_s'] >= ours['min_s'] > 0
    assert ours['speedup'] == results['rows'][0]['median_s'] / ours['median_s']
    assert ours['peak_bytes'] > 0
    assert results['machine']['gemm_gflops'] > 0
    assert '| 64x64 | ours |' in (out / 'table.md').read_text()
    assert (out / 'ratios.png').read_bytes().startswith(b'\x89PNG')


def test_tool_measures_nothing_if_outputs_differ(tmp_path, monkeypatch):
    def wrong(variant, arch):
        model = build_model(variant, arch)
        if variant == 'ours':
            model.backbone.pos_embed.data.zero_()
        return model

    monkeypatch.setattr(inference, 'build_model', wrong)
    with pytest.raises(RuntimeError, match='outputs at 64x64 differ by'):
        load_tool().main(['--arch', 'test', '--sizes', '64x64', '--out', str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_tool_times_a_pretraining_step(tmp_path):
    pytest.importorskip('mmpretrain')
    arguments = ['--mode', 'pretrain', '--arch', 'test', '--sizes', '64x64', '--batch', '2']
    load_tool().main([*arguments, '--repeats', '1', '--out', str(tmp_path)])
    (row,) = json.loads((tmp_path / 'results.json').read_text())['rows']
    assert row['mode'] == 'pretrain'
    assert row['images_per_s'] == 2 / row['median_s']
    assert 'One optimiser step' in (tmp_path / 'table.md').read_text()
    assert (tmp_path / 'ratios.png').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--sizes', '65x64'], "multiples of 16 of at least 64, but got '65x64'"),
        (['--sizes', '224'], "HEIGHTxWIDTH such as 800x1280, but got '224'"),
        (['--repeats', '0'], "whole number of at least 1, but got '0'"),
        (['--arch', 'huge'], "invalid choice: 'huge'"),
        (['--mode', 'pretrain', '--dtype', 'bf16'], 'needs --device cuda'),
        (['--mode', 'pretrain', '--sizes', '64x128'], 'square'),
        (['--mode', 'pretrain', '--compile'], 'belongs to --mode inference'),
    ],
)
def test_tool_refuses_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        load_tool().parse_args(arguments)
    assert message in capsys.readouterr().err


def test_tool_refuses_a_gpu_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit):
        load_tool().parse_args(['--device', 'cuda'])
    assert 'finds no GPU here' in capsys.readouterr().err
