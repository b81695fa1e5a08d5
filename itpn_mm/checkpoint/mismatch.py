"""How the model of a checkpoint differs from the one that is to load it, in arguments."""

from collections.abc import Callable
from typing import Any

from .architecture import LAYER_SCALE, State, flatten, inspect_backbone, inspect_neck

# What must agree between checkpoint and model, and the argument that sets it. The grid and the
# relative position may differ: they are resized, or start anew.
_ARCH = ('embed_dims', 'depths', 'num_heads')
_SAME_ARGUMENTS = {
    'backbone': (
        'in_channels',
        'patch_size',
        'patch_norm',
        'stem_mlp_ratio',
        'mlp_ratio',
        'qkv_bias',
        'use_abs_pos_emb',
        'sub_norm',
        'swiglu',
        'cls_token',
    ),
    'neck': ('in_channels', 'out_channels', 'depth', 'mlp_ratio', 'bias'),
}
_READERS: dict[str, Callable[[State], dict[str, Any]]] = {
    'backbone': inspect_backbone,
    'neck': inspect_neck,
}


def explain_mismatch(part: str, checkpoint: State, model: State, model_name: str) -> str | None:
    """Say which arguments of a model do not fit a checkpoint.

    Args:
        part: ``'backbone'`` or ``'neck'``.
        checkpoint: The part's tensors in the checkpoint, without prefix.
        model: State dict of the model.
        model_name: Its class, for the message.

    Returns:
        E.g. "has out_channels=512 but TransformerPyramidNeck was built with out_channels=256: set
        neck.out_channels=512"; ``None`` if nothing that can be read off the tensors differs.
    """
    found, built = (_READERS[part](state) for state in (checkpoint, model))
    if not found or not built:
        return None
    if found.get('type') != built.get('type'):
        return (
            f'is of a {found["type"]} but the model has a {model_name}: '
            f"set {part}.type='itpn_mm.{found['type']}'"
        )
    has, given, remedy = [], [], []

    def compare(name: str) -> bool:
        a, b = _common(found[name], built[name])
        if a is None or b is None or a == b:
            return False
        has.append(f'{name}={a}')
        given.append(f'{name}={b}')
        return True

    if part == 'backbone':
        arch = [f'{name}={found[name]}' for name in _ARCH if compare(name)]
        if arch:
            remedy.append(f'set backbone.arch to one with {", ".join(arch)}')
        if compare('layer_scale'):
            value = LAYER_SCALE if found['layer_scale'] else None
            remedy.append(f'set backbone.layer_scale_init_value={value}')
    for name in _SAME_ARGUMENTS[part]:
        if compare(name):
            remedy.append(f'set {part}.{name}={_common(found[name], built[name])[0]}')
    if not remedy:
        return None
    return (
        f'has {", ".join(has)} but {model_name} was built with {", ".join(given)}: '
        f'{", ".join(remedy)}'
    )


def _common(a: Any, b: Any) -> tuple[Any, Any]:
    """Two values to compare; those given by stride are cut down to the strides that both have."""
    if not isinstance(a, dict):
        return a, b
    strides = sorted(a.keys() & b.keys())
    if not strides:
        return None, None
    return tuple(flatten([values[stride] for stride in strides]) for values in (a, b))
