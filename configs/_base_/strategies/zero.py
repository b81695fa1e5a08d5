# DeepSpeed: each process keeps a share of the optimizer and of gradients (ZeRO, stage 2), weights
# stay in float32. Not for stage 3, see `itpn_mm.EMATeacherHook`. A config that takes this as one
# more base sets `strategy.train_micro_batch_size_per_gpu` to its batch size and `optim_wrapper` to
# a DeepSpeedOptimWrapper, see docs/scaling.md.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='DeepSpeedStrategy',
    config=dict(torch_autocast=dict(enabled=True, dtype='bfloat16')),
    zero_optimization=dict(stage=2),
)
