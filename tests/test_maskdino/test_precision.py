"""Half precision around the head."""

import pytest
import torch
from torch import nn

from itpn_mm.maskdino.criterion import MaskDINOCriterion
from itpn_mm.maskdino.head import DICE, FOCAL, GIOU, L1, MASK
from itpn_mm.maskdino.pixel_decoder import MaskDINOPixelDecoder
from itpn_mm.maskdino.predictor import Outputs, Predictions

from .golden import cross_entropy
from .heads import make_maps, make_target, tiny_head, total

pytestmark = pytest.mark.checklist('amp')

SIZE = (64, 96)
# Their inputs and outputs are what the arithmetic inside is done in.
LAYERS = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm)


def record_types(module: nn.Module) -> set[torch.dtype]:
    """Types of what the layers of a module take and give, as it runs."""
    found: set[torch.dtype] = set()

    def look(_, inputs, output) -> None:
        found.update(tensor.dtype for tensor in (inputs[0], output))

    for layer in module.modules():
        if isinstance(layer, LAYERS):
            layer.register_forward_hook(look)
    return found


@pytest.mark.parametrize(
    'options',
    [
        dict(two_stage=False, loss_cls='ce'),
        dict(box_init='mask2box', pixel_decoder=dict(num_levels=4, num_extra_levels=1)),
        dict(box_init='bitmask', learned_content=True),
    ],
)
@pytest.mark.parametrize('padded', [False, True])
def test_training_under_autocast(options, padded):
    """Maps come in half precision; the head goes on in single precision and its gradients are."""
    head = tiny_head(**options).train()
    inside = record_types(head.pixel_decoder), record_types(head.predictor.decoder)
    maps = [level.bfloat16().requires_grad_() for level in make_maps(2, SIZE)]
    sizes = [SIZE, (50, 90) if padded else SIZE]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert nn.Linear(2, 2)(torch.rand(1, 2)).dtype == torch.bfloat16
        losses = head.losses(maps, sizes, SIZE, [make_target(3, size) for size in sizes])
    assert inside == ({torch.float32}, {torch.float32})
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    total(losses).backward()
    for tensor in [*maps, *head.parameters()]:
        assert tensor.grad.dtype == tensor.dtype
        assert tensor.grad.isfinite().all()


def test_predicting_under_autocast():
    """Close to what single precision predicts."""
    head = tiny_head(two_stage=False).eval()
    maps = make_maps(1, SIZE)
    with torch.no_grad():
        wanted = head.segment(maps).matching
        with torch.autocast('cpu', dtype=torch.bfloat16):
            found = head.segment(maps).matching
    for field in ('cls_logits', 'boxes', 'mask_embeds'):
        torch.testing.assert_close(
            getattr(found, field).float(), getattr(wanted, field), rtol=0.02, atol=0.02
        )


def test_the_pixel_decoder_takes_half_precision():
    decoder = MaskDINOPixelDecoder((6, 7), num_levels=2, feat_channels=32, num_layers=1)
    features, memory = decoder([level.half() for level in make_maps(1, SIZE, (6, 7))])
    assert features.dtype == memory.tokens.dtype == torch.float32


@pytest.mark.parametrize('loss_cls', [FOCAL, cross_entropy(3)])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_losses_of_half_precision(loss_cls, dtype):
    """Embeddings and features of 30 in 100 channels: logits of 90000 are not a number of 16 bits.

    The features turn, so that half of the logits are as low.
    """
    embeds = torch.full((2, 1, 4, 100), 30.0, dtype=dtype)
    features = torch.full((1, 100, 16, 16), 30.0, dtype=dtype)
    features[..., :8] *= -1
    if dtype == torch.float16:
        assert not (embeds[0, 0] @ features[0].flatten(1)).isfinite().all()
    num_logits = 3 + (not loss_cls['use_sigmoid'])
    cls_logits = 100 * torch.randn(2, 1, 4, num_logits, dtype=dtype)
    inputs = [cls_logits, torch.rand(2, 1, 4, 4, dtype=dtype), embeds, features]
    for tensor in inputs:
        tensor.requires_grad_()
    outputs = Outputs(('', 'd0.'), Predictions(*inputs[:3]), features)
    criterion = MaskDINOCriterion(3, loss_cls, MASK, DICE, L1, GIOU, num_points=30)
    losses = criterion(outputs, [make_target(3, (64, 64))])
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    total(losses).backward()
    assert all(tensor.grad.isfinite().all() for tensor in inputs)
