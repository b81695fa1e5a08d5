_base_ = [
    '../_base_/models/itpn-clip-l_fastitpn-base-p16.py',
    '../_base_/datasets/imagenet_two-views_224-196.py',
    '../_base_/schedules/fastitpn-clip_adamw_1600e.py',
    '../_base_/classification_runtime.py',
]

train_pipeline = _base_.train_pipeline
train_pipeline[3].update(scale=(0.2, 1.0))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=3))
randomness = dict(seed=0, diff_rank_seed=True)
