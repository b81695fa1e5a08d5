# The same on the digits that a classifier may see, without their labels.
_base_ = ['./itpn-pixel_fastitpn-demo-p16_1xb64-coslr-1600i_photographs-64px.py']

train_pipeline = [
    dict(type='LoadImageFromFile'),
    # A mirrored digit is none, and half of one may be another.
    dict(type='RandomCrop', crop_size=64, padding=8),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    dataset=dict(data_root='data/demo/digits', ann_file='', pipeline=train_pipeline)
)
