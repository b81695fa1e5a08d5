"""A classifier in the authors' layout, converted or as it is, in mmpretrain's own test script."""

import argparse
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from torch import Tensor, nn

from itpn_mm import launch
from itpn_mm.registry import MODELS

from .tiny_configs import ROOT, SIDE, draw_picture, shrink

pytest.importorskip('mmpretrain')

NAME = 'fastitpn-tiny-p16_itpn-clip-l-1600e-pre_16xb64-amp-coslr-100e_in1k'
CLASSES = [f'class{i}' for i in range(6)]
PICTURES, RIGHT = 16, 11


def build_model(cfg: Config) -> nn.Module:
    """With weights of a size that lets pictures differ."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_scale = parameter.ndim == 1 and name.endswith(('weight', 'gamma'))
        parameter.data = 1 + 0.1 * noise if is_scale else 0.3 * noise
    return model


def in_the_authors_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One block a stage: entries 0 and 2 are channel MLPs, 1 and 3 merges, 4 has the attention."""
    out = {
        'pos_embed': state['backbone.pos_embed'],
        **{f'patch_embed.proj.{k}': state[f'backbone.patch_embed.proj.{k}'] for k in KINDS},
        **{f'fc_norm.{k}': state[f'neck.norm.{k}'] for k in KINDS},
        **{f'head.{k}': state[f'head.fc.{k}'] for k in KINDS},
    }
    for stage in (0, 1):
        block, theirs = f'backbone.stages.{stage}.0', f'blocks.{2 * stage}'
        merge, their_merge = f'backbone.merges.{stage}', f'blocks.{2 * stage + 1}'
        for ours, their in NAMES.items():
            for kind in KINDS:
                tensor = state[f'{block}.{ours}.{kind}']
                conv = kind == 'weight' and 'fc' in ours
                out[f'{theirs}.{their}.{kind}'] = tensor[:, :, None, None] if conv else tensor
        for kind in KINDS:
            out[f'{their_merge}.norm.{kind}'] = state[f'{merge}.norm.{kind}']
        out[f'{their_merge}.reduction.bias'] = state[f'{merge}.reduction.bias']
        weight = state[f'{merge}.reduction.weight']
        width = weight.shape[1] // 4
        conv = torch.empty(weight.shape[0], width, 2, 2)
        for column in (0, 1):  # of the four pixels ours takes the left column first
            for row in (0, 1):
                start = (2 * column + row) * width
                conv[:, :, row, column] = weight[:, start : start + width]
        out[f'{their_merge}.reduction.weight'] = conv
    block = 'backbone.stages.2.0'
    for letter, weight in zip('qkv', state[f'{block}.attn.qkv.weight'].chunk(3)):
        out[f'blocks.4.attn.{letter}_proj.weight'] = weight
    for letter in 'qv':
        out[f'blocks.4.attn.{letter}_bias'] = state[f'{block}.attn.qkv.{letter}_bias']
    for branch in '12':
        out[f'blocks.4.gamma_{branch}'] = state[f'{block}.ls{branch}.gamma']
    for kind in KINDS:
        gate, value = state[f'{block}.mlp.fc1.{kind}'].chunk(2)
        out |= {f'blocks.4.mlp.w1.{kind}': gate, f'blocks.4.mlp.w2.{kind}': value}
        for ours, their in (
            ('norm1', 'norm1'),
            ('attn.proj', 'attn.proj'),
            ('norm2', 'norm2'),
            ('mlp.norm', 'mlp.ffn_ln'),
            ('mlp.fc2', 'mlp.w3'),
        ):
            out[f'blocks.4.{their}.{kind}'] = state[f'{block}.{ours}.{kind}']
    return {name: tensor.clone() for name, tensor in out.items()}


KINDS = ('weight', 'bias')
NAMES = {'norm2': 'norm2', 'mlp.fc1': 'mlp.fc1', 'mlp.norm': 'mlp.ffn_ln', 'mlp.fc2': 'mlp.fc2'}


def logits(model: nn.Module, picture: Image.Image, cfg: Config) -> Tensor:
    """Of a square picture, by hand: resize, crop, normalise, run."""
    side = int(SIDE / 0.875)
    pixels = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    start = round((side - SIDE) / 2)
    pixels = pixels[start : start + SIDE, start : start + SIDE]
    mean, std = (np.float32(cfg.data_preprocessor[key]) for key in ('mean', 'std'))
    image = torch.from_numpy(((pixels - mean) / std).transpose(2, 0, 1))[None]
    with torch.no_grad():
        (pooled,) = model.neck(model.backbone(image))
        return model.head.fc(pooled)[0]


def run(monkeypatch: pytest.MonkeyPatch, script: Path, *arguments: str) -> None:
    """Run a script as the command line would, in this process because that is faster."""
    monkeypatch.setattr(sys, 'argv', [str(script), *arguments])
    monkeypatch.setattr(sys, 'path', [str(script.parent), *sys.path])
    runpy.run_path(str(script), run_name='__main__')


def test_released_classifier_scores_what_the_model_scores(tmp_path, monkeypatch):
    cfg = Config.fromfile(ROOT / 'configs' / 'classification' / f'{NAME}.py')
    cfg = shrink(cfg, NAME, tmp_path)
    cfg.model.head.num_classes = cfg.data_preprocessor.num_classes = len(CLASSES)
    cfg.test_dataloader.dataset.update(
        data_root=str(tmp_path / 'made'), metainfo=dict(classes=CLASSES)
    )
    cfg.dump(tmp_path / 'config.py')

    # The set is labelled by the model, and wrongly on purpose for all but the first pictures.
    model = build_model(cfg)
    pictures = [draw_picture(96, 96, seed) for seed in range(PICTURES)]
    # No class is preferred, so that pictures are told apart.
    model.head.fc.bias.data -= torch.stack([logits(model, p, cfg) for p in pictures]).mean(0)
    scores = torch.stack([logits(model, picture, cfg) for picture in pictures])
    first, second = scores.topk(2).values.T
    assert (first - second).min() > 1e-4 * scores.abs().max()  # no tie
    predictions = scores.argmax(1).tolist()
    assert len(set(predictions)) > 2
    for i, (picture, prediction) in enumerate(zip(pictures, predictions)):
        label = prediction if i < RIGHT else (prediction + 1 + i % 5) % len(CLASSES)
        path = tmp_path / 'made' / 'val' / CLASSES[label] / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    for name in CLASSES:
        (tmp_path / 'made' / 'val' / name).mkdir(exist_ok=True)

    released = dict(
        model=in_the_authors_layout(model.state_dict()),
        epoch=99,
        args=argparse.Namespace(model='fast_itpn_tiny_1112_patch16_224'),
    )
    torch.save(released, tmp_path / 'released.pth')
    monkeypatch.chdir(tmp_path)
    tool = ROOT / 'tools' / 'convert_checkpoint.py'
    run(monkeypatch, tool, 'released.pth', 'converted.pth')
    converted = torch.load(tmp_path / 'converted.pth', weights_only=True)['state_dict']
    assert converted.keys() == model.state_dict().keys()

    script = launch.find_stock_script('mmpretrain', 'test.py')
    for checkpoint in ('converted.pth', 'released.pth'):  # the file as it is does as well
        out = tmp_path / f'{checkpoint}.json'
        arguments = ['config.py', checkpoint, '--out', str(out), '--out-item', 'metrics']
        run(monkeypatch, script, *arguments)
        metrics = json.loads(out.read_text())
        assert metrics['accuracy/top1'] == pytest.approx(100 * RIGHT / PICTURES)
