"""Tools of a training run, for every OpenMMLab package: optimizer settings, hooks, checks."""

from .bad_samples_hook import SkipBadSamplesHook
from .checkpoint_hook import AtomicCheckpointHook
from .compile_hook import CompileHook
from .config_paths import check_config
from .ema_hook import EMATeacherHook
from .fit_state import load_trained
from .fsdp import FSDPStrategy
from .layer_decay import LayerDecayOptimWrapperConstructor
from .model_fit import check_model_fits
from .nonfinite_hook import NonFiniteHook
from .preflight import PreflightHook
from .seed_hook import SeedHook

__all__ = [
    'AtomicCheckpointHook',
    'CompileHook',
    'EMATeacherHook',
    'FSDPStrategy',
    'LayerDecayOptimWrapperConstructor',
    'NonFiniteHook',
    'PreflightHook',
    'SeedHook',
    'SkipBadSamplesHook',
    'check_config',
    'check_model_fits',
    'load_trained',
]
