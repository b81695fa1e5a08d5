_base_ = [
    '../_base_/models/itpn_hivit-base-p16.py',
    'mmpretrain::_base_/datasets/imagenet_bs512_mae.py',
    '../_base_/schedules/itpn_adamw_300e.py',
    '../_base_/classification_runtime.py',
]

# As in the stock file, from which mmengine would also hand the function the key `_scope_`.
train_dataloader = dict(collate_fn=dict(_delete_=True, type='default_collate'))
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=3))
randomness = dict(seed=0, diff_rank_seed=True)
