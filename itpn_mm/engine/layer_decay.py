"""Layer-wise learning rates for a backbone that knows the depth of its parameters."""

import logging
from collections.abc import Iterator

import torch.nn as nn
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch.nn.modules.batchnorm import _NormBase

from itpn_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS

UNITS = ('block', 'attention', 'layer')
DECAY_MULTS = ('norm_decay_mult', 'bias_decay_mult', 'flat_decay_mult')
KNOWN_KEYS = (
    'layer_decay_rate',
    'unit',
    'reference_depth',
    'custom_keys',
    *DECAY_MULTS,
    'bypass_duplicate',
)
CUSTOM_MULTS = ('lr_mult', 'decay_mult')
POSITIONS_AND_TOKENS = {'pos_embed', 'cls_token', 'gathering_token', 'rel_pos', 'cross_rel_pos'}
# `_NormBase` is the common base of batch and instance norms.
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Give each layer of `model.backbone` a learning rate that falls with its distance to the end.

    It works in mmpretrain, mmdet, mmseg and mmrotate alike, because it asks the backbone and not
    the top-level model: `backbone.get_layer_depth(name, prefix='backbone.')` returns
    `(layer_id, num_layers)`. A parameter is trained with

        lr = base_lr * rate ** (num_layers - 1 - layer_id) * lr_mult

    where `rate` is `layer_decay_rate`, or with `reference_depth` what that one comes to in a model
    of another depth. The rules of the released iTPN and Fast-iTPN are those of
    `dict(unit='block', reference_depth=13)` and `dict(unit='layer')`.

    The neck is asked in the same way if it has the method, and its answer counts from its own end;
    everything else (heads, a neck without the method) has the last depth and the full rate.

    Weight decay: none for biases, norms, layer scales and other parameters of one dimension, and
    none for position embeddings, class and gathering tokens and relative position tables; the base
    value for the rest.
    Frozen parameters are left out. Parameters with equal settings share a group, so that fused
    optimizers have few of them; a group also has `lr_scale` (its `lr` over the base one),
    `layer_id` and `param_names`.

    A schedule that ends at a fraction of each layer's own rate wants `eta_min_ratio`; a plain
    `eta_min` is the same absolute floor for all layers, above the rate of the first ones.

    Args:
        optim_wrapper_cfg: As in `DefaultOptimWrapperConstructor`; `optimizer.lr` is needed.
        paramwise_cfg: The settings:

            - layer_decay_rate (float): In (0, 1]; needed.
            - unit (str): What counts as a layer: 'block' (default; a merge belongs to the block
              before it), 'attention' (only blocks with attention; all that comes before them is
              layer 0) or 'layer' (every block and every merge).
            - reference_depth (int): Number of steps, from the embedding to the head, of the model
              that `layer_decay_rate` is stated for, such as 13 for the 12 blocks of a ViT-B. The
              rate becomes `layer_decay_rate ** (reference_depth / steps)`, with
              `steps = num_layers - 1` of this model, so that the first layer gets
              `layer_decay_rate ** reference_depth` at every depth. Default None: as it is.
            - custom_keys (dict): Part of a parameter's name -> `dict(lr_mult=, decay_mult=)`; the
              longest key that fits is used. A `decay_mult` replaces the rules above, a key without
              one leaves them.
            - norm_decay_mult, bias_decay_mult, flat_decay_mult (float): Weight decay of norms,
              biases and other one-dimensional parameters as multiples of the base value; 0 each.
            - bypass_duplicate (bool): Skip a parameter that was met before under another module's
              name, instead of raising. Default False.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        cfg = self.paramwise_cfg
        unknown = sorted(set(cfg) - set(KNOWN_KEYS))
        if unknown:
            raise ValueError(f'`paramwise_cfg` has unknown keys {unknown}, known: {KNOWN_KEYS}')
        rate = cfg.get('layer_decay_rate')
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise ValueError(
                f'`paramwise_cfg.layer_decay_rate` must be a number in (0, 1], but got {rate!r}'
            )
        if cfg.get('unit', 'block') not in UNITS:
            raise ValueError(
                f'`paramwise_cfg.unit` must be one of {UNITS}, but got {cfg["unit"]!r}'
            )
        depth = cfg.get('reference_depth')
        if depth is not None and (
            isinstance(depth, bool) or not isinstance(depth, int) or depth < 1
        ):
            raise ValueError(
                '`paramwise_cfg.reference_depth` must be None or a whole number of at least 1, '
                f'but got {depth!r}'
            )
        for key, mults in cfg.get('custom_keys', {}).items():
            if not isinstance(mults, dict) or set(mults) - set(CUSTOM_MULTS):
                raise ValueError(
                    f'`paramwise_cfg.custom_keys[{key!r}]` must be a dict with keys among '
                    f'{CUSTOM_MULTS}, but got {mults!r}'
                )
        if self.base_lr is None:
            raise ValueError('`optim_wrapper.optimizer.lr` is missing, layer decay scales it')

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Append the parameter groups of `module`, the whole model, to `params`.

        Unlike the method it replaces, it is called once and not for each submodule.

        Raises:
            ValueError: `module.backbone` has no `get_layer_depth`, or modules share a parameter.
        """
        groups: dict[tuple, dict] = {}
        unused_keys = set(self.paramwise_cfg.get('custom_keys', {}))
        for owner, name, param in self._trainable_params(module):
            custom_key = self._find_custom_key(name)
            unused_keys.discard(custom_key)
            custom = self.paramwise_cfg['custom_keys'][custom_key] if custom_key else {}
            layer_id, num_layers = self._layer_depth(module, name)
            scale = self._rate(num_layers) ** (num_layers - 1 - layer_id)
            scale *= custom.get('lr_mult', 1.0)
            setting = dict(lr=self.base_lr * scale, lr_scale=scale, layer_id=layer_id)
            if self.base_wd is not None:
                mult = custom.get('decay_mult', self._decay_mult(owner, name, param))
                setting['weight_decay'] = self.base_wd * mult
            group = groups.setdefault(
                tuple(setting.values()), dict(params=[], param_names=[], **setting)
            )
            group['params'].append(param)
            group['param_names'].append(name)
        params.extend(groups.values())
        if unused_keys:
            print_log(
                f'`custom_keys` {sorted(unused_keys)} fit no trainable parameter',
                logger='current',
                level=logging.WARNING,
            )
        self._log(params)

    def _trainable_params(self, model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
        """Yield the module, full name and tensor of each parameter that is trained, once."""
        seen: dict[nn.Parameter, str] = {}
        for module_name, module in model.named_modules():
            for name, param in module.named_parameters(recurse=False):
                full_name = f'{module_name}.{name}' if module_name else name
                if not param.requires_grad:
                    continue
                if param not in seen:
                    seen[param] = full_name
                    yield module, full_name, param
                elif not self.paramwise_cfg.get('bypass_duplicate', False):
                    raise ValueError(
                        f'`{full_name}` and `{seen[param]}` are one parameter; '
                        'set `paramwise_cfg.bypass_duplicate=True` to train it as the latter'
                    )

    def _find_custom_key(self, name: str) -> str | None:
        """Return the longest custom key that is part of `name`."""
        found = [key for key in self.paramwise_cfg.get('custom_keys', {}) if key in name]
        return max(sorted(found), key=len, default=None)

    def _layer_depth(self, model: nn.Module, name: str) -> tuple[int, int]:
        """Return `(layer_id, num_layers)` of the parameter `name` of `model`."""
        # The default is not passed on, so that backbones of mmpretrain can answer too.
        unit = self.paramwise_cfg.get('unit', 'block')
        options = {} if unit == 'block' else {'unit': unit}
        backbone = getattr(model, 'backbone', None)
        if not hasattr(backbone, 'get_layer_depth'):
            found = 'no backbone' if backbone is None else f'backbone {type(backbone).__name__}'
            raise ValueError(
                f'`constructor` {type(self).__name__} needs a backbone with `get_layer_depth`, '
                f'such as itpn_mm.HiViT, but {type(model).__name__} has {found}'
            )
        # A name without the prefix, so any but the backbone's own, has the last depth.
        layer_id, num_layers = backbone.get_layer_depth(name, prefix='backbone.', **options)
        neck = getattr(model, 'neck', None)
        if name.startswith('neck.') and hasattr(neck, 'get_layer_depth'):
            neck_id, neck_layers = neck.get_layer_depth(name, prefix='neck.')
            layer_id = num_layers - neck_layers + neck_id
        return layer_id, num_layers

    def _rate(self, num_layers: int) -> float:
        """Return what the rate is multiplied by from one layer to the one before it."""
        rate, depth = (self.paramwise_cfg.get(k) for k in ('layer_decay_rate', 'reference_depth'))
        return rate if depth is None else rate ** (depth / (num_layers - 1))

    def _decay_mult(self, module: nn.Module, name: str, param: nn.Parameter) -> float:
        """Return the multiple of the base weight decay that the rules give to a parameter."""
        if is_position_or_token(name):
            return 0.0
        if isinstance(module, NORMS):
            return self.paramwise_cfg.get('norm_decay_mult', 0.0)
        if name.endswith(('.bias', '_bias')):  # `q_bias` and `v_bias` are parameters of their own
            return self.paramwise_cfg.get('bias_decay_mult', 0.0)
        if param.ndim <= 1:
            return self.paramwise_cfg.get('flat_decay_mult', 0.0)
        return 1.0

    def _log(self, groups: list[dict]) -> None:
        """Log one line for each depth."""
        lines = []
        for layer_id in sorted({group['layer_id'] for group in groups}):
            members = [group for group in groups if group['layer_id'] == layer_id]
            rates = sorted({group['lr'] for group in members})
            count = sum(len(group['params']) for group in members)
            shown = ', '.join(f'{rate:.3g}' for rate in rates)
            lines.append(f'layer {layer_id}: lr {shown}, {count} tensors')
        header = (
            f'Layer decay {self.paramwise_cfg["layer_decay_rate"]} by '
            f'{self.paramwise_cfg.get("unit", "block")}, {len(groups)} parameter groups'
        )
        print_log('\n'.join([header, *lines]), logger='current')


def is_position_or_token(name: str) -> bool:
    """Tell whether `name` is of a position or token of the backbone, which is not decayed."""
    first, *parts = name.split('.')
    return first == 'backbone' and not POSITIONS_AND_TOKENS.isdisjoint(parts)
