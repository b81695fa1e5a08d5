"""How each operator that our models use is written in ONNX (operator set 17).

Each function takes the writer, the node and its arguments, and gives the name of the result (a
tuple of names where there are several). Axes may be negative, as ONNX has it too.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

OPSET = 17
OPS: dict[str, Callable[..., Any]] = {}
ALL = 2**63 - 1  # the end of an axis
ONNX_TYPES = {
    torch.float32: 1,
    torch.uint8: 2,
    torch.int32: 6,
    torch.int64: 7,
    torch.bool: 9,
    torch.float64: 11,
}


def writes(*names: str) -> Callable[[Callable], Callable]:
    """Register how operators are written."""

    def register(function: Callable) -> Callable:
        OPS.update(dict.fromkeys(names, function))
        return function

    return register


def rank(node: Node) -> int:
    """Number of axes."""
    return node.meta['val'].ndim


def is_empty(x: Tensor) -> bool:
    """Whether there is nothing in it, whatever the batch (class tokens of a model without)."""
    return any(isinstance(n, int) and n == 0 for n in getattr(x, 'shape', ()))


@writes('alias', 'contiguous', 'clone', 'detach', 'detach_', 'dropout', 'lift_fresh_copy')
def _same(w, node, x, *_, **__):
    return w.name(x)


@writes('to', '_to_copy')
def _to(w, node, x, *_, **__):
    before, after = x.meta['val'].dtype, node.meta['val'].dtype
    return w.name(x) if before == after else w.emit('Cast', x, to=ONNX_TYPES[after])


@writes('view', 'reshape', 'flatten', 'unflatten', 'unsqueeze', 'squeeze', '_unsafe_view')
def _reshape(w, node, x, *_, **__):
    return w.emit('Reshape', x, w.target(node))


@writes('permute')
def _permute(w, node, x, dims):
    return w.emit('Transpose', x, perm=[d % rank(x) for d in dims])


@writes('transpose')
def _transpose(w, node, x, a, b):
    perm = list(range(rank(x)))
    perm[a], perm[b] = perm[b], perm[a]
    return w.emit('Transpose', x, perm=perm)


@writes('t')
def _t(w, node, x):
    return w.emit('Transpose', x, perm=[1, 0])


@writes('expand', 'expand_as')
def _expand(w, node, x, *_, **__):
    """Sizes that are there already are 1 in the target: ONNX takes the larger of the two."""
    old = [*(1,) * (rank(node) - rank(x)), *x.meta['val'].shape]
    new = list(node.meta['val'].shape)
    grows = [a != b for a, b in zip(old, new)]
    if not any(grows):
        return w.name(x)
    if all(isinstance(n, int) for n, grow in zip(new, grows) if grow):
        return w.emit('Expand', x, [n if grow else 1 for n, grow in zip(new, grows)])
    return w.emit('Expand', x, w.sizes(node))


def _operands(w, node, a, b) -> list[str]:
    return [_to(w, node, v) if isinstance(v, Node) else w.number(v, node) for v in (a, b)]


def _elementwise(kind: str) -> Callable[..., str]:
    def write(w, node, a, b):
        return w.emit(kind, *_operands(w, node, a, b))

    return write


for _name, _kind in dict(add='Add', sub='Sub', mul='Mul', div='Div', remainder='Mod').items():
    writes(_name)(_elementwise(_kind))


@writes('floor_divide')
def _floor_divide(w, node, a, b):
    """ONNX cuts the decimals of a quotient of integers; what is divisible has none."""
    a, b = _operands(w, node, a, b)
    return w.emit('Div', w.emit('Sub', a, w.emit('Mod', a, b)), b)


@writes('clamp_min')
def _clamp_min(w, node, x, least):
    return w.emit('Max', x, w.number(least, node))


@writes('gelu')
def _gelu(w, node, x, approximate='none'):
    if approximate != 'none':
        raise ValueError(f'GELU with approximate={approximate!r} cannot be written to ONNX')
    erf = w.emit('Erf', w.emit('Div', x, w.number(math.sqrt(2), node)))
    product = w.emit('Mul', x, w.emit('Add', erf, w.number(1, node)))
    return w.emit('Mul', product, w.number(0.5, node))


@writes('silu')
def _silu(w, node, x):
    return w.emit('Mul', x, w.emit('Sigmoid', x))


@writes('matmul')
def _matmul(w, node, a, b):
    return w.emit('MatMul', a, b)


@writes('linear')
def _linear(w, node, x, weight, bias=None):
    out = w.emit('MatMul', x, w.transposed(weight))
    return out if bias is None else w.emit('Add', out, bias)


@writes('layer_norm')
def _layer_norm(w, node, x, shape, weight=None, bias=None, eps=1e-5, *_):
    inputs = [x, torch.ones(shape) if weight is None else weight]
    inputs += [] if bias is None else [bias]
    return w.emit('LayerNormalization', *inputs, axis=-len(shape), epsilon=eps)


@writes('scaled_dot_product_attention')
def _attention(w, node, q, k, v, mask=None, dropout=0.0, is_causal=False, scale=None, **_):
    if is_causal or (mask is not None and not mask.meta['val'].dtype.is_floating_point):
        raise ValueError('attention with a boolean or causal mask cannot be written to ONNX')
    scale = scale or q.meta['val'].shape[-1] ** -0.5
    perm = [*range(rank(k) - 2), rank(k) - 1, rank(k) - 2]
    scaled = w.emit('Mul', q, w.number(scale, node))
    logits = w.emit('MatMul', scaled, w.emit('Transpose', k, perm=perm))
    if mask is not None:
        logits = w.emit('Add', logits, mask)
    return w.emit('MatMul', w.emit('Softmax', logits, axis=-1), v)


@writes('mean')
def _mean(w, node, x, dims, keepdim=False):
    return w.emit('ReduceMean', x, axes=list(dims), keepdims=int(keepdim))


@writes('amax')
def _amax(w, node, x, dims, keepdim=False):
    return w.emit('ReduceMax', x, axes=list(dims), keepdims=int(keepdim))


@writes('linalg_vector_norm')
def _norm(w, node, x, order=2, dims=(-1,), keepdim=False, **_):
    if order != 2:
        raise ValueError(f'a norm of order {order} cannot be written to ONNX')
    return w.emit('ReduceL2', x, axes=list(dims), keepdims=int(keepdim))


@writes('avg_pool2d')
def _avg_pool(w, node, x, kernel, stride=()):
    return w.emit('AveragePool', x, kernel_shape=kernel, strides=stride or kernel)


@writes('adaptive_avg_pool2d')
def _global_pool(w, node, x, size):
    if list(size) != [1, 1]:
        raise ValueError(f'adaptive pooling to {size} cannot be written to ONNX, only to 1 x 1')
    return w.emit('GlobalAveragePool', x)


@writes('max_pool2d')
def _max_pool(w, node, x, kernel, stride=()):
    return w.emit('MaxPool', x, kernel_shape=kernel, strides=stride or kernel)


@writes('cat')
def _cat(w, node, tensors, dim=0):
    parts = [x for x in tensors if not is_empty(x.meta['val'])]
    return w.name(parts[0]) if len(parts) == 1 else w.emit('Concat', *parts, axis=dim)


@writes('pad')
def _pad(w, node, x, pads, mode='constant', value=None):
    if mode != 'constant':
        raise ValueError(f'padding of mode {mode!r} cannot be written to ONNX')
    before, after = [0] * rank(x), [0] * rank(x)
    for i in range(len(pads) // 2):  # the last axis comes first
        before[-1 - i], after[-1 - i] = pads[2 * i : 2 * i + 2]
    return w.emit('Pad', x, before + after, w.number(value or 0, node))


@writes('slice')
def _slice(w, node, x, dim=0, start=None, end=None, step=1):
    if list(node.meta['val'].shape) == list(x.meta['val'].shape):
        return w.name(x)
    return w.emit('Slice', x, [start or 0], [ALL if end is None else end], [dim], [step])


@writes('select')
def _select(w, node, x, dim, index):
    return w.emit('Gather', x, index, axis=dim)


@writes('unbind')
def _unbind(w, node, x, dim=0):
    return tuple(w.emit('Gather', x, i, axis=dim) for i in range(len(node.meta['val'])))


@writes('chunk', 'split', 'split_with_sizes')
def _split(w, node, x, _, dim=0):
    sizes = [part.shape[dim] for part in node.meta['val']]
    filled = [n for n in sizes if n != 0]
    if len(filled) == 1:
        names = [w.name(x)]
    else:
        names = w.emit('Split', x, filled, outputs=len(filled), axis=dim)
    names = iter(names)
    return tuple(None if n == 0 else next(names) for n in sizes)


@writes('getitem')
def _getitem(w, node, parts, index):
    return w.resolve(parts)[index]


@writes('index')
def _index(w, node, x, indices):
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    if len(axes) != 1:
        raise ValueError('indexing by several tensors cannot be written to ONNX')
    return w.emit('Gather', x, indices[axes[0]], axis=axes[0])


@writes('index_select')
def _index_select(w, node, x, dim, index):
    return w.emit('Gather', x, index, axis=dim)


@writes('gather')
def _gather(w, node, x, dim, index):
    return w.emit('GatherElements', x, index, axis=dim)


@writes('scatter')
def _scatter(w, node, x, dim, index, value):
    filled = w.emit('Expand', w.number(value, x), w.emit('Shape', index))
    return w.emit('ScatterElements', x, index, filled, axis=dim)


@writes('topk')
def _topk(w, node, x, k, dim=-1, largest=True, _=True):
    return w.emit('TopK', x, [k], outputs=2, axis=dim, largest=int(largest))


@writes('argsort')
def _argsort(w, node, x, dim=-1, descending=False, stable=True):
    """TopK keeps the order of equal values, so it is stable; ONNX Runtime has none for bytes."""
    length = x.meta['val'].shape[dim]
    if x.meta['val'].dtype == torch.uint8:
        x = w.emit('Cast', x, to=ONNX_TYPES[torch.int64])
    return w.emit('TopK', x, [length], outputs=2, axis=dim, largest=int(descending))[1]


@writes('zeros_like', 'new_zeros', 'zeros')
def _zeros(w, node, *_, **__):
    return w.emit('Expand', w.number(0, node), w.sizes(node))


@writes('arange')
def _arange(w, node, *_, **__):
    """Of the images of a batch; others are constants."""
    stop = w.emit('Squeeze', w.batch(node.meta['val'].shape[0]), [0])
    return w.emit('Range', 0, stop, 1)
