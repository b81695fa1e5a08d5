"""Missing paths and images that are not finite: found early, named, in one line."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel, BaseTTAModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from itpn_mm.engine import PreflightHook, check_config
from itpn_mm.engine.preflight import check_images_finite


@pytest.fixture
def coco(tmp_path):
    """A config in the manner of mmdet whose files all exist, with its data root."""
    root = tmp_path / 'coco'
    for folder in ('annotations', 'train2017', 'val2017'):
        (root / folder).mkdir(parents=True)
    for split in ('train', 'val'):
        (root / 'annotations' / f'{split}.json').write_text('{}')
    (tmp_path / 'start.pth').write_bytes(b'')

    def dataset(split: str) -> dict:
        return dict(
            type='CocoDataset',
            data_root=f'{root}/',
            ann_file=f'annotations/{split}.json',
            data_prefix=dict(img=f'{split}2017/'),
        )

    weights = dict(type='Pretrained', checkpoint=str(tmp_path / 'start.pth'), prefix='backbone.')
    cfg = Config(
        dict(
            model=dict(type='MaskRCNN', backbone=dict(init_cfg=weights), neck=dict(init_cfg=None)),
            train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=dataset('train'))),
            val_dataloader=dict(dataset=dataset('val')),
            test_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=[dataset('val')])),
            val_evaluator=dict(type='CocoMetric', ann_file=f'{root}/annotations/val.json'),
            test_evaluator=[dict(type='CocoMetric', ann_file=f'{root}/annotations/val.json')],
            load_from=None,
        )
    )
    return cfg, root


def test_complete_config_passes(coco):
    check_config(coco[0])


@pytest.mark.parametrize(
    'key',
    [
        'train_dataloader.dataset.dataset.data_root',
        'train_dataloader.dataset.dataset.ann_file',
        'train_dataloader.dataset.dataset.data_prefix.img',
        'val_dataloader.dataset.data_root',
        'test_dataloader.dataset.datasets.0.ann_file',
        'val_evaluator.ann_file',
        'test_evaluator.0.ann_file',
        'model.backbone.init_cfg.checkpoint',
        'load_from',
    ],
)
@pytest.mark.parametrize('value', ['nowhere/x', '/nowhere/x'])
def test_missing_path_is_named(coco, key, value):
    cfg, root = coco
    cfg.merge_from_dict({key: value})
    with pytest.raises(FileNotFoundError) as info:
        check_config(cfg)
    message = str(info.value)
    assert '\n' not in message
    assert message.startswith(f'`{key}` is {value!r}')
    assert f'--cfg-options {key}=PATH' in message
    joined = key.endswith(('ann_file', 'img')) and 'evaluator' not in key
    assert (f'that is {str(root / value)!r}' in message) == (joined and value[0] != '/')


def test_paths_are_joined_as_the_datasets_do(coco):
    cfg, root = coco
    dataset = cfg.val_dataloader.dataset
    dataset.data_root = ''
    dataset.ann_file = str(root / 'annotations' / 'val.json')
    dataset.data_prefix = str(root / 'val2017')  # a string, as in mmpretrain
    check_config(cfg)
    dataset.ann_file = ['annotations/val.json', 'annotations/no.json']  # as in mmseg
    dataset.data_root = str(root)
    with pytest.raises(FileNotFoundError, match=r'dataset\.ann_file\.1` is .*no\.json'):
        check_config(cfg)
    dataset.ann_file = 'annotations'  # a folder, as in DOTA
    check_config(cfg)


def test_relative_data_root_is_seen_from_the_current_folder(coco, monkeypatch):
    cfg, root = coco
    cfg.val_dataloader.dataset.data_root = 'coco'
    with pytest.raises(FileNotFoundError, match='the current folder is '):
        check_config(cfg)
    monkeypatch.chdir(root.parent)
    check_config(cfg)


def test_mode_looks_only_at_what_the_run_reads(coco):
    cfg, _ = coco
    cfg.train_dataloader.dataset.dataset.data_root = 'nowhere'
    cfg.model.backbone.init_cfg.checkpoint = 'nowhere.pth'
    check_config(cfg, mode='test')
    check_config(cfg, mode='val')
    with pytest.raises(FileNotFoundError, match='train_dataloader'):
        check_config(cfg, mode='train')
    cfg.train_dataloader = None
    with pytest.raises(FileNotFoundError, match='init_cfg'):
        check_config(cfg, mode='train')
    with pytest.raises(ValueError, match=r"`mode` must be .* but got 'fit'"):
        check_config(cfg, mode='fit')


def test_what_is_not_local_is_left_alone(coco):
    cfg, _ = coco
    cfg.load_from = 'https://example.org/model.pth'
    cfg.model.backbone.init_cfg.checkpoint = 'torchvision://resnet50'
    cfg.val_dataloader.dataset.update(data_root='nowhere', backend_args=dict(backend='petrel'))
    cfg.train_dataloader.dataset = dict(type='mmpretrain.CIFAR10', data_root='nowhere')
    check_config(cfg)
    cfg.train_dataloader.dataset.download = False
    with pytest.raises(FileNotFoundError, match=r'`train_dataloader\.dataset\.data_root`'):
        check_config(cfg)


def test_checkpoint_in_the_home_folder(coco, monkeypatch):
    cfg, root = coco
    monkeypatch.setenv('HOME', str(root.parent))
    cfg.load_from = '~/start.pth'
    check_config(cfg)


def test_checkpoint_in_a_list_of_initialisers(coco):
    cfg, _ = coco
    cfg.model.heads = [dict(init_cfg=[dict(type='Pretrained', checkpoint='nowhere.pth')])]
    with pytest.raises(FileNotFoundError, match=r'`model\.heads\.0\.init_cfg\.0\.checkpoint`'):
        check_config(cfg)


def test_path_of_another_type_is_an_error(coco):
    cfg, _ = coco
    cfg.val_dataloader.dataset.data_root = 3
    with pytest.raises(ValueError, match=r'`val_dataloader\.dataset\.data_root` .* but got 3'):
        check_config(cfg)


def make_batch(dtype: torch.dtype = torch.float32, bad: float | None = None) -> dict:
    images = [torch.zeros(3, 4, 4, dtype=dtype) for _ in range(3)]
    if bad is not None:
        images[1][2, 3, 0] = bad
    samples = [BaseDataElement(metainfo=dict(img_path=f'img_{i}.png')) for i in range(3)]
    return dict(inputs=images, data_samples=samples)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('layout', ['list', 'stacked', 'views', 'dict'])
def test_image_that_is_not_finite_is_named(bad, dtype, layout):
    batch = make_batch(dtype, bad)
    if layout == 'stacked':
        batch['inputs'] = torch.stack(batch['inputs'])
    elif layout == 'views':
        batch['inputs'] = [make_batch(dtype)['inputs'], batch['inputs']]
    elif layout == 'dict':
        batch['inputs'] = dict(sup=batch['inputs'])
    with pytest.raises(ValueError, match=r'image 1 of training batch 7 \(img_1\.png\) holds NaN'):
        check_images_finite(batch, batch_idx=7)


def test_finite_and_integer_images_pass():
    check_images_finite(make_batch(), 0)
    check_images_finite(make_batch(torch.uint8), 0)
    check_images_finite(dict(inputs=[torch.zeros(3, 0, 4)]), 0)


def test_image_without_a_path_is_named_by_its_place():
    batch = make_batch(bad=np.nan)
    del batch['data_samples']
    with pytest.raises(ValueError, match='image 1 of training batch 0 holds NaN'):
        check_images_finite(batch, 0)


class Model(BaseModel):
    """Counts the training steps it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(1, 1)
        self.steps = 0

    def forward(self, inputs, data_samples=None, mode='tensor'):
        self.steps += 1
        return {'loss': self.backbone.weight.sum()}


class Images(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        image = torch.full((3, 2, 2), float('nan') if index == 2 else 1.0)
        return dict(inputs=image, data_samples=BaseDataElement(metainfo=dict(img_path=f'{index}')))


def make_runner(model: nn.Module, work_dir) -> Runner:
    return Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=Images(), batch_size=1, sampler=dict(type='DefaultSampler', shuffle=False)
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[dict(type='itpn_mm.PreflightHook')],
        log_level='ERROR',
        experiment_name=work_dir.name,
    )


def test_hook_stops_before_the_model_sees_the_image(tmp_path):
    model = Model()
    with pytest.raises(ValueError, match=r'image 0 of training batch 2 \(2\)'):
        make_runner(model, tmp_path).train()
    assert model.steps == 2


def test_hook_stops_a_misfit_before_weights_are_initialised(tmp_path):
    model = Model()
    model.backbone.out_channels, model.neck = (8, 16), nn.Identity()
    model.neck.in_channels, model.neck.in_strides = (8, 8), (4, 8)
    initialised = []
    model.init_weights = lambda: initialised.append(True)
    with pytest.raises(ValueError, match=r'`neck\.in_channels` is \(8, 8\).*\(8, 16\)'):
        make_runner(model, tmp_path).train()
    assert not initialised
    assert model.steps == 0


class Augmented(BaseTTAModel):
    def merge_preds(self, data_samples_list: list) -> list:
        return data_samples_list


def test_hook_looks_into_test_time_augmentation():
    """Parts that do not fit are found in the model that is augmented, not in its wrapper."""
    inner = Model()
    inner.backbone.out_channels = (8, 16)
    inner.neck = nn.Identity()
    inner.neck.in_channels, inner.neck.num_outs = (8, 32), 2
    runner = SimpleNamespace(model=Augmented(inner))
    with pytest.raises(ValueError, match=r'`neck.in_channels` is \(8, 32\)'):
        PreflightHook(trust=True).before_run(runner)
