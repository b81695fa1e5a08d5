# Intermediate fine-tuning on ImageNet-21k. The authors published no recipe for it: this is that of
# BEiT v2, at a batch of 4096. Its layer decay of 0.75 is stated for the 25 steps of a ViT-L.
_base_ = './itpn_finetune_100e.py'

train_cfg = dict(max_epochs=90)
val_cfg = None
test_cfg = None
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(end=20)
param_scheduler[1].update(begin=20, end=90, T_max=70, eta_min_ratio=1e-6 / 6e-4)
optim_wrapper = dict(
    optimizer=dict(lr=6e-4), paramwise_cfg=dict(layer_decay_rate=0.75, reference_depth=25)
)
auto_scale_lr = dict(base_batch_size=4096)
