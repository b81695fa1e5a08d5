"""From a traced program to an ONNX graph, node by node.

torch's own writers of ONNX need a further package (`onnxscript`), or take the batch of the example
for a constant where tokens migrate. Here all shapes are known from the trace: a reshape is a
constant with -1 for the batch, and nothing computes shapes at run time. What does not depend on the
images (positions of this size, the order of windows, keys averaged over heads) is evaluated once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from .ops import OPS, is_empty

# A constant that is larger than this, and than what it is made of, is made at run time (a table of
# relative positions by pairs of tokens). Else the file would be as large as the attention.
MAX_MADE_BYTES = 2**20
BATCH = 'batch'

Value = Any  # a name in the graph (str), a constant (Tensor, number, ...), or a tuple of them


class GraphWriter:
    """The ONNX nodes and constants of a program; :data:`OPS` says how each operator is written.

    Args:
        program: Traced by :func:`itpn_mm.export.trace`, so that one dimension may be dynamic, the
            batch.

    Attributes:
        nodes: ONNX nodes.
        constants: Tensors by name.
        inputs, outputs: (name in the graph, shape) with :data:`BATCH` as a size.

    Raises:
        ValueError: The program has an operator that is not in :data:`OPS`.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Tensor] = {}
        self._titles: dict[int, str] = {}  # of parameters, by the id of the tensor
        self._names: dict[Any, str] = {}  # of constants that are used, by id or content
        self._values: dict[Node, Value] = {}
        self._batch: str | None = None
        self.inputs: list[tuple[str, list[int | str]]] = []
        self.outputs: list[tuple[str, list[int | str]]] = []
        specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        for node in program.graph.nodes:
            if node.op == 'placeholder':
                self._values[node] = self._read(program, node, specs[node.name])
            elif node.op == 'call_function':
                self._values[node] = self._write(node)
            elif node.op == 'output':
                for result in node.args[0]:
                    self.outputs.append((self.name(result), self.shape(result)))

    def _read(self, program: ExportedProgram, node: Node, spec: Any) -> Value:
        if spec.kind == InputKind.USER_INPUT:
            self.inputs.append((node.name, self.shape(node)))
            return node.name
        held = program.state_dict if spec.target in program.state_dict else program.constants
        tensor = held[spec.target].detach()
        self._titles[id(tensor)] = spec.target
        return tensor

    def _write(self, node: Node) -> Value:
        if not node.users:
            return None
        op = OPS.get(getattr(node.target, '__name__', '').partition('.')[0])
        known = not any(value is None or isinstance(value, str) for value in self._flat(node))
        if known and self._is_static(node):
            value = node.target(*self.resolve(node.args), **self.resolve(node.kwargs))
            if op is None or not self._is_blown_up(node, value):
                return value
        if self._is_nothing(node):
            return None
        if op is None:
            raise ValueError(
                f'the operator {node.target} of this model cannot be written to ONNX; the parts '
                'that can are those of itpn_mm: export them alone, or take the suffix .pt2'
            )
        return op(self, node, *node.args, **node.kwargs)

    @classmethod
    def _is_nothing(cls, node: Node) -> bool:
        """Whether this is a size, or tensors without values (no class tokens): left out."""
        return all(isinstance(v, torch.SymInt) or is_empty(v) for v in cls._results(node))

    def resolve(self, value: Any) -> Any:
        """Arguments of a node with nodes replaced by their values."""
        return torch.fx.node.map_arg(value, lambda node: self._values[node])

    def _flat(self, node: Node) -> list[Value]:
        flat = []
        for value in (self._values[source] for source in node.all_input_nodes):
            flat.extend(value if isinstance(value, tuple) else [value])
        return flat

    @classmethod
    def _is_static(cls, node: Node) -> bool:
        sizes = (n for value in cls._results(node) for n in getattr(value, 'shape', ()))
        return all(isinstance(n, int) for n in sizes)

    @staticmethod
    def _results(node: Node) -> Sequence[Any]:
        """What the trace says of each result of a node: tensors without values, or a size."""
        found = node.meta.get('val')
        return found if isinstance(found, (tuple, list)) else [found]

    def _is_blown_up(self, node: Node, value: Any) -> bool:
        sources = [source.nbytes for source in self._flat(node) if isinstance(source, Tensor)]
        if not isinstance(value, Tensor) or not sources or value.nbytes <= MAX_MADE_BYTES:
            return False
        return value.nbytes > 2 * sum(sources)

    @staticmethod
    def shape(node: Node) -> list[int | str]:
        """Sizes of what a node gives, :data:`BATCH` for the dynamic one."""
        return [n if isinstance(n, int) else BATCH for n in node.meta['val'].shape]

    def target(self, node: Node) -> list[int]:
        """The shape as a reshape takes it: -1 for the dynamic size."""
        return [n if isinstance(n, int) else -1 for n in node.meta['val'].shape]

    def name(self, value: Any) -> str:
        """Name in the graph of a node or constant; numbers are of int64."""
        value = self._values[value] if isinstance(value, Node) else value
        if isinstance(value, str):
            return value
        if isinstance(value, Tensor):
            return self._name_constant(id(value), value)
        return self._name_constant(repr(value), torch.tensor(value, dtype=torch.int64))

    def number(self, value: float, like: Node) -> str:
        """A number as a constant of the type of a node."""
        dtype = like.meta['val'].dtype
        return self._name_constant((value, dtype), torch.tensor(value, dtype=dtype))

    def transposed(self, value: Any) -> str:
        """A matrix (a, b) as (b, a); what is constant is stored so."""
        value = self._values[value] if isinstance(value, Node) else value
        if isinstance(value, str):
            return self.emit('Transpose', value, perm=[1, 0])
        return self._name_constant((id(value), 't'), value.t(), self._titles.get(id(value)))

    def _name_constant(self, key: Any, tensor: Tensor, title: str | None = None) -> str:
        """The constant under this key; it is held, so that ids stay those of one tensor."""
        if key not in self._names:
            name = title or self._titles.get(id(tensor)) or f'constant_{len(self.constants)}'
            if name in self.constants:  # a weight that is used both ways
                name = f'{name}_{len(self.constants)}'
            self._names[key] = name
            self.constants[name] = tensor
        return self._names[key]

    def emit(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; gives the name of what it makes, a tuple of names for several outputs."""
        from onnx import helper

        names = [f'{kind.lower()}_{len(self.nodes)}_{i}' for i in range(outputs)]
        sources = [self.name(value) for value in inputs]
        self.nodes.append(helper.make_node(kind, sources, names, name=names[0], **attributes))
        return names[0] if outputs == 1 else tuple(names)

    def sizes(self, node: Node) -> str:
        """The shape of what a node gives as a vector of numbers, with the batch of this run."""
        parts = [
            self.name([n]) if isinstance(n, int) else self.batch(n) for n in node.meta['val'].shape
        ]
        return self.emit('Concat', *parts, axis=0)

    def batch(self, size: torch.SymInt) -> str:
        """A dynamic size, k times the batch, as a vector of one number."""
        if self._batch is None:
            shape = self.emit('Shape', self.inputs[0][0])
            self._batch = self.emit('Slice', shape, [0], [1])
        expression = size.node.expr
        [symbol] = expression.free_symbols
        factor = int(expression.subs(symbol, 1))
        if expression != factor * symbol:
            raise ValueError(f'a size of {expression} is no multiple of the batch')
        return self._batch if factor == 1 else self.emit('Mul', self._batch, [factor])
