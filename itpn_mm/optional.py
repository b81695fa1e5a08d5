"""Imports the parts whose OpenMMLab packages are here, and registers a stub for the others.

It is the last of the registry's `locations`. It asks for the packages by name instead of catching
ImportError, which would hide an error of our own.
"""

import importlib
from typing import NoReturn

from .hosts import PARTS, Part, describe_distributions
from .registry import MODELS


def register_missing(part: Part, name: str) -> None:
    """Register under `name` a function that says which package to install when it is built."""

    def missing(*args, **kwargs) -> NoReturn:
        hosts = part.missing_hosts()
        install = ' and '.join(f'{host} (install {describe_distributions(host)})' for host in hosts)
        raise ImportError(
            f'`itpn_mm.{name}` belongs to {part.name} and needs {install}; '
            'see `python -m itpn_mm doctor`'
        )

    MODELS.register_module(name=name, module=missing)


def load_parts(parts: tuple[Part, ...] = PARTS) -> None:
    """Import every part of `parts` whose packages are installed; register stubs for the rest."""
    for part in parts:
        if not part.missing_hosts():
            if part.module is not None:
                importlib.import_module(part.module)
            continue
        for name in part.components:
            register_missing(part, name)


load_parts()
