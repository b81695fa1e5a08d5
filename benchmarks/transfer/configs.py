"""Configs of the study: those of the demo with another size, schedule and data."""

from pathlib import Path
from typing import Any

from mmengine.config import Config

from .plan import PRETRAININGS, Chain

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / 'data' / 'transfer'
# Crops of 96 pixels in pre-training and tiles of 128 in fine-tuning, as 224 and 512 in the paper.
IMG_SIZE, PATCH = 96, 16
CHANNELS = (48, 96, 192)
ARCH = dict(embed_dims=CHANNELS[-1], depths=(1, 1, 4), num_heads=4)
BACKBONES = {
    'itpn': dict(type='itpn_mm.HiViT', arch=ARCH, img_size=IMG_SIZE),
    'fast-itpn': dict(
        type='itpn_mm.FastiTPN', arch=ARCH, img_size=IMG_SIZE, layer_scale_init_value=None
    ),
}
ITERATIONS, BATCH = 500, 32
FINETUNINGS = {
    'classes': 'configs/segmentation/upernet_hivit-demo-itpn-pixel_tpn_1xb4-400i_nuclei.py',
    'instances': 'configs/detection/mask-rcnn_hivit-demo-itpn-pixel_tpn_1xb4-24e_nuclei.py',
    'trees': 'configs/detection/faster-rcnn_hivit-demo-itpn-pixel_tpn_1xb4-12e_aerial.py',
}
LENGTHS = {'classes': 120, 'instances': 240, 'trees': 240}
METRICS = {
    'classes': ('mIoU', 1.0),
    'instances': ('coco/segm_mAP_50', 100.0),
    'trees': ('coco/bbox_mAP_50', 100.0),
}
POINTS = 6  # of a curve
LABELLED = {'classes': 16, 'instances': None, 'trees': None}  # every n-th tile is trained on
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def neck(family: str) -> dict:
    """The pyramid of a family, without what tells pre-training from fine-tuning."""
    return dict(
        type='itpn_mm.TransformerPyramidNeck',
        in_channels=CHANNELS,
        out_channels=64,
        depth=1,
        bias=family == 'fast-itpn',
    )


def pretraining(chain: Chain) -> Config:
    """The config of a chain's pre-training."""
    iterations = ITERATIONS
    cfg = Config.fromfile(
        ROOT / 'configs/pretraining/itpn-pixel_hivit-demo-p16_1xb32-coslr-24e_photographs.py'
    )
    model = cfg.model
    model.backbone, model.neck = BACKBONES[chain.family], neck(chain.family)
    model.neck.out_strides = (4, 8, 16)
    model.decoder.img_size = IMG_SIZE
    model.mfm_head.stage_channels = CHANNELS
    pipeline = list(cfg.train_pipeline)
    pipeline[1] = dict(pipeline[1], scale=IMG_SIZE)
    if chain.pretraining == 'teacher':
        distil(cfg)
        pipeline = two_views()
    elif chain.pretraining == 'fixed-views':
        pipeline = [pipeline[0], dict(type='Resize', scale=(IMG_SIZE, IMG_SIZE)), pipeline[-1]]
    dataset = dict(
        type='ConcatDataset',
        datasets=[
            dict(type='CustomDataset', data_root=str(root), with_label=False, pipeline=pipeline)
            for root in (DATA / 'pool', DATA / chain.side / 'pool')
        ],
    )
    cfg.train_dataloader = dict(
        batch_size=BATCH,
        num_workers=0,
        sampler=dict(type='InfiniteSampler', shuffle=True),
        collate_fn=dict(type='default_collate'),
        dataset=dataset,
    )
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations)
    cfg.param_scheduler = schedule(iterations)
    positions = {'pos_embed': dict(lr_mult=3.0, decay_mult=0.0)} if is_fast(chain) else {}
    cfg.optim_wrapper.paramwise_cfg.setdefault('custom_keys', {}).update(positions)
    cfg.log_processor = dict(by_epoch=False)
    cfg.default_hooks.logger.interval = 10
    cfg.default_hooks.checkpoint.update(
        by_epoch=False, interval=iterations, save_optimizer=False, max_keep_ckpts=1
    )
    cfg.randomness = dict(seed=chain.seed)
    cfg.merge_from_dict(PRETRAININGS[chain.pretraining].options)
    return cfg


def is_fast(chain: Chain) -> bool:
    """Whether positions start near zero and need a higher rate, as in the demo on digits."""
    return chain.family == 'fast-itpn'


def distil(cfg: Config) -> None:
    """Supervision by a foreign teacher in the place of pixels and an EMA teacher."""
    from .teacher import IMG_SIZE as TEACHER_SIZE
    from .teacher import OUTPUT

    grid = (IMG_SIZE // PATCH, IMG_SIZE // PATCH)
    pooled = dict(
        type='itpn_mm.PooledTeacher',
        teacher=dict(
            type='itpn_mm.FeatureTeacher',
            source=str(DATA / 'teacher.onnx'),
            img_size=TEACHER_SIZE,
            output=OUTPUT,
            patch_size=14,
        ),
        grid=grid,
    )
    cfg.model = dict(
        type='itpn_mm.iTPNDistill',
        data_preprocessor=dict(
            type='mmpretrain.TwoNormDataPreprocessor',
            mean=MEAN,
            std=STD,
            second_mean=MEAN,
            second_std=STD,
            to_rgb=True,
        ),
        backbone=cfg.model.backbone,
        neck=cfg.model.neck,
        decoder=dict(type='itpn_mm.LevelSum', in_channels=64, embed_dims=128),
        head=dict(type='itpn_mm.CLIPDistillHead', in_channels=128, target_dims=384, loss='cosine'),
        teacher=dict(
            type='itpn_mm.CachedTeacher', teacher=pooled, cache_dir=str(DATA / 'features')
        ),
    )
    cfg.custom_hooks = []


def two_views() -> list[dict]:
    """The whole crop for the student and, larger, for the teacher; blocks are masked."""
    from .teacher import IMG_SIZE as TEACHER_SIZE

    side = IMG_SIZE // PATCH
    masked = round(0.4 * side**2)  # the share of the released CLIP models, 75 of 196
    return [
        dict(type='LoadImageFromFile'),
        dict(
            type='RandomResizedCropAndInterpolationWithTwoPic',
            size=IMG_SIZE,
            second_size=TEACHER_SIZE,
            scale=(1.0, 1.0),
            ratio=(1.0, 1.0),
            interpolation='bicubic',
            second_interpolation='bicubic',
        ),
        dict(
            type='BEiTMaskGenerator',
            input_size=side,
            num_masking_patches=masked,
            max_num_patches=masked,
            min_num_patches=4,
        ),
        dict(type='PackInputs', algorithm_keys=['mask']),
    ]


def finetuning(chain: Chain, task: str, checkpoint: Path | None, pyramid: bool) -> Config:
    """The config of a fine-tuning.

    Args:
        chain: Its family, seed and fold.
        task: One of `plan.TASKS`.
        checkpoint: What the backbone starts from; `None` for random weights.
        pyramid: Whether the pyramid starts from it, too.
    """
    iterations = LENGTHS[task]
    cfg = Config.fromfile(ROOT / FINETUNINGS[task])
    old = cfg.model.neck
    extra = {k: old[k] for k in ('out_strides', 'concat_inputs', 'pool') if k in old}
    cfg.model.backbone = dict(
        BACKBONES[chain.family], drop_path_rate=0.1, init_cfg=start(checkpoint, 'backbone.')
    )
    cfg.model.neck = dict(
        neck(chain.family), **extra, init_cfg=start(checkpoint if pyramid else None, 'neck.')
    )
    if chain.pretraining.startswith('conv'):
        cfg.model.neck.type = 'itpn_mm.ConvPyramidNeck'
    {'classes': semantic, 'instances': boxes, 'trees': boxes}[task](cfg, task, chain)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    cfg.train_cfg = dict(
        type='IterBasedTrainLoop', max_iters=iterations, val_interval=max(1, iterations // POINTS)
    )
    cfg.param_scheduler = schedule(iterations)
    if is_fast(chain):
        keys = cfg.optim_wrapper.paramwise_cfg.setdefault('custom_keys', {})
        keys['pos_embed'] = dict(lr_mult=30.0, decay_mult=0.0)
    cfg.log_processor = dict(by_epoch=False)
    cfg.default_hooks.checkpoint = dict(
        type='itpn_mm.AtomicCheckpointHook', by_epoch=False, interval=10**9, save_last=False
    )
    # Not that of the pre-training: the same draws would make a pyramid that is not loaded the very
    # one that the backbone was first trained with.
    cfg.randomness = dict(seed=1000 + chain.seed)
    return cfg


def start(checkpoint: Path | None, prefix: str) -> dict[str, Any] | None:
    """Initialisation of a module."""
    return checkpoint and dict(type='Pretrained', checkpoint=str(checkpoint), prefix=prefix)


def semantic(cfg: Config, task: str, chain: Chain) -> None:
    """Data of the classes of pixels, and the channels that the heads read."""
    pyramid = [64 + c for c in (*CHANNELS, CHANNELS[-1])]
    cfg.model.decode_head.in_channels = pyramid
    cfg.model.auxiliary_head.in_channels = pyramid[2]
    root = DATA / chain.side / 'nuclei'
    for loader, split in ((cfg.train_dataloader, 'train'), (cfg.val_dataloader, 'val')):
        loader.dataset.data_root = str(root)
        loader.dataset.data_prefix = dict(img_path=split, seg_map_path=f'classes/{split}')
    few(cfg, root, task)
    cfg.test_dataloader = cfg.val_dataloader


def boxes(cfg: Config, task: str, chain: Chain) -> None:
    """Data of the detectors."""
    root = DATA / chain.side / ('trees' if task == 'trees' else 'nuclei')
    for loader, split in ((cfg.train_dataloader, 'train'), (cfg.val_dataloader, 'val')):
        loader.dataset.data_root = str(root)
        loader.dataset.ann_file = f'{split}.json'
        loader.dataset.data_prefix = dict(img=split)
    few(cfg, root, task)
    cfg.test_dataloader = cfg.val_dataloader
    cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = str(root / 'val.json')


def few(cfg: Config, root: Path, task: str) -> None:
    """Train on every n-th tile only."""
    step = LABELLED[task]
    if step is not None:
        number = len(list((root / 'train').glob('*.png')))
        cfg.train_dataloader.dataset.indices = list(range(0, number, step))


def schedule(iterations: int) -> list[dict]:
    """Warm-up in the first tenth, then a cosine to zero."""
    warmup = max(1, iterations // 10)
    return [
        dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=warmup),
        dict(
            type='CosineAnnealingLR',
            T_max=iterations - warmup,
            by_epoch=False,
            begin=warmup,
            end=iterations,
        ),
    ]
