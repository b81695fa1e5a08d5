"""Every config of configs/classification against the published recipes, and a step of each."""

import copy
import functools
import math
import re
from dataclasses import dataclass

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from torch import nn

from itpn_mm.registry import MODELS

from .tiny_configs import ROOT, parse, shrink, slow_unless, train

pytest.importorskip('mmpretrain')

FOLDER = ROOT / 'configs' / 'classification'
PATHS = {path.stem: path for path in sorted(FOLDER.glob('*.py'))}
IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
INCEPTION = ([127.5] * 3, [127.5] * 3)


@dataclass(frozen=True)
class Recipe:
    """What a config trains with; rates at the batch of the recipe."""

    lr: float
    min_lr: float
    epochs: int
    warm_up: int
    decay: float
    drop_path: float
    norm: tuple
    batch: int = 1024
    unit: str = 'block'
    reference_depth: int | None = 13
    layer_scale: float | None = 0.1
    ema: float | None = None
    mixing: bool = True


# The authors' scripts: of iTPN with pixels (`_B`: base and below, `_L`: large), with CLIP, and of
# Fast-iTPN.
PIXEL_B = Recipe(1.6e-3, 5e-6, 100, 5, 0.60, 0.15, IMAGENET, layer_scale=None)
PIXEL_L = Recipe(4e-3, 5e-6, 50, 5, 0.55, 0.20, IMAGENET, layer_scale=None)
CLIP_B = Recipe(5e-4, 1e-6, 100, 20, 0.60, 0.10, INCEPTION)
CLIP_L = Recipe(2e-4, 1e-6, 50, 5, 0.55, 0.25, INCEPTION)
FAST = dict(norm=IMAGENET, unit='layer', reference_depth=None, ema=1e-4)
FAST_T = Recipe(1e-4, 1e-6, 100, 5, 0.80, 0.10, **FAST)
FAST_S = Recipe(1e-4, 1e-6, 100, 5, 0.90, 0.10, **FAST)
FAST_B = Recipe(1e-4, 1e-6, 20, 3, 0.90, 0.10, **FAST)
FAST_L = Recipe(5e-5, 1e-6, 20, 3, 0.95, 0.20, batch=512, **FAST)
# Of BEiT v2, where the authors published none.
TO_21K = dict(lr=6e-4, min_lr=1e-6, epochs=90, warm_up=20, decay=0.75, batch=4096)
TO_21K_L = Recipe(**TO_21K, drop_path=0.20, norm=INCEPTION, reference_depth=25)
TO_21K_FAST = Recipe(**TO_21K, drop_path=0.10, norm=IMAGENET, unit='layer')
FROM_21K_L = Recipe(7e-5, 1e-6, 20, 5, 0.80, 0.25, INCEPTION, reference_depth=25, mixing=False)

# Of the authors' classifiers with 1000 classes, exactly: model, supervision, image size.
PARAMETERS = {
    ('hivit-base', 'pixel', 224): 78_557_992,
    ('hivit-base', 'clip', 224): 78_583_720,
    ('hivit-large', 'pixel', 224): 288_493_576,
    ('hivit-large', 'clip', 224): 288_556_168,
    ('fastitpn-tiny', 'clip', 224): 24_219_976,
    ('fastitpn-tiny', 'clip', 384): 24_365_896,
    ('fastitpn-tiny', 'clip', 512): 24_537_928,
    ('fastitpn-small', 'clip', 224): 39_902_920,
    ('fastitpn-small', 'clip', 384): 40_048_840,
    ('fastitpn-small', 'clip', 512): 40_220_872,
    ('fastitpn-base', 'clip', 224): 84_825_192,
    ('fastitpn-base', 'clip', 512): 85_249_128,
    ('fastitpn-large', 'clip', 640): 313_095_592,
}
# Less is known of these: the paper's figures, in millions.
MILLIONS = {'hivit-tiny': 19, 'hivit-small': 38, 'hivit-large': 288, 'hivit-giant': 1000}


@dataclass(frozen=True)
class Row:
    """A row of the paper's Tables III and IV, or a step to one."""

    recipe: Recipe
    accuracy: float | None  # of the paper


# Model, pre-training, data of this fine-tuning -> row.
ROWS = {
    ('hivit-tiny', 'pixel-300e', 'in1k'): Row(PIXEL_B, 81.7),
    ('hivit-tiny', 'clip-l-300e', 'in1k'): Row(CLIP_B, 84.2),
    ('hivit-small', 'pixel-300e', 'in1k'): Row(PIXEL_B, 84.0),
    ('hivit-small', 'clip-l-300e', 'in1k'): Row(CLIP_B, 85.4),
    ('hivit-base', 'pixel-300e', 'in1k'): Row(PIXEL_B, 84.9),
    ('hivit-base', 'pixel-400e', 'in1k'): Row(PIXEL_B, 85.1),
    ('hivit-base', 'pixel-1600e', 'in1k'): Row(PIXEL_B, 85.5),
    ('hivit-base', 'clip-b-300e', 'in1k'): Row(CLIP_B, 85.9),
    ('hivit-base', 'clip-b-800e', 'in1k'): Row(CLIP_B, 86.2),
    ('hivit-base', 'clip-l-300e', 'in1k'): Row(CLIP_B, 87.0),
    ('hivit-large', 'pixel-400e', 'in1k'): Row(PIXEL_L, 86.3),
    ('hivit-large', 'pixel-1600e', 'in1k'): Row(PIXEL_L, 86.7),
    ('hivit-large', 'clip-b-300e', 'in1k'): Row(CLIP_L, 87.0),
    ('hivit-large', 'clip-l-300e', 'in1k'): Row(CLIP_L, 87.8),
    ('hivit-large', 'clip-l-300e', 'in1k-256px'): Row(CLIP_L, 88.0),
    ('hivit-large', 'clip-l-300e', 'in21k'): Row(TO_21K_L, None),
    ('hivit-large', 'clip-l-300e-in21k', 'in1k-384px'): Row(FROM_21K_L, 89.2),
    ('hivit-large', 'clip-l-300e-in21k', 'in1k-512px'): Row(FROM_21K_L, 89.2),
    ('hivit-giant', 'clip-l-300e', 'in21k'): Row(TO_21K_L, None),
    ('hivit-giant', 'clip-l-300e-in21k', 'in1k-512px'): Row(FROM_21K_L, 89.5),
    ('fastitpn-tiny', 'clip-l-1600e', 'in1k'): Row(FAST_T, 85.1),
    ('fastitpn-tiny', 'clip-l-1600e', 'in1k-384px'): Row(FAST_T, 86.2),
    ('fastitpn-tiny', 'clip-l-1600e', 'in1k-512px'): Row(FAST_T, 86.5),
    ('fastitpn-small', 'clip-l-1600e', 'in1k'): Row(FAST_S, 86.4),
    ('fastitpn-small', 'clip-l-1600e', 'in1k-384px'): Row(FAST_S, 86.95),
    ('fastitpn-small', 'clip-l-1600e', 'in1k-512px'): Row(FAST_S, 87.8),
    ('fastitpn-base', 'clip-l-1600e', 'in1k'): Row(FAST_B, 87.4),
    ('fastitpn-base', 'clip-l-1600e', 'in1k-512px'): Row(FAST_B, 88.5),
    ('fastitpn-base', 'clip-l-1600e', 'in21k'): Row(TO_21K_FAST, None),
    ('fastitpn-base', 'clip-l-1600e-in21k', 'in1k-512px'): Row(FAST_B, 88.75),
    ('fastitpn-large', 'clip-l-1600e', 'in1k-640px'): Row(FAST_L, 89.5),
}
NAME = re.compile(
    r'(?P<model>(?P<family>hivit|fastitpn)-(?P<arch>\w+))-p16'
    r'_itpn-(?P<pretraining>(?P<supervision>pixel|clip)(-[bl])?-\d+e(?P<after_21k>-in21k)?)-pre'
    r'_(?P<gpus>\d+)xb(?P<batch>\d+)-amp-coslr-(?P<epochs>\d+)e'
    r'_(?P<target>(?P<data>in1k|in21k)(-(?P<size>\d+)px)?)'
)
TYPES = {'hivit': 'itpn_mm.HiViT', 'fastitpn': 'itpn_mm.FastiTPN'}


def fields(name: str) -> dict[str, str | None]:
    found = NAME.fullmatch(name)
    assert found, f'{name} does not follow the naming scheme'
    return found.groupdict()


def row_of(name: str) -> Row:
    said = fields(name)
    return ROWS[said['model'], said['pretraining'], said['target']]


def read(name: str) -> Config:
    return copy.deepcopy(parse(PATHS[name]))


def build(model: dict) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(model)


def transforms(dataloader: dict) -> dict[str, dict]:
    """The steps of a pipeline by type."""
    return {step.type: step for step in dataloader.dataset.pipeline}


def test_there_is_a_config_for_every_row():
    keys = [tuple(fields(name)[k] for k in ('model', 'pretraining', 'target')) for name in PATHS]
    assert sorted(keys) == sorted(ROWS)


@pytest.mark.parametrize('name', PATHS)
def test_name_says_what_it_holds(name):
    cfg, said = read(name), fields(name)
    backbone = cfg.model.backbone
    assert cfg.default_scope == 'mmpretrain' and cfg.model.type == 'ImageClassifier'
    assert (backbone.type, backbone.arch) == (TYPES[said['family']], said['arch'])
    assert backbone.img_size == int(said['size'] or 224)
    assert cfg.train_dataloader.batch_size == int(said['batch'])
    assert cfg.auto_scale_lr.base_batch_size == int(said['gpus']) * int(said['batch'])
    assert cfg.train_cfg.max_epochs == int(said['epochs'])
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    dataset = cfg.train_dataloader.dataset
    type_, root, classes = {
        'in1k': ('ImageNet', 'data/imagenet', 1000),
        'in21k': ('ImageNet21k', 'data/imagenet21k', 21841),
    }[said['data']]
    assert (dataset.type, dataset.data_root, dataset.split) == (type_, root, 'train')
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == classes
    # There is no validation set of ImageNet-21k.
    evaluated = [
        cfg[f'{mode}_{what}'] for mode in ('val', 'test') for what in ('cfg', 'dataloader')
    ]
    assert [part is None for part in evaluated] == [said['data'] == 'in21k'] * 4


@pytest.mark.parametrize('name', PATHS)
def test_starts_from_what_its_name_says(name):
    cfg, said = read(name), fields(name)
    init_cfg = cfg.model.backbone.init_cfg
    assert (init_cfg.type, init_cfg.prefix) == ('Pretrained', 'backbone.')
    folder, stem, file = init_cfg.checkpoint.split('/')
    assert folder == 'work_dirs'
    if said['after_21k']:
        source = fields(stem)
        assert source['target'] == 'in21k'
        assert (source['model'], f'{source["pretraining"]}-in21k') == (
            said['model'],
            said['pretraining'],
        )
        assert cfg.model.neck.init_cfg == dict(init_cfg, prefix='neck.')
        source_cfg = read(stem)
    else:
        supervision, epochs = said['pretraining'].rsplit('-', 1)
        assert re.fullmatch(
            rf'itpn-{supervision}_{said["model"]}-p16_8xb\d+-amp-coslr-{epochs}_in1k(-256px)?', stem
        )
        assert stem.endswith('-256px') == (said['target'] == 'in1k-256px')
        assert 'init_cfg' not in cfg.model.neck
        source_cfg = parse(ROOT / 'configs' / 'pretraining' / f'{stem}.py')
    assert file == f'epoch_{source_cfg.train_cfg.max_epochs}.pth'
    # All but positions, which are resized or start anew, is there.
    given, wanted = (backbone_shapes(c.model.backbone) for c in (source_cfg, cfg))
    assert given == wanted


def backbone_shapes(backbone: dict) -> dict[str, tuple[int, ...]]:
    with torch.device('meta'):
        parameters = build(backbone).named_parameters()
    return {n: tuple(p.shape) for n, p in parameters if not re.search('pos_embed|rel_pos', n)}


@pytest.mark.parametrize('name', PATHS)
def test_recipe_of_the_optimizer(name):
    cfg, recipe, said = read(name), row_of(name).recipe, fields(name)
    wrapper = cfg.optim_wrapper
    assert wrapper.optimizer == dict(
        type='AdamW', lr=pytest.approx(recipe.lr), betas=(0.9, 0.999), weight_decay=0.05
    )
    accumulated = wrapper.get('accumulative_counts', 1)
    assert int(said['gpus']) * int(said['batch']) * accumulated == recipe.batch
    assert wrapper.constructor == 'itpn_mm.LayerDecayOptimWrapperConstructor'
    decay = wrapper.paramwise_cfg
    assert (decay.layer_decay_rate, decay.unit) == (recipe.decay, recipe.unit)
    assert decay.get('reference_depth') == recipe.reference_depth
    assert 'clip_grad' not in wrapper
    averages = [
        hook for hook in cfg.get('custom_hooks', []) if hook['type'] == 'mmpretrain.EMAHook'
    ]
    assert [hook['momentum'] for hook in averages] == ([recipe.ema] if recipe.ema else [])
    assert [hook.get('interval', 1) for hook in averages] == [accumulated] * len(averages)


@pytest.mark.parametrize('name', PATHS)
def test_schedule_warms_up_and_ends_at_each_layers_share(name):
    cfg, recipe = read(name), row_of(name).recipe
    scale, per_epoch = 0.25, 2
    params = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [dict(params=[p], lr=recipe.lr * s) for p, s in zip(params, (1, scale))]
    wrapper = OptimWrapper(torch.optim.SGD(groups, lr=recipe.lr))
    schedulers = []
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        for schedule in cfg.param_scheduler:
            assert schedule.pop('convert_to_iter_based')
            kind = PARAM_SCHEDULERS.get(schedule.pop('type'))
            schedulers.append(
                kind.build_iter_from_epoch(wrapper, **schedule, epoch_length=per_epoch)
            )
    rates = []
    for _ in range(recipe.epochs * per_epoch):
        rates.append([group['lr'] for group in wrapper.optimizer.param_groups])
        wrapper.optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    full, quarter = zip(*rates)
    assert quarter == pytest.approx([scale * rate for rate in full])
    top = recipe.warm_up * per_epoch
    assert full[0] == pytest.approx(1e-4 * recipe.lr) and list(full[:top]) == sorted(full[:top])
    steps = len(full) - top
    cosine = [(1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]
    expected = [recipe.min_lr + (recipe.lr - recipe.min_lr) * factor for factor in cosine]
    assert full[top:] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('name', PATHS)
def test_recipe_of_model_and_augmentation(name):
    cfg, recipe, said = read(name), row_of(name).recipe, fields(name)
    backbone, size = cfg.model.backbone, int(said['size'] or 224)
    assert backbone.drop_path_rate == recipe.drop_path
    if said['family'] == 'hivit':
        assert backbone.get('layer_scale_init_value') == recipe.layer_scale
        assert backbone.rel_pos_bias == 'block'
    else:
        assert not {'layer_scale_init_value', 'rel_pos_bias'} & backbone.keys()  # 0.1 and None
    mixing = [dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]
    assert cfg.model.train_cfg == (dict(augments=mixing) if recipe.mixing else None)
    loss = cfg.model.head.loss
    assert (loss.type, loss.label_smooth_val, loss.mode) == ('LabelSmoothLoss', 0.1, 'original')

    mean, std = recipe.norm
    assert (cfg.data_preprocessor.mean, cfg.data_preprocessor.std) == (mean, std)
    assert cfg.data_preprocessor.to_rgb
    steps = transforms(cfg.train_dataloader)
    assert list(steps) == [
        'LoadImageFromFile',
        'RandomResizedCrop',
        'RandomFlip',
        'RandAugment',
        'RandomErasing',
        'PackInputs',
    ]
    crop, augment, erasing = (
        steps[key] for key in ('RandomResizedCrop', 'RandAugment', 'RandomErasing')
    )
    assert (crop.scale, crop.interpolation, crop.backend) == (size, 'bicubic', 'pillow')
    assert 'crop_ratio_range' not in crop  # 0.08 to 1
    # rand-m9-mstd0.5-inc1; what it fills in is the mean, in the order of the file's colours.
    assert (augment.policies, augment.num_policies) == ('timm_increasing', 2)
    assert (augment.total_level, augment.magnitude_level, augment.magnitude_std) == (10, 9, 0.5)
    assert augment.hparams.pad_val == [round(value) for value in mean[::-1]]
    assert (erasing.erase_prob, erasing.mode) == (0.25, 'rand')
    assert (erasing.fill_color, erasing.fill_std) == (mean[::-1], std[::-1])


@pytest.mark.parametrize('name', [name for name in PATHS if not name.endswith('_in21k')])
def test_evaluation_keeps_a_border_below_384_pixels_only(name):
    cfg, size = read(name), int(fields(name)['size'] or 224)
    assert cfg.val_dataloader == cfg.test_dataloader
    dataset, steps = cfg.test_dataloader.dataset, transforms(cfg.test_dataloader)
    assert (dataset.type, dataset.data_root, dataset.split) == ('ImageNet', 'data/imagenet', 'val')
    assert list(steps) == ['LoadImageFromFile', 'ResizeEdge', 'CenterCrop', 'PackInputs']
    resize = steps['ResizeEdge']
    assert (resize.edge, resize.interpolation, resize.backend) == ('short', 'bicubic', 'pillow')
    assert resize.scale == (size if size >= 384 else int(size / 0.875))
    assert steps['CenterCrop'].crop_size == size
    assert cfg.test_evaluator == dict(type='Accuracy', topk=(1, 5), _scope_='mmpretrain')


@pytest.mark.parametrize('name', PATHS)
def test_number_of_parameters(name):
    """Of the whole config for the documents, and with 1000 classes for the authors' figures."""
    cfg, said = read(name), fields(name)
    with torch.device('meta'):
        found = count_parameters(build(cfg.model))
        cfg.model.head.num_classes = 1000
        plain = count_parameters(build(cfg.model))
    exact = PARAMETERS.get((said['model'], said['supervision'], int(said['size'] or 224)))
    if exact is not None:
        assert plain == exact
    else:
        assert plain == pytest.approx(MILLIONS[said['model']] * 1e6, rel=0.035)
    assert round(found / 1e6, 1) == readme_rows()[name][0]


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


QUICK = (
    'fastitpn-(base|tiny).*_in1k$|in21k$|(giant|fastitpn-base).*-512px|hivit-base.*-300e-'
    '|pixel-1600e'
)


@pytest.mark.parametrize('name', slow_unless(PATHS, QUICK))
def test_trains_a_step_and_evaluates(name, tmp_path):
    cfg, said, recipe = read(name), fields(name), row_of(name).recipe
    for part in ('backbone', 'neck'):
        cfg.model[part].pop('init_cfg', None)
    cfg = shrink(cfg, name, tmp_path)
    runner, gradients = train(cfg)
    assert runner.iter == 1
    trained = {n for n, p in runner.model.named_parameters() if p.requires_grad}
    assert gradients.keys() == trained == {n for n, _ in runner.model.named_parameters()}
    wrong = [n for n, value in gradients.items() if not (value.isfinite() and value > 0)]
    assert wrong == []
    scalars = runner.message_hub.log_scalars
    assert scalars['train/loss'].current() > 0
    assert ('val/accuracy/top1' in scalars) == (said['data'] == 'in1k')
    augments = runner.model.data_preprocessor.batch_augments
    assert (augments is not None) == recipe.mixing
    layers = 5 if recipe.unit == 'layer' else 3
    groups = runner.optim_wrapper.optimizer.param_groups
    assert {group['layer_id'] for group in groups} == set(range(layers + 2))
    average = [hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook']
    assert len(average) == (recipe.ema is not None)
    (file,) = tmp_path.glob('epoch_*.pth')
    assert ('ema_state_dict' in torch.load(file, weights_only=False)) == (recipe.ema is not None)


@functools.cache
def readme_rows() -> dict[str, tuple[float, float | None]]:
    """Millions of parameters and top-1 that the README says of each config."""
    rows = re.findall(
        r'^\| `(\S+)` \| ([\d.]+) \| ([\d.]+|-)', (FOLDER / 'README.md').read_text(), re.MULTILINE
    )
    return {name: (float(m), None if a == '-' else float(a)) for name, m, a in rows}


def test_figures_of_the_paper():
    """In the README and the metafile alike."""
    expected = {name: row_of(name).accuracy for name in PATHS}
    assert {name: accuracy for name, (_, accuracy) in readme_rows().items()} == expected
    models = yaml.safe_load((FOLDER / 'metafile.yml').read_text())['Models']
    said = {}
    for model in models:
        results = model.get('Results', [dict(Metrics={})])
        said[model['Name']] = results[0]['Metrics'].get('top-1 (paper)')
        millions = model['Metadata']['Parameters'] / 1e6
        assert round(millions, 1) == readme_rows()[model['Name']][0]
    assert said == expected
