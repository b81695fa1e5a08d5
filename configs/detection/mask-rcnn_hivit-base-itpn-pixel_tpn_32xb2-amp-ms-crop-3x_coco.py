_base_ = './mask-rcnn_hivit-base-itpn-pixel_tpn_32xb2-amp-ms-crop-1x_coco.py'

model = dict(backbone=dict(drop_path_rate=0.3))
optim_wrapper = dict(optimizer=dict(lr=1.5e-4))
train_cfg = dict(max_epochs=36)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(end=36, milestones=[27, 33])
