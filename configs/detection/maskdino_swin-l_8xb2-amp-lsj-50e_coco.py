# MaskDINO with Swin-L, which encodes the finest map, too.
_base_ = './maskdino_r50_8xb2-amp-lsj-50e_coco.py'

depths = [2, 2, 18, 2]
pretrained = (
    'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
    'swin_large_patch4_window12_384_22k.pth'
)
model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        pretrain_img_size=384,
        embed_dims=192,
        depths=depths,
        num_heads=[6, 12, 24, 48],
        window_size=12,
        drop_path_rate=0.3,
        out_indices=(0, 1, 2, 3),
        convert_weights=True,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained),
    ),
    panoptic_head=dict(
        in_channels=[192, 384, 768, 1536], pixel_decoder=dict(num_levels=5), box_init='bitmask'
    ),
)
# A name in these keys is longer than `backbone`, and so comes before it: norms and tables of
# positions do not decay.
without_decay = dict(lr_mult=0.1, decay_mult=0.0)
norms = [
    'patch_embed.norm',
    *(f'norm{stage}' for stage in range(len(depths))),
    *(f'stages.{stage}.downsample.norm' for stage in range(len(depths) - 1)),
    *(
        f'stages.{stage}.blocks.{block}.norm'
        for stage, count in enumerate(depths)
        for block in range(count)
    ),
]
custom_keys = {f'backbone.{norm}': without_decay for norm in norms}
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(relative_position_bias_table=without_decay, **custom_keys))
)
