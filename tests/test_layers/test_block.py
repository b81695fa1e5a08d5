import pytest
import torch
import torch.nn.functional as F

from itpn_mm.layers import AttentionBlock, LayerScale, Mlp, MlpBlock
from itpn_mm.layers.block import DropPath


def test_drop_path_is_off_in_evaluation_and_at_rate_0():
    x = torch.randn(4, 3)
    assert DropPath(0.5).eval()(x) is x
    assert DropPath(0.0)(x) is x
    assert 'rate=0.5' in repr(DropPath(0.5))


@pytest.mark.parametrize('shape', [(6, 5), (6, 4, 4, 3)])
def test_drop_path_drops_an_image_as_a_whole(shape):
    torch.manual_seed(0)
    drop, x = DropPath(0.4), torch.ones(shape)
    values = set()
    for _ in range(20):
        for image in drop(x):
            assert (image == image.flatten()[0]).all()
            values.add(round(image.flatten()[0].item(), 4))
    assert values == {0.0, round(1 / 0.6, 4)}


def test_drop_path_keeps_the_expectation():
    torch.manual_seed(0)
    mean = DropPath(0.3)(torch.ones(20000, 1)).mean().item()
    assert mean == pytest.approx(1, abs=0.02)


def test_mlp_uses_the_exact_gelu():
    mlp, x = Mlp(4, 12), torch.randn(5, 4)
    expected = mlp.fc2(F.gelu(mlp.fc1(x), approximate='none'))
    torch.testing.assert_close(mlp(x), expected)


def test_mlp_block_as_written():
    block, x = MlpBlock(8, 2.5, layer_scale_init_value=0.1, norm_eps=1e-5), torch.randn(2, 3, 3, 8)
    assert block.mlp.fc1.out_features == 20
    normed = F.layer_norm(x, (8,), eps=1e-5)
    torch.testing.assert_close(block(x), x + 0.1 * block.mlp(normed))


def test_attention_block_as_written():
    block, x = AttentionBlock(8, 2, 4.0, layer_scale_init_value=0.5), torch.randn(2, 5, 8)
    torch.nn.init.uniform_(block.ls1.gamma)
    y = x + block.ls1.gamma * block.attn(block.norm1(x))
    y = y + block.ls2.gamma * block.mlp(block.norm2(y))
    torch.testing.assert_close(block(x), y)


def test_layer_scale_is_absent_without_a_value():
    assert not list(AttentionBlock(8, 2, 4.0).ls1.parameters())
    assert torch.equal(LayerScale(4, 0.0).gamma, torch.zeros(4))  # 0 is a value, not an absence
    assert list(MlpBlock(8, 2.0, layer_scale_init_value=0.0).ls2.parameters())


@pytest.mark.parametrize(
    'make',
    [
        lambda: MlpBlock(8, 2.0, drop_path_rate=0.9),
        lambda: AttentionBlock(8, 2, 2.0, drop_path_rate=0.9),
    ],
)
def test_dropped_branches_leave_the_image_as_it_was(make):
    torch.manual_seed(0)
    block, x = make(), torch.randn(64, 3, 8)
    unchanged = (block(x) == x).flatten(1).all(1)
    assert 0.6 < unchanged.float().mean() < 1


@pytest.mark.checklist('equivalences')
@pytest.mark.parametrize('shape', [(7, 8), (2, 5, 8), (3, 2, 4, 8)])
def test_inference_in_slices_gives_the_same(shape, monkeypatch):
    monkeypatch.setattr('itpn_mm.layers.block.SLICE_TOKENS', 4)
    block, x = MlpBlock(8, 2.0, layer_scale_init_value=0.3).eval(), torch.randn(shape)
    sizes = []
    block.mlp.register_forward_hook(lambda _, args, out: sizes.append(out.shape[0]))
    expected = block(x)
    assert sizes == [shape[0]]  # with gradients nothing is sliced
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected)
        assert max(sizes[1:]) == 4 and sum(sizes[1:]) == x[..., 0].numel()
        torch.testing.assert_close(block.train()(x), expected)
        assert len(sizes) == 2 + len(x.flatten(0, -2).split(4))
