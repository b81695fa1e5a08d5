"""The lines of configs/detection/README.md do what it says, on DINO and on Cascade Mask R-CNN."""

import re
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import EpochBasedTrainLoop

from itpn_mm.acceleration import SETTINGS
from itpn_mm.backbones import hivit

from .test_configs import PATHS, read
from .tiny_configs import ROOT, shrink, train

DINO = 'dino-4scale_fastitpn-base-itpn-clip-l_tpn_8xb2-amp-12e_coco'
CASCADE = 'cascade-mask-rcnn_hivit-base-itpn-pixel_tpn_32xb2-amp-ms-crop-3x_coco'
README = (ROOT / 'configs' / 'detection' / 'README.md').read_text()
TABLE = README.partition('### Lines of config')[2].partition('\n## ')[0]
LINES = re.findall(r'^\| [^|]+ \| `(.+)` \|$', TABLE, flags=re.MULTILINE)

both = pytest.mark.parametrize('name', [DINO, CASCADE])


def with_line(name: str, part: str, tmp_path: Path, file: str = 'FILE') -> Config:
    """A shrunken config of a user: `name` with the one line of the table that holds `part`."""
    read(name)  # skips without mmdet
    [line] = [line for line in LINES if part in line]
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / 'own.py'
    path.write_text(f'_base_ = {str(PATHS[name])!r}\n{line}\n'.replace('FILE', file))
    return shrink(without_start(Config.fromfile(path)), name, tmp_path / 'run')


def without_start(cfg: Config) -> Config:
    for part in (cfg.model.backbone.get('backbone', cfg.model.backbone), cfg.model.neck):
        part.init_cfg = None
    return cfg


@pytest.fixture(scope='session')
def plain(tmp_path_factory):
    """Work dir and gradients of an epoch of one step without any of the lines."""
    done: dict[str, tuple[Path, dict]] = {}

    def get(name: str) -> tuple[Path, dict]:
        if name not in done:
            work_dir = tmp_path_factory.mktemp('plain')
            _, gradients = train(shrink(without_start(read(name)), name, work_dir))
            done[name] = work_dir, gradients
        return done[name]

    return get


def test_each_line_has_a_test():
    text = Path(__file__).read_text()
    parts = re.findall(r"with_line\(\w+, [\"'](.+?)[\"'], tmp_path", text)
    assert len(parts) == len(LINES) == 7
    assert all(sum(part in line for line in LINES) == 1 for part in parts)


@both
def test_layer_decay(name, tmp_path):
    runner, _ = train(with_line(name, 'layer_decay_rate', tmp_path))
    groups = runner.optim_wrapper.optimizer.param_groups
    for group in groups:
        assert group['lr_scale'] == pytest.approx(0.95 ** (2 - group['layer_id']))
    assert {group['layer_id'] for group in groups} == {0, 1, 2}


@both
def test_activation_checkpointing(name, tmp_path, plain):
    """The gradients stay what they are, and blocks are run again for them."""
    cfg = with_line(name, 'with_cp', tmp_path)
    with mock.patch.object(hivit, 'checkpoint', wraps=hivit.checkpoint) as spy:
        _, gradients = train(cfg)
    assert spy.call_count == 3  # a block of each stage
    _, expected = plain(name)
    assert gradients.keys() == expected.keys()
    for key, value in gradients.items():
        torch.testing.assert_close(value, expected[key], atol=1e-6, rtol=1e-4, msg=key)


@both
def test_averaged_weights(name, tmp_path):
    """A checkpoint holds the average as its weights, and the trained ones beside."""
    cfg = with_line(name, 'EMAHook', tmp_path)
    cfg.train_cfg.max_epochs, cfg.param_scheduler = 2, []
    cfg.train_cfg.val_begin = 2
    cfg.optim_wrapper.optimizer.lr = 0.01  # against rounding
    runner, _ = train(cfg)
    first, second = (
        torch.load(Path(cfg.work_dir) / f'epoch_{i}.pth', weights_only=False) for i in (1, 2)
    )
    momentum = cfg.custom_hooks[-1].momentum
    trained = {key.removeprefix('module.'): v for key, v in second['ema_state_dict'].items()}
    moved = []
    for key, parameter in runner.model.named_parameters():
        average = (1 - momentum) * first['state_dict'][key] + momentum * trained[key]
        assert torch.equal(parameter, trained[key])
        torch.testing.assert_close(second['state_dict'][key], average, atol=2e-7, rtol=1e-6)
        moved.append(not torch.equal(second['state_dict'][key], trained[key]))
    assert sum(moved) > 0.9 * len(moved)  # by chance, two steps may leave a bias where it was
    assert 'val/coco/bbox_mAP' in runner.message_hub.log_scalars


@both
def test_start_from_a_detector(name, tmp_path, plain):
    checkpoint = plain(name)[0] / 'epoch_1.pth'
    cfg = with_line(name, 'load_from', tmp_path, file=str(checkpoint))
    cfg.randomness = dict(seed=1)  # not what the file began with
    cfg.optim_wrapper.optimizer.lr = 1e-9
    runner, _ = train(cfg)
    assert runner.iter == 1
    source = torch.load(checkpoint, weights_only=False)['state_dict']
    for key, parameter in runner.model.named_parameters():
        torch.testing.assert_close(parameter, source[key], atol=1e-6, rtol=0)


@both
def test_resume(name, tmp_path, plain):
    """One step more, the second one of weights, optimizer and schedule."""
    cfg = with_line(name, 'resume', tmp_path)
    cfg.work_dir = str(shutil.copytree(plain(name)[0], tmp_path / 'copy'))
    cfg.train_cfg.max_epochs = 2
    step = EpochBasedTrainLoop.run_iter
    with mock.patch.object(EpochBasedTrainLoop, 'run_iter', autospec=True, side_effect=step) as spy:
        runner, _ = train(cfg)
    assert spy.call_count == 1
    assert (runner.epoch, runner.iter) == (2, 2)
    states = runner.optim_wrapper.optimizer.state
    assert {states[p]['step'].item() for p in runner.model.parameters()} == {2}
    assert {scheduler.last_step for scheduler in runner.param_schedulers} == {2}


@both
def test_acceleration(name, tmp_path):
    cfg = with_line(name, 'TokenMigration', tmp_path)
    wrapper = {k: v for k, v in cfg.model.backbone.items() if k in SETTINGS['all']}
    assert wrapper == SETTINGS['all']
    runner, gradients = train(cfg)
    model = runner.model
    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert all(value.isfinite() for value in gradients.values())
    lengths = model.backbone.acceleration.tokens_per_layer(8, 8)
    assert 64 > lengths[0] >= lengths[-1]
    for group in runner.optim_wrapper.optimizer.param_groups:
        for key in group['param_names']:
            if key.startswith('backbone.acceleration.'):  # as new as the heads
                assert (group['lr_scale'], group['weight_decay']) == (1, 0), key
    assert 'val/coco/bbox_mAP' in runner.message_hub.log_scalars


def test_bfloat16(tmp_path, plain):
    """The whole run of DINO; mmengine takes its wrapper for a GPU's, but it runs on a CPU too."""
    cfg = with_line(DINO, 'bfloat16', tmp_path)
    assert cfg.optim_wrapper.dtype == 'bfloat16'
    cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale=1.0)
    with mock.patch(f'{AmpOptimWrapper.__module__}.is_cuda_available', return_value=True):
        runner, gradients = train(cfg)
    assert runner.optim_wrapper.cast_dtype == torch.bfloat16
    _, expected = plain(DINO)
    assert gradients.keys() == expected.keys()
    assert all(value.isfinite() for value in gradients.values())
    # Queries that were chosen by a hair are others.
    check_near(total_loss(runner.work_dir), total_loss(plain(DINO)[0]), 0.15)


def check_near(value: float, exact: float, tolerance: float = 0.02) -> None:
    """Another precision, and near."""
    assert value != exact and value == pytest.approx(exact, rel=tolerance)


def total_loss(work_dir: Path | str) -> float:
    """The loss of the first step of a run."""
    checkpoint = torch.load(Path(work_dir) / 'epoch_1.pth', weights_only=False)
    return checkpoint['message_hub']['log_scalars']['train/loss'].data[0][0]


def test_half_precision_of_backbone_and_pyramid(tmp_path, plain):
    """Of Cascade on a CPU, where mmcv has no half-precision kernels for what comes after."""
    from mmdet.models import TwoStageDetector

    extract_feat, dtypes = TwoStageDetector.extract_feat, set()

    def extract_in_half(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        with torch.autocast('cpu', torch.bfloat16):
            maps = extract_feat(self, inputs)
        dtypes.update(x.dtype for x in maps)
        return [x.float() for x in maps]

    with mock.patch.object(TwoStageDetector, 'extract_feat', extract_in_half):
        _, gradients = train(shrink(without_start(read(CASCADE)), CASCADE, tmp_path))
    assert dtypes == {torch.bfloat16}
    assert all(value.isfinite() for value in gradients.values())
    check_near(total_loss(tmp_path), total_loss(plain(CASCADE)[0]))
