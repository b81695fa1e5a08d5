# Neither length nor rate of this pre-training is published: both are our choice. The pictures go
# through the pipelines of COCO.
_base_ = './dino-4scale_fastitpn-base-itpn-clip-l_tpn_8xb2-amp-12e_coco.py'

model = dict(bbox_head=dict(num_classes=365))

data_root = 'data/Objects365/Obj365_v1/'
train_dataloader = dict(
    sampler=dict(_delete_=True, type='ClassAwareSampler', num_sample_class=1),
    dataset=dict(
        type='Objects365V1Dataset',
        data_root=data_root,
        ann_file='annotations/objects365_train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=True),
    ),
)
val_dataloader = dict(
    dataset=dict(
        type='Objects365V1Dataset',
        data_root=data_root,
        ann_file='annotations/objects365_val.json',
        data_prefix=dict(img='val/'),
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(
    ann_file=data_root + 'annotations/objects365_val.json',
    sort_categories=True,
)
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=2e-4))
auto_scale_lr = dict(base_batch_size=64)
