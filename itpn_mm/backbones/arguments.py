"""Checks of the arguments of a backbone; each raises a ValueError that says what would be right."""

from collections.abc import Mapping, Sequence

from itpn_mm.layers.arguments import are_sizes


def parse_arch(arch: str | dict, zoo: Mapping[str, dict]) -> dict:
    """Sizes of a backbone from its name in ``zoo`` or a dict: embed_dims, depths and num_heads."""
    if isinstance(arch, str):
        if arch not in zoo:
            raise ValueError(f'`arch` must be a dict or one of {sorted(zoo)}, but got {arch!r}')
        return zoo[arch]
    keys = {'embed_dims', 'depths', 'num_heads'}
    if not isinstance(arch, dict) or set(arch) != keys:
        raise ValueError(
            f'`arch` must be a name or a dict with exactly the keys {sorted(keys)}, '
            f'but got {arch!r}'
        )
    depths = arch['depths']
    if not are_sizes(depths) or len(depths) != 3:
        raise ValueError(
            f"`arch['depths']` must be three numbers of at least 1, but got {depths!r}"
        )
    for key in ('embed_dims', 'num_heads'):
        if not are_sizes([arch[key]]):
            raise ValueError(
                f"`arch['{key}']` must be a number of at least 1, but got {arch[key]!r}"
            )
    if arch['embed_dims'] % 4 or arch['embed_dims'] % arch['num_heads']:
        raise ValueError(
            "`arch['embed_dims']` must be a multiple of 4 and of `num_heads`, but got "
            f'{arch["embed_dims"]} '
            f'with {arch["num_heads"]} heads'
        )
    return arch


def parse_grid(img_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Patches (h, w) of images of ``img_size``, or (height, width)."""
    if not are_sizes([patch_size]) or patch_size % 4:
        raise ValueError(f'`patch_size` must be a positive multiple of 4, but got {patch_size!r}')
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    if not are_sizes(size) or len(size) != 2 or any(n % patch_size for n in size):
        raise ValueError(
            '`img_size` must be one or two positive multiples of '
            f'patch_size={patch_size}, but got {img_size!r}'
        )
    return size[0] // patch_size, size[1] // patch_size


def parse_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    """Stages to return, out of (0, 1, 2)."""
    indices = tuple(out_indices) if isinstance(out_indices, Sequence) else ()
    if not indices or indices != tuple(i for i in (0, 1, 2) if i in indices):
        raise ValueError(
            f'`out_indices` must be rising and out of (0, 1, 2), but got {out_indices!r}'
        )
    return indices


def parse_with_cp(with_cp: bool | Sequence[int]) -> tuple[int, ...]:
    """Stages whose activations are recomputed, out of (0, 1, 2); True for all, False for none."""
    if isinstance(with_cp, bool):
        return (0, 1, 2) if with_cp else ()
    stages = tuple(with_cp) if isinstance(with_cp, Sequence) else (None,)
    if stages != tuple(i for i in (0, 1, 2) if i in stages):
        raise ValueError(
            f'`with_cp` must be True, False or rising stages out of (0, 1, 2), but got {with_cp!r}'
        )
    return stages
