"""Tools of a training run, for every OpenMMLab package: optimizer settings, hooks, checks."""

from .compile_hook import CompileHook
from .ema_hook import EMATeacherHook
from .fsdp import FSDPStrategy
from .layer_decay import LayerDecayOptimWrapperConstructor
from .load_hook import load_trained
from .model_fit import check_model_fits
from .preflight import PreflightHook, check_config
from .seed_hook import SeedHook

__all__ = [
    'CompileHook',
    'EMATeacherHook',
    'FSDPStrategy',
    'LayerDecayOptimWrapperConstructor',
    'PreflightHook',
    'SeedHook',
    'check_config',
    'check_model_fits',
    'load_trained',
]
