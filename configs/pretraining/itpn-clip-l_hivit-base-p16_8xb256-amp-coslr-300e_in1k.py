_base_ = [
    '../_base_/models/itpn-clip-l_hivit-base-p16.py',
    '../_base_/datasets/imagenet_two-views_224-196.py',
    '../_base_/schedules/itpn-clip_adamw_300e.py',
    '../_base_/classification_runtime.py',
]

default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=3))
randomness = dict(seed=0, diff_rank_seed=True)
