"""What became of each name of a checkpoint, when it was translated and when it was loaded."""

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


@dataclass
class LoadReport:
    """What became of the tensors of a checkpoint and of the parameters of a model.

    Args:
        model: The model, e.g. its class.
        source: The checkpoint.
        loaded: Names of the model that took their value from the checkpoint, the resized ones among
            them.
        resized: Names that were resized, with the shapes before and after.
        missing: Names of the model that keep their initial value.
        unexpected: Names of the checkpoint that the model does not know.
        ignored: Names of the checkpoint left out on purpose, with the reason.
        copied: Names of the checkpoint that several parameters took, with their number.
        loaded_share: Share of the model's values that were loaded, 0 to 1.
    """

    model: str
    source: str
    loaded: list[str] = field(default_factory=list)
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    copied: dict[str, int] = field(default_factory=dict)
    loaded_share: float = 0.0

    def __str__(self) -> str:
        """One block for the log: a line each with count and the first names."""
        resized = [f'{name} {old} -> {new}' for name, (old, new) in self.resized.items()]
        lines = [
            f'{self.model} loaded from {self.source}',
            f'  loaded:     {len(self.loaded)} tensors, {self.loaded_share:.2%} of the values',
            _line('resized', resized),
            _line('missing', self.missing, ' (keep their initial values)'),
            _line('unexpected', self.unexpected, ' (in the checkpoint, not in the model)'),
            f'  ignored:    {len(self.ignored)} on purpose',
        ]
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.ignored.items():
            by_reason.setdefault(reason, []).append(name)
        lines += [f'    {reason}: {shorten(names, 2)}' for reason, names in by_reason.items()]
        lines += [f'  copied:     {name} to {n} blocks' for name, n in self.copied.items()]
        return '\n'.join(lines)


def _line(title: str, names: Sequence[str], note: str = '') -> str:
    return f'  {title + ":":<12}{len(names)}' + (f'{note}: {shorten(names)}' if names else '')


def shorten(names: Sequence[str], limit: int = 4) -> str:
    """Join the first ``limit`` names and count the rest."""
    text = ', '.join(names[:limit])
    return text if len(names) <= limit else f'{text}, ... ({len(names)} in all)'


def find_reason(name: str, reasons: Mapping[str, str]) -> str | None:
    """The reason whose pattern matches the name, ``None`` if there is none."""
    return next((why for pattern, why in reasons.items() if re.fullmatch(pattern, name)), None)
