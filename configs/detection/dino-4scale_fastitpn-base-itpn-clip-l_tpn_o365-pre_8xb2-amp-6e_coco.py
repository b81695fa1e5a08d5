# From Objects365: all but what counts classes is taken over.
_base_ = './dino-4scale_fastitpn-base-itpn-clip-l_tpn_8xb2-amp-12e_coco.py'

load_from = (
    'work_dirs/dino-4scale_fastitpn-base-itpn-clip-l_tpn_32xb2-amp-12e_objects365v1/epoch_12.pth'
)
model = dict(backbone=dict(init_cfg=None), neck=dict(init_cfg=None))
train_cfg = dict(max_epochs=6)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(end=6, milestones=[5])
