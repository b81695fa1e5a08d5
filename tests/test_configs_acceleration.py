"""Configs of accelerated detectors, upright and rotated: names, recipes, and a step of each."""

import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from itpn_mm.acceleration import SETTINGS
from itpn_mm.backbones import hivit
from itpn_mm.engine import check_config, check_model_fits
from itpn_mm.registry import MODELS

from .test_configs import (
    ACCELERATION,
    PATHS,
    assert_hooks,
    check_common,
    fields,
    read,
    run_two_processes,
    write_for_processes,
)
from .test_configs_detection_lines import LINES
from .tiny_configs import shrink, slow_unless, train

NAME = re.compile(
    r'(?P<method>mask-rcnn|rotated-faster-rcnn-le90|oriented-rcnn-le90)'
    r'_fastitpn-(?P<arch>base)-itpn-clip-l_tpn'
    r'_(?P<gpus>\d+)xb(?P<batch>\d+)(?P<amp>-amp)?(?P<crop>-ms-crop)?-1x'
    r'(?:-(?P<setting>[\w-]+))?_(?P<data>coco|dota)'
)
DENSE = {
    'coco': 'mask-rcnn_fastitpn-base-itpn-clip-l_tpn_32xb2-amp-ms-crop-1x_coco',
    'dota': 'rotated-faster-rcnn-le90_fastitpn-base-itpn-clip-l_tpn_8xb1-1x_dota',
}
ORIENTED = 'oriented-rcnn-le90_fastitpn-base-itpn-clip-l_tpn_8xb1-1x_dota'
PRETRAINING = 'itpn-clip-l_fastitpn-base-p16_8xb256-amp-coslr-1600e_in1k'
MIXES = {'windows-global-4': dict(window_attention=True, global_layers=(5, 11, 17, 23))}
# The rows of Figure 5, and one as ViTDet; those of Table VII.
ROWS = {
    'coco': 'migration-10 migration-20 migration-30 migration-40 windows windows-global-4 '
    'gathering gathering-hrpe all',
    'dota': 'windows windows-rpe gathering gathering-rpe gathering-hrpe',
}
# Without effect until the scales of the attention to gathering tokens have left 0.
LATE = ('backbone.acceleration.gathering_token', 'backbone.acceleration.cross_rel_pos.')


def settings_of(name: str) -> dict:
    setting = fields(NAME, name)['setting']
    return dict() if setting is None else {**SETTINGS, **MIXES}[setting]


def trunk(cfg: Config) -> Config:
    """The config of the backbone itself."""
    return cfg.model.backbone.get('backbone', cfg.model.backbone)


def test_the_list_of_configs():
    expected = {*DENSE.values(), ORIENTED}
    for data, rows in ROWS.items():
        expected |= {DENSE[data].replace(f'_{data}', f'-{row}_{data}') for row in rows.split()}
    assert set(ACCELERATION) == expected


@pytest.mark.parametrize('name', ACCELERATION)
def test_name_says_what_it_holds(name):
    cfg, said = read(name), fields(NAME, name)
    dense, settings = read(DENSE[said['data']]), settings_of(name)
    check_common(cfg, said, {'coco': 'mmdet', 'dota': 'mmrotate'}[said['data']])
    types = {
        'mask-rcnn': ('MaskRCNN', 'RPNHead'),
        'rotated-faster-rcnn-le90': ('mmdet.FasterRCNN', 'mmdet.RPNHead'),
        'oriented-rcnn-le90': ('mmdet.FasterRCNN', 'OrientedRPNHead'),
    }
    assert (cfg.model.type, cfg.model.rpn_head.type) == types[said['method']]
    if settings:
        wrapped = dict(type='itpn_mm.TokenMigration', backbone=dense.model.backbone, **settings)
        assert cfg.model.backbone == wrapped
        cfg.model.backbone = dense.model.backbone
        assert cfg.to_dict() == dense.to_dict()


@pytest.mark.parametrize('name', [*DENSE.values(), ORIENTED])
def test_backbone_and_pyramid_are_those_of_the_pretraining(name):
    model, pretraining = read(name).model, read(PRETRAINING)
    checkpoint = f'work_dirs/{PRETRAINING}/epoch_{pretraining.train_cfg.max_epochs}.pth'
    for part in ('backbone', 'neck'):
        settings, expected = dict(model[part]), dict(pretraining.model[part])
        init_cfg = dict(type='Pretrained', checkpoint=checkpoint, prefix=f'{part}.')
        assert settings.pop('init_cfg') == init_cfg
        for own in ('drop_path_rate', 'out_strides'):
            settings.pop(own, None), expected.pop(own, None)
        assert settings == expected


def test_coco_recipe_is_that_of_hivit():
    cfg = read(DENSE['coco']).to_dict()
    other = read('mask-rcnn_hivit-base-itpn-pixel_tpn_32xb2-amp-ms-crop-1x_coco').to_dict()
    assert cfg['model']['backbone']['drop_path_rate'] == 0.05
    for whole in (cfg, other):
        del whole['model']['backbone'], whole['model']['neck'], whole['pretrained']
    assert cfg == other


def test_dota_recipe():
    cfg = read(DENSE['dota'])
    optimizer = cfg.optim_wrapper.optimizer
    assert optimizer == dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    assert cfg.optim_wrapper.paramwise_cfg == dict(layer_decay_rate=0.9, unit='attention')
    assert cfg.model.backbone.drop_path_rate == 0.1
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].end == 12
    assert cfg.param_scheduler[1].milestones == [9, 11]
    coder = cfg.model.roi_head.bbox_head.bbox_coder
    assert (coder.type, coder.angle_version) == ('DeltaXYWHTHBBoxCoder', 'le90')


def test_oriented_rcnn_is_stock_but_for_what_rotated_faster_rcnn_replaces():
    cfg, other = read(ORIENTED).to_dict(), read(DENSE['dota']).to_dict()
    name = 'oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py'
    stock = Config.fromstring(f"_base_ = 'mmrotate::{name}'", '.py')
    parts = {part: cfg['model'].pop(part) for part in ('backbone', 'neck')}
    assert parts == {part: other['model'].pop(part) for part in parts}
    assert cfg['model'] == {k: v for k, v in stock.model.to_dict().items() if k not in parts}
    del cfg['model'], other['model']
    assert cfg == other


@pytest.mark.parametrize('name', ACCELERATION)
def test_model_at_its_own_size(name):
    cfg = read(name)
    scope = DefaultScope.overwrite_default_scope(cfg.default_scope)
    with scope, torch.device('meta'):  # shapes alone
        model = MODELS.build(cfg.model)
    check_model_fits(model)
    backbone = model.backbone
    settings = settings_of(name)
    if not settings:
        assert backbone.acceleration is None
        return
    lengths = backbone.acceleration.tokens_per_layer(64, 64)  # 16 full windows
    assert len(lengths) == 24 and lengths == sorted(lengths, reverse=True)
    assert lengths[-1] == pytest.approx(4096 * (1 - settings.get('ratio', 0)), rel=0.01)
    in_windows = range(24) if settings.get('window_attention') else ()
    others = settings.get('global_layers', ())
    assert set(backbone.acceleration.window_layers) == set(in_windows) - set(others)


@pytest.fixture(scope='session')
def pretrained(tmp_path_factory):
    """A file to start a shrunken config from, as our pre-training writes it."""

    def write(cfg: Config) -> str:
        torch.manual_seed(1)
        path = tmp_path_factory.mktemp('pretrained') / 'epoch_1.pth'
        parts = {'backbone': trunk(cfg), 'neck': cfg.model.neck}
        state = {
            f'{part}.{key}': value
            for part, settings in parts.items()
            for key, value in MODELS.build({**settings, 'init_cfg': None}).state_dict().items()
        }
        torch.save(dict(state_dict=state), path)
        return str(path)

    return write


class SerialPool:
    """Stands for the four processes that mmrotate's evaluation starts, which takes 27 s.

    `detections` counts the boxes that it was given.
    """

    def __init__(self) -> None:
        self.detections = 0

    def starmap(self, function: Callable, rows: Iterable[tuple]) -> list:
        rows = list(rows)
        self.detections += sum(len(row[0]) for row in rows)
        return list(itertools.starmap(function, rows))

    def close(self) -> None:
        """There is nothing to end."""


@pytest.fixture
def serial_pool(monkeypatch):
    """Evaluation of rotated boxes in this process; the real pool: test_split_dota.py."""
    pool = SerialPool()
    mean_ap = pytest.importorskip('mmrotate.evaluation.functional.mean_ap')
    context = SimpleNamespace(Pool=lambda processes: pool)
    monkeypatch.setattr(mean_ap, 'get_context', lambda method: context)
    return pool


@pytest.mark.parametrize(
    'name', slow_unless(ACCELERATION, '1x_|-all_|migration-40_|windows_coco|gathering-hrpe_dota')
)
def test_config_trains_a_step_and_predicts(name, tmp_path, pretrained, request):
    """From a pre-trained file, each part at its rate; the heads and the evaluation are stock."""
    said, settings = fields(NAME, name), settings_of(name)
    pool = request.getfixturevalue('serial_pool') if said['data'] == 'dota' else None
    cfg = shrink(read(name), name, tmp_path)
    checkpoint = pretrained(cfg)
    for settings_of_part in (trunk(cfg), cfg.model.neck):
        settings_of_part.init_cfg.checkpoint = checkpoint
    runner, gradients = train(cfg)

    assert runner.iter == 1
    assert_hooks(cfg, runner)
    assert gradients.keys() == dict(runner.model.named_parameters()).keys()
    assert all(value.isfinite() for value in gradients.values())
    assert [
        key for key, value in gradients.items() if value == 0 and not key.startswith(LATE)
    ] == []
    check_parts(runner.model, settings)
    check_start(runner.model, torch.load(checkpoint)['state_dict'])
    check_rates(runner)
    scalars = runner.message_hub.log_scalars
    losses = ['loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox']
    for loss in losses + ['loss_mask'] * (said['data'] == 'coco'):
        assert scalars[f'train/{loss}'].current() > 0, loss
    if said['data'] == 'coco':
        assert 'val/coco/segm_mAP' in scalars  # the stock validation predicted something
    else:
        assert 'val/dota/mAP' in scalars and pool.detections > 0


def check_parts(model: torch.nn.Module, settings: dict) -> None:
    """The accelerated backbone has just the parameters of its setting."""
    kinds = {
        key.split('.')[2] for key in model.state_dict() if key.startswith('backbone.acceleration.')
    }
    expected = {'gathering_token', 'scales'} if settings.get('gathering') else set()
    if settings.get('rel_pos_bias'):
        expected |= {'window': {'rel_pos'}, 'all': {'rel_pos', 'cross_rel_pos'}}[
            settings['rel_pos_bias']
        ]
    assert kinds == expected
    if settings.get('ratio'):
        lengths = model.backbone.acceleration.tokens_per_layer(8, 8)
        assert 64 > lengths[0] >= lengths[-1]


def check_start(model: torch.nn.Module, source: dict[str, torch.Tensor]) -> None:
    """Backbone and neck began with what the file holds, which one small step leaves visible."""
    for part in ('backbone', 'neck'):
        for key, value in getattr(model, part).state_dict().items():
            if not key.startswith('acceleration.'):
                assert torch.allclose(value, source[f'{part}.{key}'], atol=1e-4), f'{part}.{key}'


def check_rates(runner) -> None:
    groups = runner.optim_wrapper.optimizer.param_groups
    last = runner.model.backbone.depths[2] + 1  # the embedding is 0, then attention blocks, heads
    assert {group['layer_id'] for group in groups} == set(range(last + 1))
    for group in groups:
        assert group['lr_scale'] == pytest.approx(0.9 ** (last - group['layer_id']))
        for key in group['param_names']:
            if key.startswith('backbone.acceleration.'):  # new: full rate, no weight decay
                assert (group['lr_scale'], group['weight_decay']) == (1, 0), key


@pytest.mark.parametrize('name', ACCELERATION)
def test_missing_pretraining_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    key = 'backbone.backbone' if settings_of(name) else 'backbone'
    cfg = shrink(read(name), name, Path(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf'`model\.{key}\.init_cfg\.checkpoint` is '):
        check_config(cfg, 'train')


def test_lines_of_the_upright_detectors_hold_for_rotated_ones(tmp_path, serial_pool):
    """Those of configs/detection/README.md: memory, averaged weights, going on after a break."""
    read(ORIENTED)  # skips without mmrotate
    lines = [line for part in ('with_cp', 'EMAHook') for line in LINES if part in line]
    [resume] = [line for line in LINES if 'resume' in line]
    for epochs in (1, 2):
        path = tmp_path / f'own{epochs}.py'
        path.write_text('\n'.join([f'_base_ = {str(PATHS[ORIENTED])!r}', *lines]))
        cfg = shrink(Config.fromfile(path), ORIENTED, tmp_path / f'run{epochs}')
        cfg.model.backbone.init_cfg = cfg.model.neck.init_cfg = None
        cfg.work_dir, cfg.train_cfg.max_epochs = str(tmp_path / 'run'), epochs
        with mock.patch.object(hivit, 'checkpoint', wraps=hivit.checkpoint) as spy:
            runner, gradients = train(cfg)
        assert spy.call_count == 3  # a block of each stage; one step, also after the break
        assert all(value.isfinite() for value in gradients.values())
        lines.append(resume)
    assert (runner.epoch, runner.iter) == (2, 2)
    states = runner.optim_wrapper.optimizer.state
    assert {states[p]['step'].item() for p in runner.model.parameters()} == {2}
    file = torch.load(tmp_path / 'run' / 'epoch_2.pth', weights_only=False)
    key = 'backbone.patch_embed.proj.weight'
    assert not torch.equal(file['state_dict'][key], file['ema_state_dict'][f'module.{key}'])


@pytest.mark.slow
@pytest.mark.slow
def test_two_processes_stay_equal(tmp_path):
    """Plain DDP, which fails if a parameter has no gradient; three steps with an image each."""
    name = DENSE['dota'].replace('_dota', '-gathering-rpe_dota')
    changes = {f'model.{part}.init_cfg': None for part in ('backbone.backbone', 'neck')}
    # A validation would start processes, which import that script, which has no guard.
    changes |= {f'val_{key}': None for key in ('cfg', 'dataloader', 'evaluator')}
    path = write_for_processes(name, tmp_path, **changes)
    first, second = run_two_processes(path, tmp_path)
    assert first['losses'] != second['losses']
    for part in ('start', 'end'):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(value, second[part][key]) for key, value in first[part].items())
    late = {key for key in first['start'] if key.startswith(LATE)}
    assert len(late) == 2
    for key in late:  # from the second step on
        assert not torch.equal(first['end'][key], first['start'][key]), key
