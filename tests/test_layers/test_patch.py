import pytest
import torch
import torch.nn.functional as F

from itpn_mm.layers import (
    PatchEmbed,
    PatchMerge,
    PatchSplit,
    gather_patches,
    patchify,
    unpatchify,
)


def test_patchify_gives_rows_then_columns_then_channels():
    img = torch.arange(2 * 3 * 8 * 12.0).view(2, 3, 8, 12)
    patches = patchify(img, 4)
    assert patches.shape == (2, 6, 48)
    for index, (top, left) in enumerate([(0, 0), (0, 4), (0, 8), (4, 0), (4, 4), (4, 8)]):
        expected = img[:, :, top : top + 4, left : left + 4].permute(0, 2, 3, 1).flatten(1)
        assert torch.equal(patches[:, index], expected)
    assert torch.equal(unpatchify(patches, (2, 3), 4), img)


def test_gather_patches_stacks_them_in_the_order_of_keep():
    img = torch.randn(2, 3, 8, 12)
    keep = torch.tensor([[4, 0, 5], [1, 3, 2]])
    column = gather_patches(img, keep, 4)
    assert column.shape == (2, 3, 12, 4)
    for b in range(2):
        for place, index in enumerate(keep[b].tolist()):
            row, col = divmod(index, 3)
            patch = img[b, :, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4]
            assert torch.equal(column[b, :, 4 * place : 4 * place + 4], patch)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_patch_embed_is_a_convolution(memory_format):
    embed = PatchEmbed(3, 8, 4, norm=False)
    img = torch.randn(2, 3, 16, 24).contiguous(memory_format=memory_format)
    expected = F.conv2d(img, embed.proj.weight, embed.proj.bias, stride=4)
    torch.testing.assert_close(embed(img), expected.permute(0, 2, 3, 1))


def test_patch_embed_takes_a_crop_without_a_copy_before():
    embed, img = PatchEmbed(3, 8, 4), torch.randn(1, 3, 20, 28)
    crop = img[:, :, 2:18, 3:27]  # not contiguous
    torch.testing.assert_close(embed(crop), embed(crop.clone()))


def test_merge_concatenates_with_the_row_offset_fastest():
    merge = PatchMerge(2)
    merge.norm = torch.nn.Identity()
    merge.reduction = torch.nn.Identity()
    x = torch.randn(1, 4, 6, 2)
    parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    assert torch.equal(merge(x), torch.cat(parts, -1))


def test_split_places_tokens_in_row_major_order():
    split = PatchSplit(12, 3)
    split.norm = torch.nn.Identity()
    split.expand = torch.nn.Identity()
    x = torch.randn(2, 3, 2, 12)
    expected = F.pixel_shuffle(
        x.view(2, 3, 2, 4, 3).transpose(3, 4).flatten(3).permute(0, 3, 1, 2), 2
    )
    assert torch.equal(split(x), expected.permute(0, 2, 3, 1))


def test_merge_and_split_stay_within_two_by_two_cells():
    """Changing one token changes one merged token, and the four it is split into."""
    merge, split, x = PatchMerge(4), PatchSplit(4, 4), torch.randn(1, 4, 4, 4)
    y = x.clone()
    y[0, 1, 2] += 1
    changed = (merge(x) != merge(y)).any(-1)[0].nonzero().tolist()
    assert changed == [[0, 1]]
    changed = (split(x) != split(y)).any(-1)[0].nonzero().tolist()
    assert changed == [[2, 4], [2, 5], [3, 4], [3, 5]]
