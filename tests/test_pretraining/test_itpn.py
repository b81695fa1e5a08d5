"""Integral pre-training as a whole: its parts, its gradients, its steps in the Runner."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from tests.checklist import note_difference

pytest.importorskip('mmpretrain')

from itpn_mm.pretraining import PatchMask, RandomMasking
from itpn_mm.registry import MODELS

from .models import DECODER, PYRAMID, STAGES, build_itpn, itpn_cfg

LOSSES = {'loss_pixel', 'loss_mfm_p4', 'loss_mfm_p8', 'loss_mfm_p16'}
POSITIONS = ('masked', 'visible')


def draw(model, size=(64, 64), batch=2):
    images = torch.randn(batch, 3, *size)
    return images, model.draw_mask(images)


@pytest.mark.parametrize('positions', POSITIONS)
def test_losses_by_name_and_a_gradient_for_every_parameter(positions):
    model = build_itpn(positions)
    losses = model.loss(torch.randn(2, 3, 64, 64))
    assert losses.keys() == LOSSES
    sum(losses.values()).backward()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert not any(name.startswith('teacher.') for name, _ in trained)
    assert [name for name, p in trained if p.grad is None or not p.grad.any()] == []
    assert all(p.grad is None for p in model.teacher.parameters())


def test_supervision_by_pixels_alone():
    model = build_itpn(mfm_head=None, teacher=None)
    losses = model.loss(torch.randn(2, 3, 64, 64))
    assert losses.keys() == {'loss_pixel'}
    losses['loss_pixel'].backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not any(name.startswith(('teacher', 'mfm_head')) for name in model.state_dict())


@pytest.mark.parametrize('positions', POSITIONS)
def test_lambda_weighs_the_feature_losses_and_nothing_else(positions):
    torch.manual_seed(0)
    model = build_itpn(positions)
    images, mask = draw(model)
    first = model.loss_of_mask(images, mask)
    model.mfm_head.loss_weight = 0.6
    second = model.loss_of_mask(images, mask)
    for name, loss in first.items():
        torch.testing.assert_close(second[name], (2 if 'mfm' in name else 1) * loss)


@pytest.mark.checklist('equivalences')
@torch.no_grad()
@pytest.mark.parametrize('size', [(64, 64), (48, 80)])
def test_all_patches_visible_equals_dense(size):
    model = build_itpn().eval()
    images, num_patches = torch.randn(2, 3, *size), size[0] * size[1] // 256
    keep = torch.arange(num_patches).expand(2, -1)
    levels = model.encode(images, PatchMask(keep, keep[:, :0]))
    dense = model.neck.forward_levels(model.backbone.forward_stages(images))
    assert levels.keys() == dense.keys() == {4, 8, 16}
    for stride, level in levels.items():
        k = 16 // stride
        b, height, width, c = dense[stride].shape
        expected = dense[stride].view(b, height // k, k, width // k, k, c).transpose(2, 3)
        torch.testing.assert_close(level, expected.reshape(level.shape), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_losses_see_nothing_of_masked_pixels_but_the_targets():
    """What is predicted for the masked patches does not change with them."""
    model = build_itpn().eval()
    images, mask = draw(model)
    other = images.unfold(2, 16, 16).unfold(3, 16, 16).clone()  # (b, 3, h, w, 16, 16)
    other.permute(0, 2, 3, 1, 4, 5)[mask.as_bool().view(2, 4, 4)] = torch.nan
    other = other.transpose(3, 4).reshape(images.shape)
    tokens = model.decode(model.encode(images, mask), images, mask)
    assert torch.equal(tokens, model.decode(model.encode(other, mask), other, mask))


@torch.no_grad()
def test_reconstruction():
    model = build_itpn().eval()
    images, mask = draw(model, (48, 80))
    found = model.reconstruct(images, mask)
    assert found.shape == images.shape
    tokens = model.decode(model.encode(images, mask), images, mask)
    torch.testing.assert_close(found, model.head.reconstruct(tokens, images))


@pytest.mark.checklist('amp')
@pytest.mark.parametrize('positions', POSITIONS)
def test_autocast_in_bfloat16(positions):
    torch.manual_seed(0)
    model = build_itpn(positions)
    images, mask = draw(model)
    exact = model.loss_of_mask(images, mask)
    with torch.autocast('cpu', torch.bfloat16):
        losses = model.loss_of_mask(images, mask)
    sum(losses.values()).backward()
    for name, loss in losses.items():
        assert loss.dtype == torch.float32, name
        torch.testing.assert_close(loss, exact[name], atol=0, rtol=0.02)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.checklist('equivalences')
def test_activation_checkpointing_changes_nothing():
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = build_itpn(backbone__with_cp=with_cp)
        sum(model.loss(torch.randn(2, 3, 64, 64)).values()).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    note_difference('checkpointing, with gradients', *gradients, '<= 1e-5')
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(checkpointed, plain)


class Images(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict:
        image = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(index))
        return dict(inputs=image, data_samples=index)


def make_runner(work_dir, model, **kwargs) -> Runner:
    settings = dict(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=Images(),
            batch_size=2,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(accumulative_counts=2, optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[dict(type='itpn_mm.EMATeacherHook'), dict(type='itpn_mm.PreflightHook')],
        default_scope='mmpretrain',
        randomness=dict(seed=0),
        log_level='ERROR',
        experiment_name=f'itpn_{work_dir.name}',
    )
    return Runner(**{**settings, **kwargs})


def test_the_teacher_follows_in_the_runner(tmp_path):
    """Five batches in steps of two: two steps, and one of what remains."""
    model, history = build_itpn(start=False, teacher__momentum=0.5), []
    # Moved away from the copy that the constructor made: the hook has to start the teacher.
    nn.init.normal_(model.backbone.pos_embed)
    history.append(copy.deepcopy(model.backbone.state_dict()))
    train_step = model.train_step

    def record(*args, **kwargs):
        logs = train_step(*args, **kwargs)
        history.append(copy.deepcopy(model.backbone.state_dict()))
        return logs

    model.train_step = record
    make_runner(tmp_path, model).train()
    assert len(history) == 1 + 5
    changed = [
        i
        for i in range(1, 6)
        if not torch.equal(history[i]['pos_embed'], history[i - 1]['pos_embed'])
    ]
    assert changed == [2, 4, 5]
    assert model.teacher.steps == 1 + 3
    for name, found in model.teacher.module.state_dict().items():
        expected = history[0][name]
        for i in changed:
            expected = 0.5 * expected + 0.5 * history[i][name]
        torch.testing.assert_close(found, expected)


def test_a_runner_without_the_hook_says_so(tmp_path):
    runner = make_runner(tmp_path, build_itpn(start=False), custom_hooks=[])
    with pytest.raises(RuntimeError, match='the EMA teacher was never started'):
        runner.train()


@pytest.mark.parametrize('given, absent', [('teacher', 'mfm_head'), ('mfm_head', 'teacher')])
def test_teacher_and_feature_head_go_together(given, absent):
    with pytest.raises(ValueError, match=f'`{given}` needs `{absent}`: give both'):
        build_itpn(**{absent: None})


MISFITS = [
    (dict(neck__in_channels=(8, 16, 24)), 'neck.in_channels', 'backbone.out_channels', STAGES),
    (
        dict(backbone__out_indices=(1, 2)),
        'neck.in_channels',
        'backbone.out_channels',
        STAGES[1:],
    ),
    (
        dict(neck__in_strides=(8, 16, 32), neck__out_strides=(8, 16, 32)),
        'neck.in_strides',
        'backbone.strides',
        (4, 8, 16),
    ),
    (dict(decoder__in_channels=16), 'decoder.in_channels', 'neck.out_channels', PYRAMID),
    (dict(decoder__strides=(8, 16)), 'decoder.strides', 'neck.out_strides', (4, 8, 16)),
    (dict(neck__out_strides=(8, 16)), 'decoder.strides', 'neck.out_strides', (8, 16)),
    (dict(head__embed_dims=32), 'head.embed_dims', 'decoder.embed_dims', DECODER),
    (dict(head__patch_size=8), 'head.patch_size', 'backbone.patch_size', 16),
    (dict(mfm_head__in_channels=PYRAMID), 'mfm_head.in_channels', 'decoder.embed_dims', DECODER),
    (
        dict(positions='visible', mfm_head__in_channels=DECODER),
        'mfm_head.in_channels',
        'neck.out_channels',
        PYRAMID,
    ),
    (
        dict(mfm_head__stage_channels=(8, 16, 24)),
        'mfm_head.stage_channels',
        'backbone.out_channels',
        STAGES,
    ),
    (
        dict(mfm_head__strides=(2, 4, 8)),
        'mfm_head.strides',
        'neck.out_strides',
        (4, 8, 16),
    ),
]


@pytest.mark.parametrize('options, name, other, expected', MISFITS)
def test_parts_that_do_not_fit(options, name, other, expected):
    with pytest.raises(ValueError) as info:
        build_itpn(start=False, **options)
    message = str(info.value)
    assert '\n' not in message
    assert f'`{name}` must be equal to `{other}` = {expected}, but got ' in message


@pytest.mark.parametrize('size', [(63, 64), (64, 72)])
def test_images_of_broken_patches(size):
    model = build_itpn()
    message = f'whole patches of 16 x 16 pixels, but got {size[0]} x {size[1]}: set the crop size'
    with pytest.raises(ValueError, match=message):
        model.loss(torch.randn(2, 3, *size))


def test_images_of_too_few_patches():
    with pytest.raises(ValueError, match=r'masking 0\.75 of 2 patches leaves none visible'):
        build_itpn().loss(torch.randn(2, 3, 16, 32))


@pytest.mark.parametrize('part', ['backbone', 'neck', 'decoder', 'masking', 'head', 'mfm_head'])
def test_unknown_options_are_refused(part):
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        build_itpn(**{f'{part}__colour': 'blue'})


def test_a_config_that_asks_for_the_teacher_with_lambda_0_stops_before_training(tmp_path):
    cfg = Config(dict(model=itpn_cfg(mfm_head__loss_weight=0.0)))
    with pytest.raises(ValueError, match='`loss_weight` of MFMHead must be above 0, but got 0'):
        make_runner(tmp_path, cfg.model)


def test_another_masking_can_take_its_place():
    class First(RandomMasking):
        def __call__(self, batch_size, num_patches, device):
            noise = torch.arange(num_patches, device=device).expand(batch_size, -1)
            return PatchMask.from_noise(noise, num_patches // 2)

    MODELS.register_module(name='FirstHalf', module=First)
    try:
        model = build_itpn(masking__type='itpn_mm.FirstHalf')
        mask = model.draw_mask(torch.zeros(2, 3, 64, 64))
        assert mask.keep.tolist() == [list(range(8))] * 2
        assert model.loss(torch.randn(2, 3, 64, 64)).keys() == LOSSES
    finally:
        MODELS.module_dict.pop('FirstHalf')
