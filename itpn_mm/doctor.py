"""Reports what is installed, what each part of itpn_mm needs, and the command that mends a lack.

Nothing but the standard library is imported at the top: it has to work where torch is missing.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from .hosts import DISTRIBUTIONS, PARTS, STACKS, is_installed
from .version import __version__

PYTHON_RANGE = ((3, 10), (3, 12))
CORE = ('torch', 'safetensors', 'mmengine')
PIP = f'{sys.executable} -m pip install'
CORE_MODULES = ('itpn_mm.backbones', 'itpn_mm.necks', 'itpn_mm.acceleration', 'itpn_mm.engine')


@dataclass
class Package:
    """An import name: the distributions found for it, and the error its import gave, if any."""

    name: str
    found: dict[str, str]
    error: str | None = None

    @property
    def works(self) -> bool:
        return self.error is None


def find_distributions(name: str) -> dict[str, str]:
    """Return {distribution: version} of what is installed for import name `name`."""
    found = {}
    for entry in DISTRIBUTIONS[name].values():
        if entry is not None:
            try:
                found[entry[0]] = version(entry[0])
            except PackageNotFoundError:
                continue
    return found


def try_import(name: str) -> str | None:
    """Import `name` and return what went wrong in one line, or None."""
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever a broken package raises is what we are here to report
        return f'{type(error).__name__}: {first_line(error)}'
    return None


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else 'no message'


def inspect_package(name: str) -> Package:
    """Look for the package `name` and import it."""
    if not is_installed(name):
        return Package(name, find_distributions(name), 'not installed')
    return Package(name, find_distributions(name), try_import(name))


def find_stack() -> str:
    """Tell which of `STACKS` this environment follows; the default one if it has none."""
    names = [name for name in DISTRIBUTIONS if name.startswith('mm')]
    has = {
        stack: any((DISTRIBUTIONS[n][stack] or ('',))[0] in find_distributions(n) for n in names)
        for stack in STACKS
    }
    return 'openmmlab' if has['openmmlab'] and not has['onedl'] else 'onedl'


def check_operators(device: str = 'cpu') -> str | None:
    """Call an operator of mmcv on `device` and return what went wrong in one line, or None."""
    try:
        import torch
        from mmcv.ops import nms

        boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.9]], device=device)
        kept = nms(boxes, torch.tensor([0.9, 0.8], device=device), 0.5)[1]
        return None if kept.tolist() == [0] else f'nms keeps {kept.tolist()} instead of [0]'
    except Exception as error:
        return f'{type(error).__name__}: {first_line(error)}'


def find_gpu() -> str | None:
    """Return the name of the GPU that torch can compute on, or None."""
    try:
        import torch

        if torch.cuda.is_available():
            torch.zeros(1, device='cuda').add_(1)
            return torch.cuda.get_device_name()
    except Exception as error:
        return f'not usable, {first_line(error)}'
    return None


def install_command(names: list[str], stack: str) -> str:
    """Return the command that installs the packages `names` of `stack` into this environment."""
    pins = ['=='.join(entry) for name in names if (entry := DISTRIBUTIONS[name][stack])]
    return f'{PIP} {" ".join(pins)}'


def build_command(stack: str, again: bool) -> str:
    """Return the command that compiles mmcv of `stack` with its operators.

    With build isolation it would silently be built without them; when it is there already
    (`again`), nothing but it is to be replaced.
    """
    options = '--no-build-isolation --no-cache-dir' + again * ' --force-reinstall --no-deps'
    return (
        f'{PIP} "setuptools>=80,<81" wheel ninja psutil && '
        f'MMCV_WITH_OPS=1 {install_command(["mmcv"], stack).replace(PIP, f"{PIP} {options}")}'
    )


def describe(package: Package, stack: str) -> str:
    """One line on `package`: distribution, version, and what is out of the ordinary."""
    entry = DISTRIBUTIONS[package.name][stack]
    if package.error == 'not installed':
        return 'not installed' if entry else 'not installed (this stack has none)'
    parts = [' and '.join(f'{dist} {v}' for dist, v in package.found.items()) or 'unknown version']
    if entry and entry[1] not in {v.split('+')[0] for v in package.found.values()}:
        parts.append(f'tested with {entry[1]}')
    if package.error:
        parts.append(f'BROKEN: {package.error}')
    return '; '.join(parts)


def report_parts(packages: dict[str, Package], operators: str | None) -> tuple[bool, list[str]]:
    """Return whether the core runs, and a line for each part of itpn_mm."""
    lacking = [name for name in CORE if not packages[name].works]
    errors = [] if lacking else [e for module in CORE_MODULES if (e := try_import(module))]
    core = not lacking and not errors
    lines = [line('backbones, pyramid', CORE, lacking, errors)]
    for part in PARTS:
        lacking = [name for name in (*CORE, *part.hosts) if not packages[name].works]
        errors = []
        if not lacking and 'mmdet' in part.hosts and operators:
            errors.append('the operators of mmcv do not load')
        elif not lacking and part.module and (error := try_import(part.module)):
            errors.append(error)
        lines.append(line(part.name, part.hosts, lacking, errors))
    return core, lines


def line(name: str, needs: tuple[str, ...], lacking: list[str], errors: list[str]) -> str:
    state = 'runs'
    if lacking:
        state = f'CANNOT RUN, lacks {", ".join(lacking)}'
    elif errors:
        state = f'CANNOT RUN, {errors[0]}'
    return f'  {name:20} {state} (needs {", ".join(needs)})'


def find_remedies(packages: dict[str, Package], operators: str | None, stack: str) -> list[str]:
    """Return what to do, in order: one command or sentence each."""
    remedies = []
    low, high = PYTHON_RANGE
    if not low <= sys.version_info[:2] <= high:
        remedies.append('use Python 3.10, 3.11 or 3.12: PYTHON=python3.11 bash tools/setup_env.sh')
    for package in packages.values():
        if len(package.found) > 1:
            remedies.append(
                f'{sys.executable} -m pip uninstall {" ".join(package.found)}  # these overwrite '
                f'each other; then run the doctor again'
            )
    lacking = [name for name, p in packages.items() if not p.works and DISTRIBUTIONS[name][stack]]
    # In the order of need: mmcv compiles against torch, the others want mmcv.
    early = [n for n in lacking if n == 'mmengine' or not n.startswith('mm')]
    if early:
        remedies.append(install_command(early, stack))
    if 'mmcv' in lacking or operators:
        remedies.append(build_command(stack, again=bool(packages['mmcv'].found)))
    late = [n for n in lacking if n not in early and n != 'mmcv']
    if late:
        remedies.append(install_command(late, stack))
    if remedies:
        option = '' if stack == 'onedl' else f' --stack {stack}'
        remedies.append(f'or, in a clone of itpn_mm: bash tools/setup_env.sh{option}')
    return remedies


def main() -> int:
    """Print the report; return 1 if the core of itpn_mm cannot run here, else 0."""
    stack = find_stack()
    packages = {name: inspect_package(name) for name in DISTRIBUTIONS}
    gpu = find_gpu() if packages['torch'].works else None
    operators = check_operators() if packages['mmcv'].works else None
    print(f'itpn_mm {__version__}, packages of the stack {stack}\n')
    print(f'  {"Python":12} {sys.version.split()[0]}  {sys.executable}')
    for package in packages.values():
        print(f'  {package.name:12} {describe(package, stack)}')
    if packages['mmcv'].works:
        print(f'  {"mmcv.ops":12} {operators or "load and work on the CPU"}')
        if gpu and not operators:
            print(f'  {"":12} on the GPU: {check_operators("cuda") or "work"}')
    print(f'  {"GPU":12} {gpu or "none, computing on the CPU"}\n')
    core, lines = report_parts(packages, operators)
    print(*lines, sep='\n')
    remedies = find_remedies(packages, operators, stack)
    if remedies:
        print('\nTo mend it:')
        print(*(f'  {remedy}' for remedy in remedies), sep='\n')
    return 0 if core else 1
