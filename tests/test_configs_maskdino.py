"""Configs of MaskDINO on COCO and ADE20K: names, recipes, a step, results of the input's size."""

import functools
import re
import sys
from types import ModuleType
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from itpn_mm.engine import check_config
from itpn_mm.engine.layer_decay import NORMS

from .test_configs import (
    MASKDINO,
    assert_hooks,
    check_arch,
    check_common,
    fields,
    read,
)
from .test_configs_detection import BACKBONES, OBJECTS365, RATES, _plain, find_stock
from .test_configs_segmentation import (
    build_on_meta,
    check_predictions,
    check_pretraining,
    check_start,
    find_pretraining,
    pretrained,  # noqa: F401, a fixture
    slow_but,
    start_from,
)
from .tiny_configs import shrink, train

NAME = re.compile(
    r'maskdino_(?:(?P<stock>r50|swin-l)(?P<released>-released)?'
    r'|(?P<family>hivit|fastitpn)-(?P<arch>tiny|small|base|large)'
    r'-itpn-(?P<supervision>pixel|clip-l)_tpn(?P<start>_o365-pre)?)'
    r'_(?P<gpus>8)xb(?P<batch>2)(?P<amp>-amp)?-(?:(?P<iterations>160)k|lsj-(?P<epochs>50)e)'
    r'_(?P<data>coco|ade20k)(?P<panoptic>-panoptic)?(?:-(?P<side>512|640)x(?P=side))?'
)
ADE20K = [name for name in MASKDINO if '_ade20k-' in name]
COCO = [name for name in MASKDINO if '_coco' in name]
OURS = [name for name in MASKDINO if '-itpn-' in name]
FAST = 'maskdino_fastitpn-base-itpn-clip-l_tpn_8xb2-amp-{}'
FAST_ADE20K, FAST_COCO = FAST.format('160k_ade20k-512x512'), FAST.format('lsj-50e_coco')
R50_ADE20K = 'maskdino_r50_8xb2-160k_ade20k-512x512'
R50_COCO = 'maskdino_r50_8xb2-amp-lsj-50e_coco'
PANOPTIC = f'{R50_COCO}-panoptic'
SWIN = 'maskdino_swin-l_8xb2-amp-lsj-50e_coco'
# The others differ in numbers from one of these.
DEFAULT = (
    *(FAST_ADE20K, FAST_ADE20K.replace('512', '640'), R50_ADE20K),
    *(FAST_COCO, R50_COCO, PANOPTIC, SWIN),
)
# Without effect until what follows, whose weight starts at 0, has made a step.
LATE = re.compile(r'.+\.(level_embed|predictor\.box_head\.layers\.[01]\..+)')
EMBEDDINGS = ('query_content', 'query_boxes', 'label_embed')


def test_the_list_of_configs():
    names = {FAST_ADE20K.replace('base', arch) for arch in RATES}
    names |= {FAST_COCO.replace('base', arch) for arch in RATES}
    names |= {name.replace('_tpn_', '_tpn_o365-pre_') for name in (FAST_ADE20K, FAST_COCO)}
    names.add(FAST_ADE20K.replace('fastitpn-base-itpn-clip-l', 'hivit-large-itpn-pixel'))
    names.add(FAST_ADE20K.replace('512', '640'))
    for name in (R50_ADE20K, R50_COCO, PANOPTIC, SWIN):
        names |= {name, name.replace('_8xb2', '-released_8xb2')}
    assert set(MASKDINO) == names


@pytest.mark.parametrize('name', MASKDINO)
def test_name_says_what_it_holds(name):
    cfg, said = read(name), fields(NAME, name)
    ade20k = said['data'] == 'ade20k'
    check_common(cfg, said, 'mmseg' if ade20k else 'mmdet')
    model = cfg.model
    if said['stock']:
        kind = {'r50': 'ResNet', 'swin-l': 'SwinTransformer'}[said['stock']]
        assert model.backbone.type == kind and 'neck' not in model
    else:
        assert model.backbone.type == BACKBONES[said['family']]
        check_arch(model.backbone.arch, said['arch'])
    schedule = cfg.param_scheduler[0] if ade20k else cfg.param_scheduler
    steps = (135000, 150000) if ade20k else (327778, 355092)
    length = 160000 if ade20k else 368750  # 50 epochs of COCO by 16 images
    assert (schedule.type, tuple(schedule.milestones)) == ('MultiStepLR', steps)
    assert cfg.train_cfg.max_iters == schedule.end == length
    assert not ade20k or length == 1000 * int(said['iterations'])


@pytest.mark.parametrize('name', ADE20K)
def test_head_and_data_of_ade20k(name):
    """Those of MaskDINO's authors."""
    cfg, said = read(name), fields(NAME, name)
    model, side = cfg.model, int(said['side'])
    assert (model.type, model.decode_head.type) == (
        'EncoderDecoder',
        'itpn_mm.MaskDINODecodeHead',
    )
    head = model.decode_head
    assert (head.num_classes, head.num_queries, head.get('two_stage', False)) == (150, 100, False)
    assert head.pixel_decoder == dict(num_levels=3, feedforward_channels=1024)
    assert head.denoising == dict(num_queries=100, noise_scale=0.4)
    loss = dict(type='mmdet.CrossEntropyLoss', use_sigmoid=False, loss_weight=4.0)
    assert head.loss_cls == dict(loss, class_weight=[1.0] * 150 + [0.1])
    assert head.train_cfg == dict(
        num_points=12544, oversample_ratio=3.0, importance_sample_ratio=0.75
    )
    assert model.test_cfg == dict(mode='whole')
    assert tuple(model.data_preprocessor.size) == (side, side)
    assert model.data_preprocessor.test_cfg == dict(size_divisor=32)
    train, test = (
        {step.type: step for step in loader.dataset.pipeline}
        for loader in (cfg.train_dataloader, cfg.test_dataloader)
    )
    resize = train['RandomChoiceResize']
    assert (min(resize.scales), max(resize.scales)) == (side // 2, 2 * side)
    assert (len(resize.scales), resize.max_size) == (16, 4 * side)
    crop = train['RandomCrop']
    assert tuple(crop.crop_size) == (side, side) and crop.get('cat_max_ratio', 1.0) == 1.0
    assert 'PhotoMetricDistortion' in train and train['RandomFlip'].prob == 0.5
    assert tuple(test['Resize'].scale) == (4 * side, side)


@pytest.mark.parametrize('name', COCO)
def test_head_and_data_of_coco(name):
    """Data are mmdet's for Mask2Former, and the head is that of MaskDINO's authors."""
    cfg, said = read(name), fields(NAME, name)
    model = cfg.model
    head, fusion = model.panoptic_head, model.panoptic_fusion_head
    assert (model.type, head.type, fusion.type) == (
        'itpn_mm.MaskDINO',
        'itpn_mm.MaskDINOHead',
        'itpn_mm.MaskDINOFusionHead',
    )
    panoptic = said['panoptic'] is not None
    stuff = 53 if panoptic else 0
    for part in (head, fusion):
        assert (part.num_things_classes, part.num_stuff_classes) == (80, stuff)
    assert head.num_queries == 300 and head.get('two_stage', True)
    assert head.get('box_init', 'no') == (
        'no' if panoptic else 'bitmask' if said['stock'] == 'swin-l' else 'mask2box'
    )
    ours = said['stock'] is None
    levels = dict(num_levels=5 if said['stock'] == 'swin-l' else 4, num_extra_levels=not ours)
    assert head.pixel_decoder == dict(levels, feedforward_channels=2048)
    assert 'loss_cls' not in head  # the focal one
    assert (model.test_cfg.panoptic_on, model.test_cfg.instance_on) == (panoptic, True)

    stock = 'mask2former/mask2former_r50_8xb2-lsj-50e_coco'
    stock = _plain(Config.fromfile(find_stock(f'{stock}{said["panoptic"] or ""}.py')).to_dict())
    loaders = [f'{split}_dataloader' for split in ('train', 'val', 'test')]
    for loader in loaders if not panoptic else ():  # left over there, and nobody reads it
        assert stock[loader]['dataset']['data_prefix'].pop('seg').startswith('annotations/')
    for key in (*loaders, 'val_evaluator', 'test_evaluator', 'train_cfg'):
        assert _plain(cfg[key]) == stock[key]
    hooks = _plain(cfg.default_hooks)
    assert hooks['checkpoint'].pop('type') == 'itpn_mm.AtomicCheckpointHook'
    assert stock['default_hooks']['checkpoint'].pop('type') == 'CheckpointHook'
    assert {key: hooks[key] for key in stock['default_hooks']} == stock['default_hooks']
    preprocessor = stock['model']['data_preprocessor']
    if not said['released']:
        preprocessor.update(pad_size_divisor=64)
    assert _plain(model.data_preprocessor) == preprocessor


@pytest.mark.parametrize('name', OURS)
def test_backbone_and_pyramid_are_those_of_the_pretraining(name):
    said, model = fields(NAME, name), read(name).model
    assert model.backbone.drop_path_rate == (0.2 if said['arch'] == 'large' else 0.1)
    coco = said['data'] == 'coco'
    assert model.neck.out_strides == ((4, 8, 16, 32, 64) if coco else (4, 8, 16, 32))
    assert model.backbone.img_size == (224 if coco else int(said['side']))
    if said['start'] is None:
        return check_pretraining(name, said, ())
    file = f'work_dirs/{OBJECTS365.format(5)}/epoch_12.pth'
    plain = read(name.replace('_o365-pre_', '_')).model
    for part in ('backbone', 'neck'):
        init_cfg = dict(type='Pretrained', checkpoint=file, prefix=f'{part}.')
        assert model[part].init_cfg == init_cfg
        assert {**model[part], 'init_cfg': None} == {**plain[part], 'init_cfg': None}


def test_objects365_gives_what_the_pyramid_of_maskdino_has():
    """The same tensors of backbone and pyramid, but for the grid of positions."""
    source = build_on_meta(read(OBJECTS365.format(5))).state_dict()
    for name in (FAST_ADE20K, FAST_COCO):
        model = build_on_meta(read(name))
        for key, value in model.state_dict().items():
            if key.startswith(('backbone.', 'neck.')) and key != 'backbone.pos_embed':
                assert source[key].shape == value.shape, key


@pytest.mark.parametrize('name', MASKDINO)
def test_optimizer(name):
    """Rates fall by layer or are a tenth for the backbone; norms and embeddings do not decay."""
    cfg, said = read(name), fields(NAME, name)
    wrapper = cfg.optim_wrapper
    optimizer = wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-4, 0.05)
    assert wrapper.clip_grad == dict(max_norm=0.01, norm_type=2)
    assert (wrapper.get('loss_scale') == 'dynamic') == (said['amp'] is not None)
    if said['stock'] is None:
        rate = wrapper.paramwise_cfg.layer_decay_rate
        assert (rate, wrapper.paramwise_cfg.unit) == (RATES[said['arch']], 'attention')
    model = build_optimizable(cfg, said)
    wrapper = {**wrapper, 'type': 'OptimWrapper'}
    wrapper.pop('loss_scale', None)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        groups = build_optim_wrapper(model, wrapper).optimizer.param_groups
    rates = {p: (g['lr'] / 1e-4, g['weight_decay'] / 0.05) for g in groups for p in g['params']}
    norms = {p for m in model.modules() if isinstance(m, NORMS) for p in m.parameters()}
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter not in rates
            continue
        rate, decay = rates[parameter]
        if said['stock']:
            assert rate == pytest.approx(0.1 if key.startswith('backbone.') else 1)
        elif not key.startswith('backbone.'):
            assert rate == 1
        free = parameter in norms or 'bias_table' in key or any(x in key for x in EMBEDDINGS)
        if free:
            assert decay == 0, key
        elif parameter.ndim > 1 and 'pos_embed' not in key:
            assert decay == pytest.approx(1), key


def build_optimizable(cfg: Config, said: dict) -> torch.nn.Module:
    """The model, shapes alone."""
    # mmdet's Swin Transformer reads numbers off it
    linspace = functools.partial(torch.linspace, device='cpu')
    with mock.patch('torch.linspace', linspace) if said['stock'] else mock.MagicMock():
        return build_on_meta(cfg)


class Panopticapi(ModuleType):
    """As much of the package as reading an annotation takes."""

    @staticmethod
    def rgb2id(colours: np.ndarray) -> np.ndarray:
        return colours.astype(np.int64) @ np.array([1, 256, 256**2])


@pytest.fixture
def panopticapi(monkeypatch):
    """Stands in for the package, which is to be had from its repository alone."""
    package = Panopticapi('panopticapi')
    package.utils = package
    for key in ('panopticapi', 'panopticapi.utils'):
        monkeypatch.setitem(sys.modules, key, package)


@pytest.mark.parametrize('name', slow_but(MASKDINO, DEFAULT))
def test_config_trains_a_step_and_predicts(name, tmp_path, pretrained, panopticapi):  # noqa: F811
    cfg, said = shrink(read(name), name, tmp_path), fields(NAME, name)
    checkpoint = None
    if said['stock']:
        cfg.model.backbone.init_cfg = None
    else:
        checkpoint = pretrained(cfg, find_pretraining(said)[0])
        start_from(cfg, checkpoint)
    if said['panoptic']:
        evaluator = [cfg.val_evaluator[1]]  # that of instances; the other needs the whole package
        cfg.val_evaluator, cfg.test_evaluator = evaluator, evaluator
    runner, gradients = train(cfg)
    assert runner.iter == 1
    assert_hooks(cfg, runner)
    trained = {n for n, p in runner.model.named_parameters() if p.requires_grad}
    assert gradients.keys() == trained
    assert all(value.isfinite() for value in gradients.values())
    assert [k for k, value in gradients.items() if value == 0 and not LATE.fullmatch(k)] == []
    if checkpoint:
        check_start(runner, checkpoint)

    scalars = runner.message_hub.log_scalars
    prefix, sets = 'decode.', ('', 'd0.', 'd1.', 'dn_', 'd1.dn_')
    if said['data'] == 'coco':
        prefix, sets = '', (*sets, 'enc_', 'd0.dn_')
    losses = {f'{prefix}{s}loss_{kind}' for s in sets for kind in LOSSES}
    found = {key.removeprefix('train/') for key in scalars if 'loss_' in key}
    assert found == losses
    assert all(scalars[f'train/{loss}'].current() > 0 for loss in losses)
    if said['data'] == 'ade20k':
        assert 'val/mIoU' in scalars
        return check_predictions(runner)
    assert 'val/coco/bbox_mAP' in scalars and 'val/coco/segm_mAP' in scalars
    [batch] = list(runner.val_dataloader)[:1]
    with torch.no_grad():
        [result] = runner.model.eval().test_step(batch)
    assert result.ori_shape == (128, 128) != result.img_shape
    assert len(result.pred_instances) > 0
    assert result.pred_instances.masks.shape[1:] == result.ori_shape
    assert ('pred_panoptic_seg' in result) == (said['panoptic'] is not None)
    if said['panoptic']:
        assert result.pred_panoptic_seg.sem_seg.shape == (1, 128, 128)


LOSSES = ('cls', 'mask', 'dice', 'bbox', 'iou')


@pytest.mark.parametrize('name', OURS)
def test_missing_start_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = shrink(read(name), name, tmp_path)
    with pytest.raises(FileNotFoundError, match=r'`model\.backbone\.init_cfg\.checkpoint` is '):
        check_config(cfg, 'train')
