"""The EMA teacher: its arithmetic, its mode, its state."""

import copy

import pytest
import torch

pytest.importorskip('mmpretrain')

from itpn_mm.backbones import HiViT
from itpn_mm.pretraining import EMATeacher

MOMENTUM = 0.9


def build_backbone(**kwargs):
    torch.manual_seed(0)
    arch = dict(embed_dims=16, depths=(1, 1, 2), num_heads=2)
    return HiViT(arch, img_size=64, **kwargs)


def disturb(backbone):
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_the_papers_momentum_is_the_default():
    backbone = build_backbone()
    teacher = EMATeacher(backbone)
    teacher.update_parameters(backbone)
    before = backbone.pos_embed.detach().clone()
    disturb(backbone)
    teacher.update_parameters(backbone)
    expected = 0.996 * before + 0.004 * backbone.pos_embed
    torch.testing.assert_close(teacher.module.pos_embed, expected)


def test_updates_add_up_to_the_closed_form():
    """After k updates: m^k x_0 + (1 - m) sum_i m^(k - i) x_i."""
    backbone, history = build_backbone(), []
    teacher = EMATeacher(backbone, MOMENTUM)
    for _ in range(6):
        history.append(copy.deepcopy(backbone.state_dict()))
        teacher.update_parameters(backbone)
        disturb(backbone)
    assert teacher.steps == 6
    k = len(history) - 1
    for name, found in teacher.module.state_dict().items():
        expected = MOMENTUM**k * history[0][name].double()
        for i in range(1, k + 1):
            expected += (1 - MOMENTUM) * MOMENTUM ** (k - i) * history[i][name].double()
        torch.testing.assert_close(found, expected.to(found.dtype), atol=1e-5, rtol=1e-5)


def test_it_is_not_trained_and_knows_no_chance():
    backbone = build_backbone(drop_path_rate=0.5, drop_rate=0.5)
    teacher = EMATeacher(backbone)
    assert not any(p.requires_grad for p in teacher.parameters())
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert backbone.training
    teacher.update_parameters(backbone)
    images, patches = torch.randn(2, 3, 64, 64, requires_grad=True), torch.arange(5).expand(2, -1)
    first, second = teacher(images, patches), teacher(images, patches)
    for x, y in zip(first, second):
        assert torch.equal(x, y)
        assert not x.requires_grad


def test_targets_are_the_stages_of_the_given_patches_alone():
    backbone = build_backbone().eval()
    teacher = EMATeacher(backbone)
    teacher.update_parameters(backbone)
    images, patches = torch.randn(2, 3, 48, 80), torch.tensor([[3, 1, 14], [0, 7, 2]])
    targets = teacher(images, patches)
    assert [tuple(x.shape) for x in targets] == [(2, 12, 4, 4), (2, 6, 2, 8), (2, 3, 1, 16)]
    for found, expected in zip(targets, backbone.forward_stages(images, patches)):
        torch.testing.assert_close(found, expected)


def test_targets_of_a_teacher_that_sees_the_whole_image():
    backbone = build_backbone().eval()
    teacher = EMATeacher(backbone, context='image')
    teacher.update_parameters(backbone)
    images, patches = torch.randn(2, 3, 48, 80), torch.tensor([[3, 1, 14], [0, 7, 2]])
    maps = backbone.forward_stages(images)  # grid of 3 x 5 patches
    for side, found, expected in zip((4, 2, 1), teacher(images, patches), maps):
        for b in range(2):
            for place, index in enumerate(patches[b].tolist()):
                row, col = index // 5 * side, index % 5 * side
                torch.testing.assert_close(
                    found[b, place * side : (place + 1) * side],
                    expected[b, row : row + side, col : col + side],
                )
    alone = EMATeacher(backbone)
    alone.update_parameters(backbone)
    assert not torch.allclose(teacher(images, patches)[2], alone(images, patches)[2])


def test_state_is_saved_and_restored():
    backbone = build_backbone()
    teacher = EMATeacher(backbone, MOMENTUM)
    for _ in range(3):
        teacher.update_parameters(backbone)
        disturb(backbone)
    state = teacher.state_dict()
    names = {f'module.{name}' for name in backbone.state_dict()}
    assert state.keys() == names | {'steps'}

    other = EMATeacher(build_backbone(), MOMENTUM)
    other.load_state_dict(copy.deepcopy(state))
    assert (other.started, int(other.steps)) == (True, 3)
    disturb(backbone)
    for one in (teacher, other):
        one.update_parameters(backbone)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_a_teacher_that_was_never_started_is_an_error():
    teacher = EMATeacher(build_backbone())
    assert not teacher.started
    with pytest.raises(
        RuntimeError, match=r"never started: add dict\(type='itpn_mm\.EMATeacherHook"
    ):
        teacher(torch.randn(1, 3, 64, 64), torch.zeros(1, 1, dtype=torch.long))


@pytest.mark.parametrize('momentum', [0, 1, 1.5, -0.1])
def test_bad_momentum(momentum):
    message = r'`momentum` of EMATeacher must be in \(0, 1\), but got'
    with pytest.raises(ValueError, match=message):
        EMATeacher(build_backbone(), momentum)


def test_bad_context():
    with pytest.raises(ValueError, match=r"`context` of EMATeacher must be 'patches' or 'image'"):
        EMATeacher(build_backbone(), context='whole')
