"""Configs of CLIP-supervised Mask R-CNN, Cascade Mask R-CNN and DINO: names, recipes, a step."""

import re
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from itpn_mm.engine import check_config, check_model_fits
from itpn_mm.registry import MODELS

from .test_configs import (
    DETECTION,
    UPRIGHT,
    assert_hooks,
    check_arch,
    check_common,
    fields,
    read,
    run_two_processes,
    write_for_processes,
)
from .tiny_configs import shrink, slow_unless, train

DETECTORS = [name for name in UPRIGHT if name not in DETECTION]
NAME = re.compile(
    r'(?P<method>mask-rcnn|cascade-mask-rcnn|dino)(?:-(?P<scales>[45])scale)?'
    r'_(?P<family>hivit|fastitpn)-(?P<arch>tiny|small|base|large)'
    r'-itpn-(?P<supervision>pixel|clip-b|clip-l)_tpn(?P<start>_o365-pre)?'
    r'_(?P<gpus>\d+)xb(?P<batch>\d+)(?P<amp>-amp)(?P<crop>-ms-crop)?-(?P<times>\d+)(?P<unit>[xe])'
    r'_(?P<data>coco|objects365v1)'
)
TYPES = {'mask-rcnn': 'MaskRCNN', 'cascade-mask-rcnn': 'CascadeRCNN', 'dino': 'itpn_mm.DINO'}
BACKBONES = {'hivit': 'itpn_mm.HiViT', 'fastitpn': 'itpn_mm.FastiTPN'}
RATES = {'tiny': 0.8, 'small': 0.85, 'base': 0.9, 'large': 0.95}
TRUNKS = [
    *(f'fastitpn-{arch}-itpn-clip-l' for arch in RATES),
    'hivit-base-itpn-clip-l',
    'hivit-large-itpn-pixel',
]
DINO = 'dino-4scale_fastitpn-base-itpn-clip-l_tpn_8xb2-amp-12e_coco'
OBJECTS365 = 'dino-{}scale_fastitpn-base-itpn-clip-l_tpn_32xb2-amp-12e_objects365v1'
AFTER_OBJECTS365 = 'dino-{}scale_fastitpn-base-itpn-clip-l_tpn_o365-pre_8xb2-amp-6e_coco'
# Without effect until the layer after them, whose weight starts at 0, has made a step.
LATE = re.compile(r'level_embed|bbox_head\.reg_branches\.\d+\.[02]\.')
# With a size that is the number of classes.
OF_CLASSES = re.compile(r'bbox_head\.cls_branches\.|dn_query_generator\.label_embedding\.')


def test_the_list_of_configs():
    names = {f'dino-{n}scale_{trunk}_tpn_8xb2-amp-12e_coco' for n in (4, 5) for trunk in TRUNKS}
    names |= {name.format(n) for n in (4, 5) for name in (OBJECTS365, AFTER_OBJECTS365)}
    ending = '_tpn_32xb2-amp-ms-crop-'
    for supervision in ('pixel', 'clip-b'):
        names.add(f'cascade-mask-rcnn_hivit-base-itpn-{supervision}{ending}3x_coco')
    names |= {f'mask-rcnn_hivit-base-itpn-clip-b{ending}{times}_coco' for times in ('1x', '3x')}
    names.add(f'mask-rcnn_hivit-large-itpn-clip-l{ending}1x_coco')
    assert set(DETECTORS) == names


@pytest.mark.parametrize('name', DETECTORS)
def test_name_says_what_it_holds(name):
    cfg, said = read(name), fields(NAME, name)
    check_common(cfg, said, 'mmdet')
    model, dino = cfg.model, said['method'] == 'dino'
    assert model.type == TYPES[said['method']]
    assert model.backbone.type == BACKBONES[said['family']]
    check_arch(model.backbone.arch, said['arch'])
    steps = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert 'RandomChoice' in steps and (said['crop'] is None) == dino  # DINO always crops

    levels = int(said['scales'] or 5)
    assert model.neck.out_strides == (4, 8, 16, 32, 64)[-levels:]
    if dino:
        attentions = (
            model.encoder.layer_cfg.self_attn_cfg,
            model.decoder.layer_cfg.cross_attn_cfg,
        )
        assert [attention.num_levels for attention in attentions] == [levels] * 2
        assert model.get('num_feature_levels', 4) == levels  # 4 is mmdet's default
        assert model.bbox_head.num_classes == {'coco': 80, 'objects365v1': 365}[said['data']]

    epochs = int(said['times']) * (12 if said['unit'] == 'x' else 1)
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[-1].end == epochs
    milestones = [int(epochs * Fraction(3, 4)), int(epochs * Fraction(11, 12))]
    assert cfg.param_scheduler[-1].milestones == ([epochs - 1] if dino else milestones)
    start = OBJECTS365.format(said['scales'])
    assert cfg.load_from == (f'work_dirs/{start}/epoch_12.pth' if said['start'] else None)


@pytest.mark.parametrize('name', DETECTORS)
def test_recipe(name):
    """Rates and stochastic depth: of the authors' files, but those of DINO, which are ours."""
    cfg, said = read(name), fields(NAME, name)
    wrapper, optimizer = cfg.optim_wrapper, cfg.optim_wrapper.optimizer
    assert wrapper.constructor == 'itpn_mm.LayerDecayOptimWrapperConstructor'
    assert wrapper.paramwise_cfg == dict(layer_decay_rate=RATES[said['arch']], unit='attention')
    assert (optimizer.type, optimizer.weight_decay) == ('AdamW', 0.05)
    assert wrapper.loss_scale == 'dynamic'
    key = said['method'] + (said['times'] + 'x' if said['method'] == 'mask-rcnn' else '')
    rates = {'mask-rcnn1x': 2e-4, 'mask-rcnn3x': 1.5e-4, 'cascade-mask-rcnn': 1e-4, 'dino': 1e-4}
    assert optimizer.lr == (2e-4 if said['data'] == 'objects365v1' else rates[key])
    clip_grad = dict(max_norm=0.1, norm_type=2) if said['method'] == 'dino' else None
    assert wrapper.get('clip_grad') == clip_grad
    large = said['arch'] == 'large'
    drop_paths = {
        'mask-rcnn1x': 0.2 if large else 0.05,
        'mask-rcnn3x': 0.3,
        'cascade-mask-rcnn': 0.2,
        'dino': 0.2 if large else 0.1,
    }
    assert cfg.model.backbone.drop_path_rate == drop_paths[key]


@pytest.mark.parametrize('name', DETECTORS)
def test_backbone_and_pyramid_are_those_of_the_pretraining(name):
    said, model = fields(NAME, name), read(name).model
    if said['start']:
        assert model.backbone.init_cfg is None and model.neck.init_cfg is None
        return
    checkpoint = model.backbone.init_cfg.checkpoint
    pretraining, epochs = find_pretraining(said)
    # The released file, or what the pre-training writes.
    file = f'checkpoints/itpn-pixel_hivit-{said["arch"]}-p16_in1k.pth'
    if said['supervision'] != 'pixel':
        file = f'work_dirs/{pretraining}/epoch_{epochs}.pth'
    assert checkpoint == file
    source = read(pretraining)
    assert source.train_cfg.max_epochs == epochs
    # By rows and columns in the large CLIP model, else without, as in the authors' files.
    relative = 'decomposed' if '_hivit-large-itpn-clip-l_' in name else None
    assert model.backbone.get('rel_pos_bias') == relative
    for part in ('backbone', 'neck'):
        settings, expected = ({'bias': False, **m[part]} for m in (model, source.model))
        init_cfg = dict(type='Pretrained', checkpoint=checkpoint, prefix=f'{part}.')
        assert settings.pop('init_cfg') == init_cfg
        for own in ('drop_path_rate', 'out_strides', 'rel_pos_bias'):
            settings.pop(own, None), expected.pop(own, None)
        assert settings == expected


def find_pretraining(said: dict) -> tuple[str, int]:
    """The config of the pre-training that Table V or VI tells, and its epochs."""
    start, arch = f'itpn-{said["supervision"]}_{said["family"]}', said['arch']
    if said['supervision'] == 'pixel':
        return f'{start}-{arch}-p16_8xb512-amp-coslr-1600e_in1k', 1600
    epochs = {'dino': 1600}.get(said['method'], {'clip-b': 800, 'clip-l': 300}[said['supervision']])
    return f'{start}-{arch}-p16_8xb256-amp-coslr-{epochs}e_in1k', epochs


def test_heads_of_cascade_are_those_of_mmdet_for_this_recipe():
    """mmdet has them in a config of another backbone, with the same box heads."""
    stock = 'cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'
    stock = Config.fromfile(find_stock(f'convnext/{stock}'), import_custom_modules=False).model
    heads = []
    for name in ('pixel', 'clip-b'):
        model = read(
            f'cascade-mask-rcnn_hivit-base-itpn-{name}_tpn_32xb2-amp-ms-crop-3x_coco'
        ).model
        heads.append({k: v for k, v in model.items() if k not in ('backbone', 'neck')})
    assert heads[0] == heads[1]
    ours = Config(heads[0])
    defaults = dict(
        type='ConvFCBBoxHead',
        num_shared_convs=4,
        num_shared_fcs=1,
        conv_out_channels=256,
        fc_out_channels=1024,
    )
    assert len(ours.roi_head.bbox_head) == 3
    for head, theirs in zip(ours.roi_head.bbox_head, stock.roi_head.bbox_head, strict=True):
        assert head.type == 'Shared4Conv1FCBBoxHead'  # has the defaults above
        head.update(defaults)
        assert head == theirs
    for key in ('rpn_head', 'roi_head', 'train_cfg', 'test_cfg', 'data_preprocessor'):
        assert ours[key] == stock[key]


def find_stock(path: str) -> Path:
    mmdet = pytest.importorskip('mmdet')
    return Path(mmdet.__path__[0]) / '.mim' / 'configs' / path


@pytest.mark.parametrize('scales', [4, 5])
def test_dino_is_the_stock_one_otherwise(scales):
    stock = {4: 'dino-4scale_r50_8xb2-12e_coco.py', 5: 'dino-5scale_swin-l_8xb2-12e_coco.py'}
    stock = _plain(Config.fromfile(find_stock(f'dino/{stock[scales]}')).to_dict())
    cfg = _plain(read(DINO.replace('4scale', f'{scales}scale')).to_dict())
    # Boxes count in fractions of a map, so that a map without the last row would be out of place.
    assert cfg['model']['data_preprocessor'].pop('pad_size_divisor') == 64
    stock['model']['data_preprocessor'].pop('pad_size_divisor')
    for key in ('type', 'backbone', 'neck'):
        cfg['model'].pop(key), stock['model'].pop(key)
    for key in ('optim_wrapper', 'default_hooks', 'auto_scale_lr', 'pretrained'):
        cfg.pop(key), stock.pop(key, None)
    assert cfg == {key: value for key, value in stock.items() if key != 'num_levels'}


@pytest.mark.parametrize('scales', [4, 5])
def test_objects365_is_mmdets_with_sampling_by_class_and_the_pipeline_of_coco(scales):
    stock = Config.fromfile(find_stock('_base_/datasets/objects365v1_detection.py'))
    cfg, coco = read(OBJECTS365.format(scales)), read(DINO)
    loader = cfg.train_dataloader
    assert loader.sampler == dict(type='ClassAwareSampler', num_sample_class=1)
    assert loader.dataset.pipeline == coco.train_dataloader.dataset.pipeline
    loader.sampler, loader.dataset.pipeline = (
        stock.train_dataloader.sampler,
        stock.train_dataloader.dataset.pipeline,
    )
    keys = [f'{split}_{kind}' for split in ('val', 'test') for kind in ('dataloader', 'evaluator')]
    for key in ('train_dataloader', *keys):
        assert _plain(cfg[key]) == _plain(stock[key]), key


def _plain(value):
    """Without the scope that mmengine notes where a base is of another package."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k != '_scope_'}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize('name', DETECTORS)
def test_parts_fit_at_their_own_size(name):
    cfg = read(name)
    with torch.device('meta'), DefaultScope.overwrite_default_scope('mmdet'):  # shapes alone
        model = MODELS.build(cfg.model)
        check_model_fits(model)
    if fields(NAME, name)['method'] == 'dino':
        assert model.num_queries == 900
        levels = [block for block in model.neck.outputs if block in ('p4', 'p8', 'p16')]
        assert ('p4' in levels) == (model.num_feature_levels == 5)
        assert model.decoder.ref_point_head.layers[0].weight.shape == (256, 512)


@pytest.fixture(scope='session')
def pretrained(tmp_path_factory):
    """A file as the pre-training of a shrunken config would write it."""

    def write(name: str, cfg: Config) -> str:
        torch.manual_seed(1)
        said = fields(NAME, name)
        source = read(find_pretraining(said)[0]).model.backbone
        changes = {
            'backbone': dict(rel_pos_bias=source.get('rel_pos_bias')),
            'neck': dict(out_strides=(4, 8, 16)),
        }
        state = {}
        for part, change in changes.items():
            module = MODELS.build({**cfg.model[part], **change, 'init_cfg': None})
            state |= {f'{part}.{key}': value for key, value in module.state_dict().items()}
        path = tmp_path_factory.mktemp('pretrained') / 'epoch_1.pth'
        torch.save(dict(state_dict=state), path)
        return str(path)

    return write


STARTED = [name for name in DETECTORS if '_o365-pre_' not in name]
QUICK = (
    'cascade.*clip|dino-4scale_(fastitpn-base|hivit-large).*coco|dino-5scale_fastitpn-base'
    '|mask-rcnn'
)


@pytest.mark.parametrize('name', slow_unless(STARTED, QUICK))
def test_config_trains_a_step_and_predicts(name, tmp_path, pretrained):
    """From a pre-trained file, each part at its rate; the evaluation is the stock one."""
    cfg = shrink(read(name), name, tmp_path)
    checkpoint = pretrained(name, cfg)
    for part in ('backbone', 'neck'):
        cfg.model[part].init_cfg.checkpoint = checkpoint
    runner, gradients = train(cfg)
    check_training(name, cfg, runner, gradients)

    # One step at the rate of these configs leaves the start visible.
    source = torch.load(checkpoint)['state_dict']
    for part in ('backbone', 'neck'):
        for key, value in getattr(runner.model, part).state_dict().items():
            if '.rel_pos.' in key:  # by rows and columns, from 0
                assert value.abs().max() < 1e-3
            else:
                torch.testing.assert_close(value, source[f'{part}.{key}'], atol=3e-4, rtol=0)


def check_training(name: str, cfg: Config, runner, gradients: dict) -> None:
    """A step with a gradient for each parameter, as DDP needs it, and a stock validation."""
    assert runner.iter == 1
    assert_hooks(cfg, runner)
    assert gradients.keys() == dict(runner.model.named_parameters()).keys()
    assert all(value.isfinite() for value in gradients.values())
    late = LATE.match if cfg.model.type == 'itpn_mm.DINO' else lambda key: False
    assert [key for key, value in gradients.items() if value == 0 and not late(key)] == []

    groups = runner.optim_wrapper.optimizer.param_groups
    rate = RATES[fields(NAME, name)['arch']]
    assert {group['layer_id'] for group in groups} == {0, 1, 2}  # stem, attention block, heads
    assert {round(g['lr_scale'], 6) for g in groups} == {round(rate**k, 6) for k in range(3)}

    scalars = runner.message_hub.log_scalars
    for loss in LOSSES[fields(NAME, name)['method']]:
        assert scalars[f'train/{loss}'].current() > 0, loss
    assert 'val/coco/bbox_mAP' in scalars
    assert ('val/coco/segm_mAP' in scalars) == ('mask-rcnn' in name)


RPN = ['loss_rpn_cls', 'loss_rpn_bbox']
LOSSES = {
    'mask-rcnn': [*RPN, 'loss_cls', 'loss_bbox', 'loss_mask'],
    'cascade-mask-rcnn': [
        *RPN,
        *(f's{i}.loss_{kind}' for i in range(3) for kind in ('cls', 'bbox', 'mask')),
    ],
    'dino': [
        f'{part}loss_{kind}'
        for part in ('', 'd0.', 'enc_', 'dn_', 'd0.dn_')
        for kind in ('cls', 'bbox', 'iou')
    ],
}


@pytest.mark.parametrize('scales', [4, 5])
def test_from_objects365_to_coco(scales, tmp_path):
    """All is taken over but what counts classes, and the log says what is not."""
    first, second = OBJECTS365.format(scales), AFTER_OBJECTS365.format(scales)
    cfg = shrink(read(first), first, tmp_path / 'objects365')
    for part in ('backbone', 'neck'):
        cfg.model[part].init_cfg = None
    cfg.randomness = dict(seed=1)  # not what a model starts with that loads nothing
    runner, _ = train(cfg)
    assert len(runner.train_dataloader.dataset.metainfo['classes']) == 365
    checkpoint = tmp_path / 'objects365' / 'epoch_1.pth'

    cfg = shrink(read(second), second, tmp_path / 'coco')
    cfg.load_from, cfg.log_level = str(checkpoint), 'INFO'
    cfg.optim_wrapper.optimizer.lr = 1e-9  # the start can still be read off
    runner, gradients = train(cfg)
    check_training(second, cfg, runner, gradients)
    source = torch.load(checkpoint, weights_only=False)['state_dict']
    state = runner.model.state_dict()
    assert state.keys() == source.keys()
    of_classes = {key for key in state if OF_CLASSES.match(key)}
    assert {key for key in state if state[key].shape != source[key].shape} == of_classes
    assert len(of_classes) == 2 * 3 + 1  # of the two layers and the proposals, and of denoising
    for key in state.keys() - of_classes:
        torch.testing.assert_close(state[key], source[key], atol=1e-6, rtol=0)
    [log] = (tmp_path / 'coco').rglob('*.log')
    text = log.read_text()
    for shapes in ('(365, 32), in the model (80, 32)', '(365,), in the model (80,)'):
        assert f'shape {shapes}: bbox_head.cls_branches.0.' in text
    assert re.search('missing: +7 ', text) and re.search('unexpected: +0', text)


@pytest.mark.parametrize('name', DETECTORS)
def test_missing_start_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    key = 'load_from' if '_o365-pre_' in name else r'model\.backbone\.init_cfg\.checkpoint'
    cfg = shrink(read(name), name, tmp_path)
    with pytest.raises(FileNotFoundError, match=rf'`{key}` is '):
        check_config(cfg, 'train')


@pytest.mark.slow
@pytest.mark.parametrize('scales', [4, 5])
def test_two_processes_stay_equal(scales, tmp_path):
    """Plain DDP, which fails if a parameter has no gradient; three steps with an image each."""
    name = DINO.replace('4scale', f'{scales}scale')
    random = {f'model.{part}.init_cfg': None for part in ('backbone', 'neck')}
    first, second = run_two_processes(write_for_processes(name, tmp_path, **random), tmp_path)
    assert first['losses'] != second['losses']
    for part in ('start', 'end'):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(value, second[part][key]) for key, value in first[part].items())
    assert not any(torch.equal(value, first['start'][key]) for key, value in first['end'].items())
