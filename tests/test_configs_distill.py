"""Configs of CLIP-supervised pre-training: names, recipes, and a step of each at reduced width."""

import json
import re

import pytest
import torch
from mmengine.config import Config, DictAction

from itpn_mm.backbones import FastiTPN, HiViT
from itpn_mm.registry import MODELS

from .golden import DATA
from .test_configs import (
    DISTILLATION,
    assert_trained,
    check_common,
    fields,
    read,
    run_two_processes,
    write_for_processes,
)
from .tiny_configs import shrink, slow_unless, train
from .tiny_teachers import TEACHERS

NAME = re.compile(
    r'itpn-clip-(?P<teacher>b|l)_(?P<family>hivit|fastitpn)-(?P<arch>tiny|small|base|large|giant)'
    r'-p16_(?P<gpus>\d+)xb(?P<batch>\d+)(?P<amp>-amp)-coslr-(?P<epochs>\d+)e_(?P<data>in1k)'
    r'(?:-(?P<size>\d+)px)?'
)
SIZES = ('tiny', 'small', 'base', 'large')
FILES = {'b': 'clip_vit-base-p16.pt', 'l': 'clip_vit-large-p14.pt'}


def test_the_list_of_configs():
    expected = {
        f'itpn-clip-{teacher}_hivit-{arch}-p16_8xb256-amp-coslr-{epochs}e_in1k'
        for teacher in 'bl'
        for arch in SIZES
        for epochs in (300, 800)
    }
    fast = 'itpn-clip-l_fastitpn-{}-p16_8xb256-amp-coslr-1600e_in1k{}'
    expected |= {fast.format(arch, size) for arch in SIZES for size in ('', '-256px')}
    # What the classification configs of a teacher's 256 pixels and of the largest size start from.
    start = 'itpn-clip-l_hivit-{}-p16_8xb256-amp-coslr-300e_in1k{}'
    expected |= {start.format('large', '-256px'), start.format('giant', '')}
    # What DINO on HiViT-B starts from.
    expected.add('itpn-clip-l_hivit-base-p16_8xb256-amp-coslr-1600e_in1k')
    assert set(DISTILLATION) == expected


def steps(cfg: Config) -> dict:
    return {step.type: step for step in cfg.train_dataloader.dataset.pipeline}


@pytest.mark.parametrize('name', DISTILLATION)
def test_name_says_what_it_holds(name):
    cfg, said = read(name), fields(NAME, name)
    check_common(cfg, said, 'mmpretrain')
    model, fast = cfg.model, said['family'] == 'fastitpn'
    large = said['arch'] in ('large', 'giant')
    family, size = FastiTPN if fast else HiViT, int(said['size'] or 224)
    assert model.backbone.type == f'itpn_mm.{family.__name__}'
    assert model.backbone.arch == said['arch'] and said['arch'] in family.arch_zoo
    assert model.backbone.drop_path_rate == (0.2 if large and not fast else 0.1)
    assert model.backbone.get('rel_pos_bias') == (None if fast else 'block')
    assert ('aux_head' in model) == (not fast)
    assert model.head.loss == ('cosine' if fast else 'smooth_l1')
    assert model.neck.get('bias', False) == fast and model.neck.depth == 1

    patch, width = TEACHERS[FILES[said['teacher']]]
    assert model.teacher.checkpoint == f'pretrained/{FILES[said["teacher"]]}'
    assert model.head.target_dims == width
    assert (model.backbone.img_size, model.teacher.img_size) == (size, size // 16 * patch)

    pipeline = steps(cfg)
    crop, masks = (
        pipeline['RandomResizedCropAndInterpolationWithTwoPic'],
        pipeline['BEiTMaskGenerator'],
    )
    assert (crop['size'], crop['second_size']) == (size, model.teacher.img_size)
    assert crop['scale'] == ((0.2, 1.0) if fast else (0.08, 1.0))
    assert (masks.input_size, masks.num_masking_patches, masks.min_num_patches) == (
        size // 16,
        75,
        16,
    )
    assert model.data_preprocessor.mean == ([123.675, 116.28, 103.53] if fast else [127.5] * 3)
    assert 'scope' not in cfg.train_dataloader.collate_fn

    epochs, warm_up_end = int(said['epochs']), 10 if fast else 5
    assert cfg.train_cfg.max_epochs == epochs
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up.type, warm_up.begin, warm_up.end) == ('LinearLR', 0, warm_up_end)
    assert (cosine.type, cosine.begin, cosine.end) == ('CosineAnnealingLR', warm_up_end, epochs)
    assert (cosine.T_max, cosine.eta_min) == (epochs - warm_up_end, 1e-5)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay) == (1.5e-3, 0.05)
    assert tuple(optimizer.betas) == (0.9, 0.98)
    assert cfg.optim_wrapper.get('clip_grad') == (dict(max_norm=3.0) if fast else None)


@pytest.mark.parametrize(('arch', 'millions'), [('base', 88.74), ('large', 307.06)])
def test_numbers_of_parameters_are_the_released_ones(arch, millions):
    cfg = read(f'itpn-clip-b_hivit-{arch}-p16_8xb256-amp-coslr-300e_in1k')
    cfg.model.teacher = None
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


QUICK = (
    'fastitpn-(tiny|base)-.*_in1k$|fastitpn-large.*-256px|hivit-(base|giant)-.*-300e_in1k$'
    '|hivit-large.*-256px'
)


@pytest.mark.parametrize('name', slow_unless(DISTILLATION, QUICK))
def test_config_trains_a_step(name, tmp_path):
    """From the stock pipeline to the optimiser; the teacher has the patch and width of the real."""
    cfg = shrink(read(name), name, tmp_path)
    runner, gradients = train(cfg)
    assert_trained(cfg, runner, gradients)
    scalars = runner.message_hub.log_scalars
    losses = ['loss', 'loss_distill'] + ['loss_aux'] * ('aux_head' in cfg.model)
    assert all(0 < scalars[f'train/{loss}'].current() < 10 for loss in losses)

    model = runner.model
    assert not any('teacher' in key for key in (*gradients, *model.state_dict()))
    teacher = model.teacher.encoder
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert not teacher.training and model.training
    optimizer = runner.optim_wrapper.optimizer
    decays = {p: group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    assert set(decays) == set(model.parameters())
    assert {group['lr'] for group in optimizer.param_groups} == {optimizer.param_groups[0]['lr']}
    for key in gradients:
        parameter = model.get_parameter(key)
        plain = parameter.ndim == 1 or key == 'backbone.pos_embed'
        assert decays[parameter] == (0 if plain else 0.05), key


@pytest.mark.parametrize(
    ('changes', 'losses'),
    [
        ({'model.aux_head': None}, ['loss', 'loss_distill']),
        (
            {
                'model.mask_laterals': False,
                'model.head.positions': 'masked',
                'model.aux_head.positions': 'masked',
            },
            ['loss', 'loss_aux', 'loss_distill'],
        ),
    ],
    ids=['no auxiliary branch', 'as released, masked patches only'],
)
def test_variants_of_the_readme(changes, losses, tmp_path):
    cfg = shrink(read(DISTILLATION[0]), DISTILLATION[0], tmp_path)
    cfg.merge_from_dict(changes)
    runner, gradients = train(cfg)
    assert_trained(cfg, runner, gradients)
    logged = runner.message_hub.log_scalars
    assert sorted(k[6:] for k in logged if k.startswith('train/') and 'loss' in k) == losses


def test_a_cached_teacher_in_a_config(tmp_path):
    cfg = shrink(read(DISTILLATION[0]), DISTILLATION[0], tmp_path)
    cache = tmp_path / 'cache'
    inner = cfg.model['teacher']
    cfg.model['teacher'] = dict(type='itpn_mm.CachedTeacher', teacher=inner, cache_dir=str(cache))
    runner, gradients = train(cfg)
    assert_trained(cfg, runner, gradients)
    assert len(list(cache.glob('*/*.safetensors'))) == 2  # the pictures of the step
    assert not any('teacher' in key for key in runner.model.state_dict())


@pytest.mark.slow
def test_two_processes_stay_equal(tmp_path):
    """Three steps with an image each; each process has the whole teacher, which is not reduced."""
    path = write_for_processes(DISTILLATION[0], tmp_path)
    first, second = run_two_processes(path, tmp_path)
    assert first['losses'] != second['losses']  # an image and a mask of its own each
    for part in ('start', 'end'):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(v, second[part][k]) for k, v in first[part].items())
    moved = {k.split('.')[0] for k, v in first['end'].items() if not v.equal(first['start'][k])}
    assert moved == {'mask_token', 'backbone', 'neck', 'decoder', 'head', 'aux_head'}


def test_the_rule_of_weight_decay_is_the_authors():
    """Which the test above holds the configs to."""
    table = json.loads((DATA / 'h_clip_pretrain_base.json').read_text())['params']
    assert any('relative_position_bias_table' in key for key in table) and 'mask_token' in table
    flat = re.compile(r'\.(bias|gamma_[12])$|norm\w*(\.\d+)?\.weight$')
    for key, (_, _, decay) in table.items():
        plain = flat.search(key) or key == 'absolute_pos_embed' or key in EMBED_NORMS
        assert decay == (0 if plain else 0.05), key


# The LayerNorms in front of the projections, which have no name of their own there.
EMBED_NORMS = {f'decoder_embed.{i}.0.weight' for i in range(3)}


def test_a_missing_teacher_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = DISTILLATION[0]
    cfg = shrink(read(name), name, tmp_path)
    cfg.model['teacher']['checkpoint'] = 'pretrained/clip_vit-base-p16.pt.part'
    with pytest.raises(FileNotFoundError, match=r'`checkpoint` of CLIPTeacher is .*fetch OpenAI'):
        train(cfg)


def test_the_released_range_of_inputs():
    """As configs/pretraining/README.md says; what it does is tested with the golden teacher."""
    preprocessor = read(DISTILLATION[0]).model.data_preprocessor
    text = (DATA.parents[2] / 'configs' / 'pretraining' / 'README.md').read_text()
    for key, factor, shift in (('second_mean', 2, 255), ('second_std', 2, 0)):
        [values] = re.findall(rf"model\.data_preprocessor\.{key}='(.*?)'", text)
        expected = [factor * value - shift for value in preprocessor[key]]
        found = DictAction._parse_iterable(values)  # as `--cfg-options` reads it
        assert found == pytest.approx(expected, abs=5e-5)
