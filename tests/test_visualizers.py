"""TensorBoard and W&B by one line in a config of each package (docs/look_inside.md)."""

import re
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import Dataset

from .tiny_configs import ROOT, plain_text

CONFIGS = {
    'mmpretrain': 'pretraining/itpn-pixel_hivit-demo-p16_1xb32-coslr-24e_photographs',
    'mmdet': 'detection/mask-rcnn_hivit-demo-itpn-pixel_tpn_1xb4-24e_nuclei',
    'mmseg': 'segmentation/upernet_hivit-demo-itpn-pixel_tpn_1xb4-400i_nuclei',
    'mmrotate': 'rotated_detection/'
    'rotated-faster-rcnn-le90_hivit-demo-itpn-pixel_tpn_1xb4-12e_aerial',
}
VISUALIZERS = dict(
    mmpretrain='UniversalVisualizer',
    mmdet='DetLocalVisualizer',
    mmseg='SegLocalVisualizer',
    mmrotate='RotLocalVisualizer',
)
LOSSES = (3.0, 1.0)


class Falling(BaseModel):
    """Its losses are known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.steps = iter(LOSSES)

    def forward(self, inputs: Tensor, mode: str = 'tensor') -> dict[str, Tensor]:
        return dict(loss=0 * self.weight + next(self.steps))


class Nothing(Dataset):
    def __len__(self) -> int:
        return len(LOSSES)

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=torch.zeros(1))


def one_liners() -> dict[str, str]:
    """The settings of the document by the backend that they add."""
    text = (ROOT / 'docs/look_inside.md').read_text()
    found = re.findall(r'^```python\n(visualizer = .*?)^```', text, flags=re.MULTILINE | re.DOTALL)
    return {re.findall(r"'(\w+VisBackend)'", setting)[1]: setting for setting in found}


def configure(scope: str, backend: str, folder) -> Config:
    """A shipped config with the line on top of it."""
    pytest.importorskip(scope)
    path = folder / 'config.py'
    base = ROOT / 'configs' / f'{CONFIGS[scope]}.py'
    path.write_text(f'_base_ = {str(base)!r}\n{one_liners()[backend]}\n')
    return Config.fromfile(path)


def run(cfg: Config, folder) -> Runner:
    """Two steps of the stock runner with the visualizer and the logger of a config."""
    init_default_scope(cfg.default_scope)
    name = f'visualizers_{folder.name}'
    cfg.visualizer.name = name  # mmengine keeps one visualizer of a name in a process
    runner = Runner(
        Falling(),
        str(folder / 'run'),
        train_dataloader=dict(dataset=Nothing(), batch_size=1, sampler=dict(type='DefaultSampler')),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.5)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1), checkpoint=None, sampler_seed=None
        ),
        visualizer=cfg.visualizer,
        log_processor=dict(window_size=1),
        default_scope=cfg.default_scope,
        experiment_name=name,
        log_level='ERROR',
        cfg=cfg,
    )
    with plain_text():
        runner.train()
    return runner


@pytest.mark.parametrize('scope', CONFIGS)
def test_tensorboard(scope, tmp_path):
    """Losses and learning rates are read back from the event file; the JSON log is still there."""
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = configure(scope, 'TensorboardVisBackend', tmp_path)
    assert cfg.visualizer.type == VISUALIZERS[scope]
    runner = run(cfg, tmp_path)
    assert type(runner.visualizer).__name__ == VISUALIZERS[scope]
    [folder] = (tmp_path / 'run').glob('*/vis_data')
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars('loss')] == [(1, 3.0), (2, 1.0)]
    assert [e.value for e in events.Scalars('lr')] == [0.5, 0.5]
    assert len((folder / 'scalars.json').read_text().splitlines()) == 2


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmseg'])  # the way of the line is the same
def test_wandb(scope, tmp_path, monkeypatch):
    """The package is not at hand: a stand-in notes what it is called with."""
    calls, logged = [], []
    stand_in = SimpleNamespace(
        init=lambda **kwargs: calls.append(kwargs),
        config=SimpleNamespace(update=lambda *args, **kwargs: None),
        run=SimpleNamespace(log_code=lambda **kwargs: None),
        log=lambda values, **kwargs: logged.append(values),
        join=lambda: None,
    )
    monkeypatch.setitem(sys.modules, 'wandb', stand_in)
    run(configure(scope, 'WandbVisBackend', tmp_path), tmp_path)
    [arguments] = calls
    assert arguments['project'] == 'itpn' and arguments['dir'].endswith('vis_data')
    assert [values['loss'] for values in logged] == [3.0, 1.0]
