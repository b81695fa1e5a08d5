"""Parts that stay in single precision while the rest of a model trains in half precision."""

from contextlib import AbstractContextManager, nullcontext

import torch


def single_precision(device: torch.device) -> AbstractContextManager:
    """Switch automatic mixed precision off; inputs have to be cast by the caller."""
    if device.type == 'meta':  # has no autocast
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
