"""Configs of UPerNet on ADE20K: names, recipes, a step, windows and whole images."""

import json
import re

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from itpn_mm.engine import check_config, check_model_fits
from itpn_mm.registry import MODELS

from .test_configs import (
    PATHS,
    SEGMENTATION,
    assert_trained,
    check_arch,
    check_common,
    fields,
    read,
)
from .test_configs_detection import BACKBONES, RATES
from .tiny_configs import ROOT, shrink, train

UPERNETS = [name for name in SEGMENTATION if name.startswith('upernet_')]
NAME = re.compile(
    r'upernet_(?P<family>hivit|fastitpn)-(?P<arch>tiny|small|base|large)'
    r'-itpn-(?P<supervision>pixel|clip-b|clip-l)_tpn(?P<plain>-plain)?'
    r'_(?P<gpus>8)xb(?P<batch>2)(?P<amp>-amp)-(?P<iterations>160)k(?P<decay>-authors-decay)?'
    r'_(?P<data>ade20k)-(?P<side>512|640)x(?P=side)'
)
PIXEL = 'upernet_hivit-base-itpn-pixel_tpn_8xb2-amp-160k_ade20k-512x512'
FAST = 'upernet_fastitpn-base-itpn-clip-l_tpn_8xb2-amp-160k_ade20k-512x512'
PLAIN = PIXEL.replace('_tpn_', '_tpn-plain_')
AUTHORS_DECAY = PIXEL.replace('160k', '160k-authors-decay')
# The others differ in numbers from one of these.
DEFAULT = (PIXEL, PLAIN, PIXEL.replace('pixel', 'clip-b'), FAST, FAST.replace('512', '640'))
TABLE = (ROOT / 'configs' / 'segmentation' / 'README.md').read_text()
LINES = re.findall(r'^\| [^|]+ \| `(.+)` \|$', TABLE, flags=re.MULTILINE)


def test_the_list_of_configs():
    trunks = [f'fastitpn-{arch}-itpn-clip-l' for arch in RATES]
    trunks += [f'hivit-base-itpn-{kind}' for kind in ('pixel', 'clip-b', 'clip-l')]
    trunks += [f'hivit-large-itpn-{kind}' for kind in ('pixel', 'clip-l')]
    names = {f'upernet_{trunk}_tpn_8xb2-amp-160k_ade20k-512x512' for trunk in trunks}
    names |= {PLAIN, FAST.replace('_tpn_', '_tpn-plain_'), FAST.replace('512', '640')}
    assert set(UPERNETS) == {*names, AUTHORS_DECAY}


@pytest.mark.parametrize('name', UPERNETS)
def test_name_says_what_it_holds(name):
    cfg, said = read(name), fields(NAME, name)
    check_common(cfg, said, 'mmseg')
    model = cfg.model
    assert (model.type, model.decode_head.type) == ('EncoderDecoder', 'UPerHead')
    assert model.backbone.type == BACKBONES[said['family']]
    check_arch(model.backbone.arch, said['arch'])
    assert model.neck.concat_inputs == (said['plain'] is None)
    assert model.neck.out_strides == (4, 8, 16, 32)
    assert cfg.train_cfg.max_iters == 1000 * int(said['iterations'])
    assert [schedule.end for schedule in cfg.param_scheduler] == [1500, 160000]

    side = int(said['side'])
    crop = (side, side)
    assert model.backbone.img_size == side
    assert tuple(model.data_preprocessor.size) == crop
    loaders = (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
    train, val, test = ({s.type: s for s in x.dataset.pipeline} for x in loaders)
    assert tuple(train['RandomCrop'].crop_size) == crop
    assert train['RandomCrop'].cat_max_ratio == 0.75
    assert tuple(train['RandomResize'].scale) == (4 * side, side)
    assert train['RandomResize'].ratio_range == (0.5, 2.0)
    for pipeline in (val, test):
        assert tuple(pipeline['Resize'].scale) == (4 * side, side)
        steps = list(pipeline)
        assert steps.index('LoadAnnotations') > steps.index('Resize')
    stride = {512: 341, 640: 426}[side]
    assert model.test_cfg == dict(mode='slide', crop_size=crop, stride=(stride, stride))


@pytest.mark.parametrize('name', UPERNETS)
def test_recipe(name):
    """Of the authors' files; stochastic depth and rates of Fast-iTPN are ours."""
    cfg, said = read(name), fields(NAME, name)
    wrapper, model = cfg.optim_wrapper, cfg.model
    assert wrapper.constructor == 'itpn_mm.LayerDecayOptimWrapperConstructor'
    decay = dict(layer_decay_rate=RATES[said['arch']], unit='attention')
    if said['decay']:
        decay.update(unit='layer', reference_depth=13)
    assert wrapper.paramwise_cfg == decay
    optimizer = dict(type='AdamW', lr=3e-5, betas=(0.9, 0.999), weight_decay=0.05)
    assert wrapper.optimizer == optimizer
    assert (wrapper.loss_scale, wrapper.get('clip_grad')) == ('dynamic', None)
    warm_up, line = cfg.param_scheduler
    assert (warm_up.type, warm_up.start_factor) == ('LinearLR', 1e-6)
    assert (line.type, line.power, line.eta_min, line.begin) == ('PolyLR', 1.0, 0.0, 1500)
    large, clip = said['arch'] == 'large', said['supervision'] != 'pixel'
    fast = said['family'] == 'fastitpn'
    assert model.backbone.drop_path_rate == (0.2 if large or (clip and not fast) else 0.1)
    assert model.backbone.rel_pos_bias == (None if fast else 'block')
    head, auxiliary = model.decode_head, model.auxiliary_head
    assert (head.channels, head.pool_scales, head.dropout_ratio) == (768, (1, 2, 3, 6), 0.1)
    assert (auxiliary.type, auxiliary.channels, auxiliary.num_convs) == ('FCNHead', 256, 1)
    assert [h.loss_decode.loss_weight for h in (head, auxiliary)] == [1.0, 0.4]
    assert head.num_classes == auxiliary.num_classes == 150
    assert all(h.norm_cfg.type == 'SyncBN' for h in (head, auxiliary))


def find_pretraining(said: dict) -> tuple[str, int]:
    """The config of the pre-training that Table V or VI tells, and its epochs."""
    supervision, arch = said['supervision'], said['arch']
    start = f'itpn-{supervision}_{said["family"]}-{arch}-p16'
    if supervision == 'pixel':
        return f'{start}_8xb512-amp-coslr-1600e_in1k', 1600
    epochs = 800 if supervision == 'clip-b' else 1600
    if (said['family'], arch) == ('hivit', 'large'):
        epochs = 300
    return f'{start}_8xb256-amp-coslr-{epochs}e_in1k', epochs


def check_pretraining(name: str, said: dict, own: tuple[str, ...]) -> None:
    """Backbone and pyramid are those of the pre-training, but for `own` settings."""
    model = read(name).model
    pretraining, epochs = find_pretraining(said)
    file = f'checkpoints/itpn-pixel_hivit-{said["arch"]}-p16_in1k.pth'
    if said['supervision'] != 'pixel':
        file = f'work_dirs/{pretraining}/epoch_{epochs}.pth'
    source = read(pretraining)
    assert source.train_cfg.max_epochs == epochs
    for part in ('backbone', 'neck'):
        settings, expected = ({'bias': False, **m[part]} for m in (model, source.model))
        init_cfg = dict(type='Pretrained', checkpoint=file, prefix=f'{part}.')
        assert settings.pop('init_cfg') == init_cfg
        for key in ('drop_path_rate', 'out_strides', 'img_size', *own):
            settings.pop(key, None), expected.pop(key, None)
        assert settings == expected


@pytest.mark.parametrize('name', UPERNETS)
def test_backbone_and_pyramid_are_those_of_the_pretraining(name):
    own = ('rel_pos_bias', 'pool', 'concat_inputs')
    check_pretraining(name, fields(NAME, name), own)


@pytest.mark.parametrize('name', UPERNETS)
def test_parts_fit_at_their_own_size(name):
    build_on_meta(read(name))


def build_on_meta(cfg: Config) -> torch.nn.Module:
    """The model as it is, shapes alone."""
    with torch.device('meta'), DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    check_model_fits(model)
    return model


def test_decay_of_the_authors():
    """Theirs counts its layers by two too few, so that the last block is beyond the head."""
    table = json.loads(
        (ROOT / 'tests/data/golden/h_seg_iTPNLayerDecay_pixel_base.json').read_text()
    )['params']
    cfg = read(AUTHORS_DECAY)
    model = build_on_meta(cfg)
    wrapper = {**cfg.optim_wrapper, 'type': 'OptimWrapper'}
    wrapper.pop('loss_scale')
    with DefaultScope.overwrite_default_scope('mmseg'):
        groups = build_optim_wrapper(model, wrapper).optimizer.param_groups
    depths = {group['layer_id']: group['lr_scale'] for group in groups}
    theirs = {int(v[0]): v[1] for key, v in table.items() if '.blocks.' in key}
    assert len(theirs) == 32 and len(depths) == 34  # and embedding and heads
    step = 0.9 ** (13 / 32)
    for layer, scale in theirs.items():
        assert scale == pytest.approx(step ** (31 - layer), rel=1e-4)
        assert depths[layer] == pytest.approx(scale * step**2, rel=0.05)
    assert theirs[32] > depths[33] == 1 > depths[32]


@pytest.fixture(scope='session')
def pretrained(tmp_path_factory):
    """A file as the pre-training of a shrunken config would write it, of smaller pictures."""

    def write(cfg: Config, source: str) -> str:
        torch.manual_seed(1)
        tables = read(source).model.backbone.get('rel_pos_bias')
        changes = {
            'backbone': dict(rel_pos_bias=tables, img_size=32),
            'neck': dict(out_strides=(4, 8, 16), concat_inputs=False),
        }
        state = {}
        for part, change in changes.items():
            module = MODELS.build({**cfg.model[part], **change, 'init_cfg': None})
            state |= {f'{part}.{key}': value for key, value in module.state_dict().items()}
        for key, value in state.items():
            if 'rel_pos' in key:
                torch.nn.init.normal_(value)
        path = tmp_path_factory.mktemp('pretrained') / 'epoch_1.pth'
        torch.save(dict(state_dict=state), path)
        return str(path)

    return write


def start_from(cfg: Config, checkpoint: str) -> None:
    for part in ('backbone', 'neck'):
        cfg.model[part].init_cfg.checkpoint = checkpoint


def check_start(runner: Runner, checkpoint: str) -> None:
    """What has one size in file and model is as in the file: a step of these configs is small."""
    source = torch.load(checkpoint)['state_dict']
    resized = []
    for part in ('backbone', 'neck'):
        for key, value in getattr(runner.model, part).state_dict().items():
            if value.shape != source.get(f'{part}.{key}', value[..., :0]).shape:
                resized.append(key)
            else:
                torch.testing.assert_close(value, source[f'{part}.{key}'], atol=3e-4, rtol=0)
    tables = [key for key in resized if '.rel_pos.' in key]
    assert {*resized} == {'pos_embed', *tables}
    for key in tables:  # of a file without, they start at 0
        value = runner.model.backbone.get_parameter(key)
        assert (value.abs().max() > 0.1) == (f'backbone.{key}' in source)


def check_predictions(runner: Runner) -> None:
    """Windows and whole images give a class for each pixel, and a lone window is the image."""
    model = runner.model.eval()
    whole, slide = dict(mode='whole'), dict(mode='slide', crop_size=(64, 64), stride=(42, 42))
    [batch] = list(runner.val_dataloader)[:1]
    with torch.no_grad():
        padded = dict(size_divisor=32)
        for test_cfg, padding in ((slide, None), (slide, padded), (whole, padded)):
            model.test_cfg = ConfigDict(test_cfg)
            model.data_preprocessor.test_cfg = padding
            [result] = model.test_step(batch)
            assert result.img_shape != result.ori_shape == (96, 128)
            assert result.seg_logits.data.shape == (150, 96, 128)
            assert result.pred_sem_seg.data.shape == (1, 96, 128)
            assert result.seg_logits.data.isfinite().all()

        images = torch.randn(2, 3, 64, 96)
        metas = [dict(img_shape=(64, 96), ori_shape=(64, 96)) for _ in images]
        outputs = {}
        for name, test_cfg in dict(
            whole=whole, slide=slide, one=dict(mode='slide', crop_size=(64, 96), stride=(42, 42))
        ).items():
            model.test_cfg = ConfigDict(test_cfg)
            outputs[name] = model.inference(images, [dict(meta) for meta in metas])
            assert outputs[name].shape == (2, 150, 64, 96)
    torch.testing.assert_close(outputs['one'], outputs['whole'], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(outputs['slide'], outputs['whole'], atol=1e-3)


def slow_but(names: list[str], default: tuple[str, ...]) -> list:
    """Parameters of a test that is slow for all but a few names."""
    return [x if x in default else pytest.param(x, marks=pytest.mark.slow) for x in names]


@pytest.mark.parametrize('name', slow_but(UPERNETS, DEFAULT))
def test_config_trains_a_step_and_predicts(name, tmp_path, pretrained):
    """From a pre-trained file, each part at its rate; the evaluation is the stock one."""
    cfg, said = shrink(read(name), name, tmp_path), fields(NAME, name)
    checkpoint = pretrained(cfg, find_pretraining(said)[0])
    start_from(cfg, checkpoint)
    runner, gradients = train(cfg)
    assert_trained(cfg, runner, gradients)
    check_start(runner, checkpoint)

    groups = runner.optim_wrapper.optimizer.param_groups
    rate = RATES[said['arch']]
    if said['decay'] is None:
        assert {round(g['lr_scale'], 6) for g in groups} == {round(rate**k, 6) for k in range(3)}
    scalars = runner.message_hub.log_scalars
    for loss in ('decode.loss_ce', 'aux.loss_ce'):
        assert scalars[f'train/{loss}'].current() > 0
    assert 'val/mIoU' in scalars
    check_predictions(runner)


@pytest.mark.parametrize('name', UPERNETS)
def test_missing_start_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = shrink(read(name), name, tmp_path)
    with pytest.raises(FileNotFoundError, match=r'`model\.backbone\.init_cfg\.checkpoint` is '):
        check_config(cfg, 'train')


def with_line(name: str, part: str, tmp_path) -> Config:
    """A config of a user: `name` with the one line of the README that holds `part`."""
    read(name)  # skips without mmseg
    [line] = [line for line in LINES if part in line]
    path = tmp_path / 'own.py'
    path.write_text(f'_base_ = {str(PATHS[name])!r}\n{line}\n')
    return Config.fromfile(path)


def test_each_line_has_a_test():
    assert len(LINES) == 4
    for part in ("mode='whole'", "mode='slide'", 'reference_depth', 'with_cp'):
        assert sum(part in line for line in LINES) == 1


def test_lines_of_windows_and_whole_images(tmp_path):
    cfg = with_line(FAST, "mode='whole'", tmp_path)
    assert cfg.model.test_cfg == dict(mode='whole')
    assert cfg.model.data_preprocessor.test_cfg == dict(size_divisor=32)
    cfg = with_line('maskdino_r50_8xb2-160k_ade20k-512x512', "mode='slide'", tmp_path)
    assert cfg.model.test_cfg == read(FAST).model.test_cfg


def test_line_of_the_authors_decay(tmp_path):
    cfg = with_line(PIXEL, 'reference_depth', tmp_path)
    assert cfg.optim_wrapper == read(AUTHORS_DECAY).optim_wrapper


def test_line_of_activation_checkpointing(tmp_path):
    assert with_line(FAST, 'with_cp', tmp_path).model.backbone.with_cp is True
