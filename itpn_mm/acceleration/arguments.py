"""Checks of what :func:`TokenMigration` is told about windows and layers."""

from collections.abc import Sequence

from itpn_mm.layers.arguments import check_flags, is_whole

REL_POS_KINDS = (None, 'window', 'all')


def check_arguments(
    window_size: int,
    window_attention: bool,
    global_layers: Sequence[int],
    gathering: bool,
    rel_pos_bias: str | None,
) -> None:
    """Check each argument, and that those which need windows or gathering tokens have them.

    Raises:
        ValueError: One does not fit.
    """
    check_flags(window_attention=window_attention, gathering=gathering)
    if not isinstance(global_layers, Sequence):
        raise ValueError(f'`global_layers` must be a list of layers, but got {global_layers!r}')
    if not is_whole(window_size) or window_size < 2:
        raise ValueError(
            f'`window_size` must be a number of at least 2 tokens, but got {window_size!r}'
        )
    if rel_pos_bias not in REL_POS_KINDS:
        raise ValueError(f'`rel_pos_bias` must be one of {REL_POS_KINDS}, but got {rel_pos_bias!r}')
    if not window_attention:
        for name, value, why in (
            ('gathering', gathering, 'without windows every token sees all others already'),
            ('rel_pos_bias', rel_pos_bias, 'it is a bias of the attention in windows'),
            ('global_layers', list(global_layers), 'without windows all layers are global'),
        ):
            if value:
                raise ValueError(f'`{name}={value!r}` needs `window_attention=True`: {why}')
    if rel_pos_bias == 'all' and not gathering:
        raise ValueError("`rel_pos_bias='all'` needs `gathering=True`; without it, take 'window'")


def parse_layers(layers: Sequence[int], depth: int, name: str) -> list[int]:
    """A rising list of layers.

    Raises:
        ValueError: It is empty, repeats a layer or names one that is not there.
    """
    valid = isinstance(layers, Sequence) and all(
        is_whole(layer) and 0 <= layer < depth for layer in layers
    )
    if not valid or not layers or len(set(layers)) < len(layers):
        raise ValueError(
            f'{name} must be different layers of 0 to {depth - 1}, at least one, but got {layers!r}'
        )
    return sorted(layers)
