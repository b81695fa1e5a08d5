"""Tools of a training run, for every OpenMMLab package: optimizer settings, hooks, checks."""

from .compile_hook import CompileHook
from .ema_hook import EMATeacherHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .load_hook import load_trained
from .model_fit import check_model_fits
from .preflight import PreflightHook, check_config

__all__ = [
    'CompileHook',
    'EMATeacherHook',
    'LayerDecayOptimWrapperConstructor',
    'PreflightHook',
    'check_config',
    'check_model_fits',
    'load_trained',
]
