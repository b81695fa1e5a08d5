# Loops of 160k iterations.
_base_ = '../segmentation_runtime.py'

train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
# The rates are for 8 GPUs x 2 images; `--auto-scale-lr` adapts them to another batch.
auto_scale_lr = dict(enable=False, base_batch_size=16)
