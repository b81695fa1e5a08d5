"""MaskDINO does not take more and more memory as it trains."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch.utils.data import Dataset

from tests.resident_memory import ITERATIONS, ResidentMemory, needs_linux
from tests.tiny_configs import plain_text

from .heads import head_options

pytestmark = pytest.mark.checklist('leak')

NUM_CLASSES, OBJECTS = 3, 12  # of an image, at most


class Rectangles(Dataset):
    """Images of any size between 40 and 112 pixels with any number of objects, also none."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> dict:
        random = np.random.RandomState(index)
        height, width = (int(side) for side in random.randint(40, 113, 2))
        image = random.randint(0, 255, (height, width, 3)).astype(np.uint8)
        masks = np.zeros((random.randint(OBJECTS + 1), height, width), np.uint8)
        for mask in masks:
            y, x = random.randint(height - 20), random.randint(width - 20)
            mask[y : y + 4 + random.randint(40), x : x + 4 + random.randint(40)] = 1
        sample = DetDataSample(metainfo=dict(img_shape=(height, width), ori_shape=(height, width)))
        sample.gt_instances = InstanceData(
            labels=torch.from_numpy(random.randint(NUM_CLASSES, size=len(masks))),
            masks=BitmapMasks(masks, height, width),
            bboxes=torch.zeros(len(masks), 4),
        )
        return dict(inputs=torch.from_numpy(image).permute(2, 0, 1), data_samples=sample)


def model() -> dict:
    head = head_options(
        in_channels=(8, 16, 32, 64),
        num_queries=20,
        box_init='mask2box',
        denoising=dict(num_queries=20),
    )
    return dict(
        type='itpn_mm.MaskDINO',
        data_preprocessor=dict(
            type='DetDataPreprocessor',
            mean=[127.0] * 3,
            std=[60.0] * 3,
            pad_mask=True,
            pad_size_divisor=32,
        ),
        backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
        panoptic_head=dict(
            type='itpn_mm.MaskDINOHead', num_things_classes=NUM_CLASSES, num_stuff_classes=0, **head
        ),
        panoptic_fusion_head=dict(
            type='itpn_mm.MaskDINOFusionHead', num_things_classes=NUM_CLASSES, num_stuff_classes=0
        ),
        test_cfg=dict(panoptic_on=False, instance_on=True),
    )


@pytest.mark.slow
@needs_linux
def test_resident_memory_of_maskdino(tmp_path):
    """Images of changing size, with changing numbers of objects, in the stock Runner."""
    cfg = Config(
        dict(
            model=model(),
            train_dataloader=dict(
                dataset=Rectangles(),
                batch_size=2,
                num_workers=0,
                sampler=dict(type='InfiniteSampler'),
                collate_fn=dict(type='pseudo_collate'),
            ),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=ITERATIONS),
            optim_wrapper=dict(
                optimizer=dict(type='AdamW', lr=1e-4), clip_grad=dict(max_norm=0.01)
            ),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=10 * ITERATIONS)),
            default_scope='mmdet',
            work_dir=str(tmp_path),
            log_level='ERROR',
            randomness=dict(seed=0),
            experiment_name=tmp_path.name,
        )
    )
    memory = ResidentMemory()
    with plain_text():
        runner = Runner.from_cfg(cfg)
        runner.register_hook(memory)
        runner.train()
    memory.check('MaskDINO')
