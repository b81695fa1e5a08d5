"""DeepSpeed's ZeRO on mmengine's FlexibleRunner, where deepspeed is installed; on the CPU."""

import re
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

pytest.importorskip('mmpretrain')

from itpn_mm.checkpoint import read_checkpoint
from itpn_mm.engine.ema_hook import EMATeacherHook
from itpn_mm.engine.wrappers import has_stepped
from itpn_mm.registry import MODELS

from ..test_pretraining.models import itpn_cfg
from .launch import ROOT, run_two_processes
from .runs import found, largest_difference, train, training

pytestmark = pytest.mark.checklist('deepspeed')


def can_run() -> str | None:
    """Why DeepSpeed cannot run here, if so."""
    if find_spec('deepspeed') is None:
        return 'deepspeed is not installed'
    if find_spec('deepspeed.runtime.fp16.onebit') is None:  # which mmengine imports
        return 'mmengine does not know this version of deepspeed; 0.18.2 was tested'
    return None


def test_config_of_the_page(tmp_path):
    """The block of docs/scaling.md is a config of the shipped pre-training."""
    page = (ROOT / 'docs' / 'scaling.md').read_text()
    [text] = re.findall(r'^```python\n(.*?)^```', page, flags=re.MULTILINE | re.DOTALL)
    configs = ROOT / 'configs'
    text = text.replace("'./", f"'{configs}/pretraining/").replace("'../", f"'{configs}/")
    (tmp_path / 'zero.py').write_text(text)
    cfg = Config.fromfile(tmp_path / 'zero.py')
    assert cfg.runner_type == 'FlexibleRunner' and cfg.strategy.type == 'DeepSpeedStrategy'
    assert cfg.strategy.zero_optimization.stage == 2
    assert cfg.strategy.train_micro_batch_size_per_gpu == cfg.train_dataloader.batch_size
    assert set(cfg.optim_wrapper) == {'type', 'optimizer', 'constructor', 'paramwise_cfg'}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda model: model.bfloat16(), 'weights are in torch.bfloat16, in which the EMA teacher'),
        (
            lambda model: [setattr(p, 'ds_id', 0) for p in model.parameters()],
            'stage 3 of ZeRO shards the weights that the EMA teacher follows',
        ),
    ],
)
def test_teacher_that_cannot_follow_stops_the_run(change, message):
    model = MODELS.build(itpn_cfg())
    change(model)
    with pytest.raises(ValueError, match=message):
        EMATeacherHook().before_train(SimpleNamespace(model=model))


def test_teacher_moves_with_the_steps_that_deepspeed_counts():
    wrapper = SimpleNamespace(gradient_accumulation_steps=lambda: 4)
    runner = SimpleNamespace(model=wrapper, optim_wrapper=object())
    stepped = []
    for wrapper.micro_steps in range(1, 9):
        stepped.append(has_stepped(runner))
    assert stepped == [False, False, False, True] * 2


@pytest.mark.slow
def test_zero_trains_as_one_process_does(tmp_path, record_figure):
    """Two steps with clipped gradients and EMA teacher, stage 2 with 2 x 4 images against 1 x 8."""
    if reason := can_run():
        pytest.skip(reason)
    two = run_two_processes('zero', tmp_path / 'two', DS_ACCELERATOR='cpu')
    strategy = dict(type='SingleDeviceStrategy')  # the same runner draws the same weights
    one = training(tmp_path / 'one', runner_type='FlexibleRunner', strategy=strategy)
    one = found(train(one))
    loss = float((sum(rank['losses'] for rank in two) / 2 - one['losses']).abs().max())
    state = largest_difference(two[0]['state'], one['state'])
    record_figure('ZeRO stage 2 against one process: loss, CPU', loss, '<= 1e-6')
    record_figure('ZeRO stage 2: parameters and teacher after 2 steps, CPU', state, '<= 1e-5')
    assert loss <= 1e-6 and state <= 1e-5
    assert all(torch.equal(two[1]['state'][name], v) for name, v in two[0]['state'].items())
    path = tmp_path / 'two' / 'run' / 'iter_2.pth' / 'mp_rank_00_model_states.pt'
    saved = read_checkpoint(path, trust=True)  # DeepSpeed's settings are in it, as objects
    model = MODELS.build(itpn_cfg())
    model.load_state_dict(saved)  # strict
    assert all(torch.equal(saved[name], v) for name, v in two[0]['state'].items())
