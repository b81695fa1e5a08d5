# Fine-tuning of a large model after ImageNet-21k. The authors published no recipe for it: this is
# that of BEiT v2, at a batch of 1024. Its layer decay of 0.8 is stated for the 25 steps of a ViT-L.
_base_ = './itpn_finetune_100e.py'

train_cfg = dict(max_epochs=20)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(end=20, T_max=15, eta_min_ratio=1e-6 / 7e-5)
optim_wrapper = dict(
    optimizer=dict(lr=7e-5), paramwise_cfg=dict(layer_decay_rate=0.8, reference_depth=25)
)
