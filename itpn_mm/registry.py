"""The registries of the scope `itpn_mm`, children of mmengine's.

This module imports mmengine and nothing else: mmengine imports it when it first meets a type
`itpn_mm.Name`, and hides an ImportError raised in here. The `locations` are imported then; an
ImportError in one of them stops every build of this scope, so none of them may need another
OpenMMLab package. `itpn_mm.optional` is the door to the parts that do.
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import Registry

__all__ = ['HOOKS', 'MODELS', 'OPTIM_WRAPPER_CONSTRUCTORS', 'STRATEGIES']

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='itpn_mm',
    locations=['itpn_mm.backbones', 'itpn_mm.necks', 'itpn_mm.acceleration', 'itpn_mm.optional'],
)
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='itpn_mm',
    locations=['itpn_mm.engine'],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='itpn_mm',
    locations=['itpn_mm.engine'],
)
STRATEGIES = Registry(
    'strategy',
    parent=MMENGINE_STRATEGIES,
    scope='itpn_mm',
    locations=['itpn_mm.engine'],
)
