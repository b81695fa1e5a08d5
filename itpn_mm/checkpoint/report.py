"""What translating the names of a checkpoint did with each of them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class RemapReport:
    """What :func:`itpn_mm.checkpoint.remap` did with every name.

    Args:
        layout: ``'authors'`` (a file of the authors), ``'maskdino'`` (a released MaskDINO),
            ``'itpn_mm'`` (ours) or ``'unknown'``.
        renamed: New name of each name that was kept, also where it stays the same; several new
            names of one are joined by commas.
        dropped: Names left out on purpose, with the reason.
        unexplained: Names that no rule knows; they are left out.
        created: New names without an old one, such as the indices that the authors' models save.
        arguments: Arguments of a model that its weights need and do not tell.
    """

    layout: str
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unexplained: list[str] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)

    def raise_if_unexplained(self, source: object) -> None:
        """Refuse a file with unexplained names: what they hold would be lost.

        Args:
            source: The file, for the message.

        Raises:
            ValueError: There are such names.
        """
        if not self.unexplained:
            return
        ask = 'is it another architecture?'
        if self.layout == 'authors':
            looks = 'looks like an iTPN file of the authors'
        elif self.layout == 'maskdino':
            looks = 'looks like a MaskDINO of its authors'
        else:
            looks, ask = 'cannot become a file of the authors', 'their models have no such part'
        raise ValueError(
            f'{source}: {looks}, but {len(self.unexplained)} of its names are unknown: '
            f'{shorten(self.unexplained)}; {ask}'
        )


def shorten(names: Sequence[str], limit: int = 4) -> str:
    """Join the first ``limit`` names and count the rest."""
    text = ', '.join(names[:limit])
    return text if len(names) <= limit else f'{text}, ... ({len(names)} in all)'


def find_reason(name: str, reasons: Mapping[str, str]) -> str | None:
    """The reason whose pattern matches the name, ``None`` if there is none."""
    return next((why for pattern, why in reasons.items() if re.fullmatch(pattern, name)), None)
