# Runtime of mmpretrain, with hooks that make a run exact, safe to kill and loud about NaN.
_base_ = 'mmpretrain::_base_/default_runtime.py'

default_hooks = dict(
    checkpoint=dict(type='itpn_mm.AtomicCheckpointHook'),
    preflight=dict(type='itpn_mm.PreflightHook'),
    seed=dict(type='itpn_mm.SeedHook'),
    nonfinite=dict(type='itpn_mm.NonFiniteHook'),
)
