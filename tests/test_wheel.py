"""The built wheel in an environment of its own: what OpenMMLab's `mim` looks for is in it."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.checklist('environments')

LEFT_OUT = ('.git', '.venv*', 'data', 'work_dirs', 'tests', '*.egg-info', 'build', '__pycache__')


def run(*command) -> str:
    result = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def list_files(folder: Path) -> set[str]:
    return {
        str(p.relative_to(folder))
        for p in folder.rglob('*')
        if p.is_file() and '__pycache__' not in p.parts
    }


@pytest.fixture(scope='module')
def source(root, tmp_path_factory) -> Path:
    """A copy of the repository, in which pip may leave its build folder."""
    path = tmp_path_factory.mktemp('source') / 'itpn'
    shutil.copytree(root, path, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return path


@pytest.fixture(scope='module')
def installed(source, tmp_path_factory) -> Path:
    """The Python of a clean environment with nothing but the wheel."""
    folder = tmp_path_factory.mktemp('wheel')
    # A leftover of an earlier build must not get in.
    stale = source / 'build' / 'lib' / 'itpn_mm' / '.mim' / 'configs' / 'stale.py'
    stale.parent.mkdir(parents=True)
    stale.touch()
    pip = (sys.executable, '-m', 'pip')
    run(*pip, 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '-w', folder, source)
    venv.create(folder / 'venv', with_pip=False)
    python = folder / 'venv' / 'bin' / 'python'
    [wheel] = folder.glob('*.whl')
    run(*pip, '--python', python, 'install', '--no-deps', '--no-index', wheel)
    return python


def ask(python: Path, script: str) -> str:
    """What a script prints there; it does not see `PYTHONPATH` or the folder of the tests."""
    return run(python, '-I', '-c', script).strip()


def find_package(python: Path) -> Path:
    return Path(ask(python, 'import itpn_mm; print(itpn_mm.__path__[0])'))


def test_wheel_is_imported_without_torch(installed):
    version = ask(installed, 'import itpn_mm; print(itpn_mm.__version__)')
    from itpn_mm import __version__

    assert version == __version__
    missing = ask(installed, 'from importlib.util import find_spec; print(find_spec("torch"))')
    assert missing == 'None'  # or this test would show nothing


def test_wheel_ships_what_mim_looks_for(installed, source):
    mim = find_package(installed) / '.mim'
    for name in ('benchmarks', 'configs', 'tools'):
        files = list_files(source / name)
        assert len(files) > 5
        assert list_files(mim / name) == files
    assert (mim / 'model-index.yml').read_text() == (source / 'model-index.yml').read_text()


def test_wheel_holds_the_package_and_nothing_else(installed, source, record_figure):
    package = find_package(installed)
    files = {f for f in list_files(package) if not f.startswith('.mim')}
    assert files == list_files(source / 'itpn_mm')
    record_figure('modules in the wheel', len(files))
    names = {p.name for p in package.parent.iterdir() if not p.name.startswith('pip')}
    assert {n for n in names if not n.endswith('.dist-info')} <= {'itpn_mm', '__pycache__'}


def test_building_writes_nothing_beside_the_package(installed, source):
    assert not (source / 'itpn_mm' / '.mim').exists()


def test_doctor_of_a_bare_environment(installed):
    command = [installed, '-I', '-m', 'itpn_mm', 'doctor']
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert f'{installed} -m pip install torch==' in result.stdout


def test_metadata_asks_for_no_version(installed):
    """Whoever has an environment of their own keeps it."""
    script = 'from importlib.metadata import requires; print(*requires("itpn_mm"), sep="\\n")'
    lines = ask(installed, script).splitlines()
    assert sorted(line for line in lines if 'extra ==' not in line) == [
        'safetensors',
        'scipy',
        'torch',
    ]
    for extra in ('onedl', 'openmmlab', 'demo', 'dev'):
        assert any(f'extra == "{extra}"' in line for line in lines)
