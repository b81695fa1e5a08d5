"""What is public: the `__all__` of each subpackage, of `recipes` and of `registry`."""

import importlib
import inspect
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import itpn_mm
from itpn_mm import registry
from itpn_mm.hosts import PARTS, is_installed

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'itpn_mm'
SUBPACKAGES = sorted(path.parent.name for path in PACKAGE.glob('*/__init__.py'))
PUBLIC = [*SUBPACKAGES, 'recipes', 'registry']
HOSTS = {part.module: part.hosts for part in PARTS} | {'itpn_mm.maskdino': ('mmcv', 'mmdet')}
# Public classes that no config names: what functions return, bases that hold arguments of others.
# Those of these subpackages are never named.
NOT_REGISTERED = {
    'acceleration': {'Departure'},
    'export': {'Exported', 'ExportPart'},
    'pretraining': {'FrozenTeacher', 'LevelReader', 'PatchMask'},
}
NEVER_REGISTERED = ('checkpoint', 'layers', 'maskdino', 'recipes', 'registry')
# Where a name that is public is used.
FOLDERS = {'docs': ('.md',), 'configs': ('.md', '.py'), 'tools': ('.py',), 'itpn_mm': ('.py',)}
# What an import of the light part must not bring along.
HEAVY = ('mmcv', 'mmdet', 'mmpretrain', 'mmrotate', 'mmseg', 'onnx', 'onnxruntime', 'scipy')


def load(name: str) -> ModuleType:
    """Import a public module, or skip the test if its packages are not here."""
    module = f'itpn_mm.{name}'
    if missing := [host for host in HOSTS.get(module, ()) if not is_installed(host)]:
        pytest.skip(f'{missing} not installed')
    return importlib.import_module(module)


def test_every_subpackage_is_found():
    assert len(SUBPACKAGES) == 11


@pytest.mark.parametrize('name', PUBLIC)
def test_all_is_what_there_is(name):
    module = load(name)
    listed = module.__all__
    assert len(set(listed)) == len(listed)
    bound = {
        key
        for key, value in vars(module).items()
        if not key.startswith('_') and not inspect.ismodule(value)
    }
    if name in SUBPACKAGES:
        # A name like that of a file of the same folder would hide the file, or be hidden by it.
        assert not set(listed) & {path.stem for path in (PACKAGE / name).glob('*.py')}
        # They import nothing but what they list.
        assert bound == set(listed)
    assert set(listed) <= bound


@pytest.mark.parametrize('name', PUBLIC)
def test_public_names_say_what_they_are(name):
    module = load(name)
    assert module.__doc__
    for key in module.__all__:
        value = getattr(module, key)
        if inspect.isclass(value) or inspect.isroutine(value):
            # Not that of a base class, or the signature that a dataclass gives itself.
            text = vars(value).get('__doc__') if inspect.isclass(value) else value.__doc__
            assert text and not text.startswith(f'{key}('), f'{name}.{key} has no docstring'


@pytest.mark.parametrize('name', PUBLIC)
def test_public_names_have_a_user(name):
    """In a text, config or command, in another part, or in another public name of this one."""
    module = load(name)
    own = PACKAGE / name if name in SUBPACKAGES else PACKAGE / f'{name}.py'
    files = [ROOT / 'README.md']
    for folder, suffixes in FOLDERS.items():
        files += [path for path in (ROOT / folder).rglob('*') if path.suffix in suffixes]
    users = [p for p in files if p != own and own not in p.parents and p.name != '__init__.py']
    used = set().union(*map(words_of, users))
    sources = {
        key: words_in(inspect.getsource(value))
        for key, value in vars(module).items()
        if key in module.__all__ and (inspect.isclass(value) or inspect.isroutine(value))
    }
    for key in set(module.__all__) - used:
        assert any(key in words for other, words in sources.items() if other != key), key


def words_in(text: str) -> frozenset[str]:
    return frozenset(re.findall(r'\w+', text))


@cache
def words_of(path: Path) -> frozenset[str]:
    return words_in(path.read_text(encoding='utf8'))


@pytest.mark.parametrize('name', PUBLIC)
def test_registered_names_are_the_public_classes(name):
    module = load(name)
    registries = [getattr(registry, key) for key in registry.__all__]
    for found in registries:
        found.import_from_location()
    registered = {
        key: value
        for found in registries
        for key, value in found.module_dict.items()
        if value.__module__.startswith(f'{module.__name__}.')
    }
    assert all(getattr(module, key) is value for key, value in registered.items())
    classes = {key for key in module.__all__ if inspect.isclass(getattr(module, key))}
    if name in NEVER_REGISTERED:
        assert registered == {}
    else:
        functions = {'TokenMigration'} & set(module.__all__)  # registered, though no class
        assert set(registered) == (classes | functions) - NOT_REGISTERED.get(name, set())


def test_importing_the_package_imports_nothing():
    script = 'import sys, itpn_mm; print(sorted({"torch", "mmengine", "numpy"} & set(sys.modules)))'
    result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert result.stdout.strip() == '[]', result.stderr
    assert itpn_mm.__all__ == ['__version__']


def test_importing_the_light_parts_needs_torch_and_mmengine():
    light = [f'itpn_mm.{name}' for name in PUBLIC if f'itpn_mm.{name}' not in HOSTS]
    assert len(light) >= 9
    script = (
        f'import sys, {", ".join(light)}\n'
        f'print(sorted({set(HEAVY)} & {{name.split(".")[0] for name in sys.modules}}))'
    )
    result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert result.stdout.strip() == '[]', result.stderr
