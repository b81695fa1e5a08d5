"""Pixel pre-training, without feature targets, against the released class."""

import pytest
import torch

from tests.golden import (
    DTYPES,
    INDEX,
    OUT_STRIDES,
    assert_matches,
    build_backbone,
    build_neck,
    by_patch,
    cases,
    load,
    names,
    our_state,
    resample_as_masked,
    under,
)

pytest.importorskip('mmpretrain')

from itpn_mm.checkpoint import remap
from itpn_mm.pretraining import PatchMask, PixelReconstructionHead, RandomMasking, iTPN

pytestmark = pytest.mark.checklist('parity')

KIND = 'pixel_pretrain'


def build(name, state, norm_pix=True):
    """The model that a fixture describes, with all its weights, strictly loaded."""
    kwargs = INDEX[name]['kwargs']
    backbone, strides = build_backbone(name, state), OUT_STRIDES[3 - kwargs['num_outs'] : 3]
    model = iTPN(
        backbone=backbone,
        neck=build_neck(name, state, out_strides=strides),
        decoder=dict(
            type='itpn_mm.MIMDecoder',
            in_channels=kwargs['fpn_dim'],
            strides=strides,
            embed_dims=kwargs['decoder_embed_dim'],
            depth=kwargs['decoder_depth'],
            num_heads=kwargs['decoder_num_heads'],
            mlp_ratio=kwargs['mlp_ratio'],
            img_size=kwargs['img_size'],
            norm_eps=INDEX[name]['norm_eps'],
        ),
        head=PixelReconstructionHead(kwargs['decoder_embed_dim'], norm_pix=norm_pix),
        masking=dict(type='itpn_mm.RandomMasking'),
    )
    model.load_state_dict(state, strict=True)

    def position(tokens):
        table = resample_as_masked(backbone.pos_embed, (tokens.height, tokens.width))
        return table[0][tokens.keep]

    backbone.position = position
    return model.to(state['backbone.pos_embed'].dtype).eval()


def read_mask(tensors, case):
    keep, masked = tensors[f'in/{case}/ids_keep'], tensors[f'in/{case}/mask'].bool()
    mask = PatchMask.from_noise(tensors[f'in/{case}/noise'], keep.shape[1])
    assert torch.equal(mask.keep, keep)
    assert torch.equal(mask.as_bool(), masked)
    return mask


@pytest.mark.parametrize('name, case, dtype', cases(KIND))
def test_golden_pretraining(name, case, dtype):
    tensors = load(name, dtype)
    images, mask = tensors[f'in/{case}/image'], read_mask(tensors, case)
    model = build(name, our_state(tensors))
    tokens = model.decode(model.encode(images, mask), images, mask)
    found = dict(
        pred=model.head.pred(tokens),
        loss=model.loss_of_mask(images, mask)['loss_pixel'],
        loss_without_norm_pix=build(name, our_state(tensors), norm_pix=False).loss_of_mask(
            images, mask
        )['loss_pixel'],
    )
    expected = under(tensors, f'out/{case}/')
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert_matches(found[key], value, name, f'{case} {key}', dtype)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', names(KIND))
def test_golden_pretraining_intermediates(name, dtype):
    tensors = load(name, dtype)
    case = next(iter(INDEX[name]['cases']))
    images, mask = tensors[f'in/{case}/image'], read_mask(tensors, case)
    model, found = build(name, our_state(tensors)), {}
    for key, block in dict(
        stage3_in=model.backbone.stages[2][0], decoder_in=model.decoder.blocks[0]
    ).items():
        block.register_forward_pre_hook(lambda _, args, key=key: found.update({key: args[0]}))
    found['U3'] = by_patch(model.backbone.forward_stages(images, mask.keep)[2], 1)[:, :, 0, 0]
    model.loss_of_mask(images, mask)
    expected = under(tensors, f'mid/{case}/')
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert_matches(found[key], value, name, f'{case} {key}')


@pytest.mark.parametrize('dtype', DTYPES)
def test_golden_pretraining_gradients(dtype):
    name, case = 'a1_pixel_pretrain', 'mr75'
    tensors = load(name, dtype)
    model = build(name, our_state(tensors))
    model.loss_of_mask(tensors[f'in/{case}/image'], read_mask(tensors, case))[
        'loss_pixel'
    ].backward()
    _, report = remap(under(tensors, 'sd/'))
    expected = under(tensors, f'grad/{case}/')
    assert len(expected) == len(INDEX[name]['cases'][case]['gradients']) > 0
    for key, value in expected.items():
        gradient = model.get_parameter(report.renamed[key]).grad
        assert_matches(gradient, value, name, f'gradient of {key}')


def test_golden_masking_counts():
    """The share of visible patches is rounded as in the reference."""
    for name in names(KIND):
        tensors = load(name)
        for case in INDEX[name]['cases']:
            batch, total = tensors[f'in/{case}/noise'].shape
            mask = RandomMasking(int(case.removeprefix('mr')) / 100)(
                batch, total, torch.device('cpu')
            )
            assert mask.keep.shape == tensors[f'in/{case}/ids_keep'].shape
