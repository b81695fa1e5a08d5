"""Linear layers: a bias that the GEMM itself adds where that helps, and weights to start from."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

# oneDNN's linear layer, which torch.compile uses as well. ATen copies the bias into the output
# before a GEMM on a CPU, one more pass over memory.
_FUSED = getattr(torch.ops.mkldnn, '_linear_pointwise', None)
_HAS_FUSED = _FUSED is not None and torch.backends.mkldnn.is_available()


def is_eager_cpu_inference(x: Tensor) -> bool:
    """Whether nothing is kept for a backward pass, on a CPU, and nothing but the CPU runs it."""
    if torch.is_grad_enabled() or x.device.type != 'cpu':
        return False
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``, in float32 inference on a CPU by oneDNN."""
    fused = (
        _HAS_FUSED
        and is_eager_cpu_inference(x)
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled('cpu')
        and _get_current_dispatch_mode() is None  # such as a FLOP counter, which does not know it
    )
    return _FUSED(x, weight, bias, 'none', [], 'none') if fused else F.linear(x, weight, bias)


def init_linear(module: nn.Module) -> None:
    """For ``apply``: linear layers start as in the released models, all else as it is.

    Truncated normal of deviation 0.02, and no bias.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`: (..., C_in) -> (..., C_out)."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
