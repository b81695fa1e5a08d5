import torch

from benchmarks.transfer.convolution import ConvBlock, ConvPyramidNeck
from itpn_mm.necks import TransformerPyramidNeck

CHANNELS = (8, 16, 32)


def neck(cls, **kwargs):
    torch.manual_seed(0)
    return cls(CHANNELS, 16, out_strides=(4, 8, 16), depth=1, **kwargs).eval()


@torch.no_grad()
def test_masked_patches_know_nothing_of_each_other():
    pyramid = neck(ConvPyramidNeck)
    stages = [torch.randn(2, 5 * k, k, c) for k, c in zip((4, 2, 1), CHANNELS)]
    together = pyramid.forward_levels(stages)
    for place in range(5):
        alone = [x[:, place * k : (place + 1) * k] for x, k in zip(stages, (4, 2, 1))]
        for stride, found in pyramid.forward_levels(alone).items():
            k = 16 // stride
            torch.testing.assert_close(found, together[stride][:, place * k : (place + 1) * k])


@torch.no_grad()
def test_maps_are_convolved_as_a_whole():
    block = ConvBlock(8, 12, 1e-6, side=4).eval()
    x = torch.randn(1, 16, 16, 8)
    y = block.norm(x).permute(0, 3, 1, 2)
    wanted = x + block.conv2(torch.nn.functional.gelu(block.conv1(y))).permute(0, 2, 3, 1)
    torch.testing.assert_close(block(x), wanted)
    moved = x.clone()
    moved[:, 4, 4] = 0  # the first sub-token of a patch: its neighbours are of another patch
    assert not torch.allclose(block(moved)[:, 3, 3], block(x)[:, 3, 3])


def test_as_many_parameters_as_channel_mlps():
    sizes = [
        sum(p.numel() for name, p in neck(cls).named_parameters() if p.ndim > 1)
        for cls in (TransformerPyramidNeck, ConvPyramidNeck)
    ]
    assert abs(sizes[1] / sizes[0] - 1) < 0.02
