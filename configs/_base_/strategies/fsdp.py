# Each process keeps a share of weights, gradients and optimizer; blocks are the units. One more
# base of a config, or by `--cfg-options runner_type=FlexibleRunner
# strategy.type=itpn_mm.FSDPStrategy`. See docs/scaling.md.
runner_type = 'FlexibleRunner'
strategy = dict(type='itpn_mm.FSDPStrategy', state_dict_cfg='full')
