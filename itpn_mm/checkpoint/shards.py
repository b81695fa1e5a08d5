"""Puts together what FSDP saved in pieces, a file for each process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def shard_files(path: object) -> list[Path]:
    """The files `rank0.pth`, `rank1.pth`, ... in the folder `path`; none if it is anything else."""
    if not isinstance(path, (str, Path)):
        return []
    files = [f for f in Path(path).glob('rank*.pth') if f.stem.removeprefix('rank').isdigit()]
    return sorted(files, key=lambda file: int(file.stem.removeprefix('rank')))


def merge_shards(shards: Sequence[Any], source: object) -> dict[str, Tensor]:
    """The state dict of the whole model out of the files of all processes, in their order.

    Only weights and buffers: state of the optimizer goes on with as many processes as before.

    Args:
        shards: What `itpn_mm.FSDPStrategy` wrote with `state_dict_cfg='local'`.
        source: Where from, for messages.

    Raises:
        ValueError: There is no file of a process, or something else wrote them.
    """
    if not all(isinstance(s, dict) and 'shapes' in s.get('meta', {}) for s in shards):
        raise ValueError(
            f"{source}: its files have no `meta['shapes']`, so they cannot be put together; train "
            "with `strategy=dict(type='itpn_mm.FSDPStrategy')`"
        )
    states = [shard['state_dict'] for shard in shards]
    return {
        name: _merge([state[name] for state in states], torch.Size(shape), f'{source}: `{name}`')
        for name, shape in shards[0]['meta']['shapes'].items()
    }


def _merge(pieces: list[Tensor], shape: torch.Size, what: str) -> Tensor:
    if all(piece.shape == shape for piece in pieces):
        return pieces[0]  # a buffer, which all processes have
    flat = torch.cat([piece.flatten() for piece in pieces])
    if flat.numel() != shape.numel():
        raise ValueError(
            f'{what} has {flat.numel()} of {shape.numel()} values in {len(pieces)} files; there '
            'must be one for each process of the run'
        )
    return flat.view(shape)
