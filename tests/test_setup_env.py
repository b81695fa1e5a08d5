"""tools/setup_env.sh: its refusals, and its steps with an interpreter that pretends to install."""

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytestmark = pytest.mark.checklist('environments')

KNOWN = (3, 11, 'linux', 'x86_64')  # the interpreter that the hashes are of
STEPS = ['venv', 'libraries', 'extras', 'mm-packages', 'mmcv', 'itpn_mm']
# Answers as the real interpreter does, but for `-m venv` and `-m pip`, which it notes down, and for
# the trials of what was installed, which take long. The versions that the script asks for are those
# which the environment of this test has.
FAKE_PYTHON = """#!/bin/bash
case "$1 $2" in
    "-m venv") mkdir -p "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python"; echo venv >> "$CALLS" ;;
    "-m pip") shift 2; echo "$@" >> "$CALLS"
        if [[ ${@: -2:1} == -e ]]; then echo "${@: -1}" > "$CALLS.editable"; fi ;;
    "-c import cv2"* | "- ") ;;
    *) PYTHONPATH=$(cat "$CALLS.editable" 2>/dev/null) exec {python} "$@" ;;
esac
"""
FAKE_BUILD = """
echo "mmcv $2" >> "$CALLS"
[[ ! ${BREAK-} ]] || { echo 'fatal error: Python.h: No such file or directory'; exit 1; }
mkdir -p "$(dirname "$1")/../lib/python3.11/site-packages/mmcv"
touch "$(dirname "$1")/../lib/python3.11/site-packages/mmcv/_ext.so"
"""


class Workshop:
    """A copy of what the script reads, with the fake interpreter; `run` runs the script."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.repo, self.calls = folder / 'repo', folder / 'calls'
        self.venv = folder / 'venv'
        for name in ('requirements', 'tools', 'setup.py', 'pyproject.toml', 'itpn_mm/version.py'):
            target = self.repo / name
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (root / name).is_dir() else shutil.copy
            copy(root / name, target)
        (self.repo / 'itpn_mm' / '__init__.py').touch()
        (self.repo / 'tools' / 'build_mmcv.sh').write_text(FAKE_BUILD)
        self.python = folder / 'python'
        self.python.write_text(FAKE_PYTHON.replace('{python}', sys.executable))
        self.python.chmod(0o755)

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess:
        env = {
            **os.environ,
            'ITPN_VENV': str(self.venv),
            'PYTHON': str(self.python),
            'CALLS': str(self.calls),
            **env,
        }
        self.calls.unlink(missing_ok=True)
        command = ['bash', str(self.repo / 'tools' / 'setup_env.sh'), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)

    def run_steps(self, **env: str) -> list[str]:
        """Run the script, which has to succeed, and return the steps that it did."""
        result = self.run(**env)
        assert result.returncode == 0, result.stdout + result.stderr
        return re.findall(r'^\[ *\d+s\] (\S+) done in', result.stdout, flags=re.M)


@pytest.fixture
def workshop(root, tmp_path) -> Workshop:
    return Workshop(root, tmp_path)


@pytest.fixture
def onedl(root) -> None:
    """Skip where the pinned versions of the stack are not those of this environment."""
    for line in (root / 'requirements' / 'onedl-mm.txt').read_text().split():
        name, _, pin = line.partition('==')
        try:
            found = version(name)
        except ImportError:
            found = None
        if found != pin:
            pytest.skip(f'{line} is not installed here')


def test_all_steps_then_nothing(workshop, onedl):
    assert workshop.run_steps() == STEPS
    calls = workshop.calls.read_text().splitlines()
    assert calls[0] == 'venv'
    assert 'mmcv onedl-mmcv==2.3.6' in calls
    assert calls[-1].endswith(f'--no-deps --no-build-isolation -e {workshop.repo}')
    # What this interpreter is held to, see `constraints` of the script.
    is_known = (*sys.version_info[:2], sys.platform, platform.machine()) == KNOWN
    pins = 'onedl-hashes.txt' if is_known else 'onedl-lock.txt'
    assert 'install --progress-bar off --no-deps -r /dev/fd/' in calls[1]  # pip
    assert all(pins in call for call in calls[2:] if '-r ' in call)
    again = workshop.run()
    assert 'up to date' in again.stdout
    assert not workshop.calls.exists()


def test_hashes_can_be_left_out(workshop, onedl):
    assert workshop.run_steps(ITPN_HASHES='0') == STEPS
    calls = workshop.calls.read_text()
    assert 'onedl-lock.txt' in calls and 'onedl-hashes.txt' not in calls


def test_goes_on_where_it_stopped(workshop, onedl):
    failed = workshop.run(BREAK='1')
    assert failed.returncode == 1
    assert "step 'mmcv' failed" in failed.stderr
    assert 'apt install python3-dev' in failed.stderr  # read off the log
    assert workshop.run_steps() == ['mmcv', 'itpn_mm']


def test_does_again_only_what_changed(workshop, onedl):
    workshop.run_steps()
    with (workshop.repo / 'requirements' / 'dev.txt').open('a') as file:
        file.write('# another tool\n')
    assert workshop.run_steps() == ['extras']
    with (workshop.repo / 'tools' / 'build_mmcv.sh').open('a') as file:
        file.write('# another flag\n')
    assert workshop.run_steps() == ['mmcv']


def test_believes_no_stamp_of_what_is_gone(workshop, onedl):
    workshop.run_steps()
    [operators] = workshop.venv.rglob('_ext.so')
    operators.unlink()
    assert workshop.run_steps() == ['mmcv']
    # Another clone took the environment over.
    Path(f'{workshop.calls}.editable').write_text('/nowhere')
    assert workshop.run_steps() == ['itpn_mm']
    (workshop.venv / 'bin' / 'python').unlink()
    assert workshop.run_steps()[0] == 'venv'


def test_wrong_version_is_installed_again(workshop, onedl):
    workshop.run_steps()
    lock = workshop.repo / 'requirements' / 'onedl-lock.txt'
    lock.write_text(re.sub(r'^scipy==.*', 'scipy==0.0.1', lock.read_text(), flags=re.M))
    failed = workshop.run()  # pip only pretends, so the check after it fails
    assert failed.returncode == 1
    assert 'scipy: 0.0.1 wanted' in failed.stderr


def test_stacks_do_not_share(workshop, onedl):
    workshop.run_steps()
    result = workshop.run('--stack', 'openmmlab')
    assert result.returncode == 1
    assert 'holds the stack onedl' in result.stderr and 'ITPN_VENV' in result.stderr


def test_foreign_folder_is_left_alone(workshop):
    workshop.venv.mkdir()
    (workshop.venv / 'thesis.txt').write_text('mine')
    result = workshop.run()
    assert result.returncode == 1
    assert 'not an environment made by this script' in result.stderr
    assert [p.name for p in workshop.venv.iterdir()] == ['thesis.txt']


@pytest.mark.parametrize(
    ('env', 'message'),
    [
        ({'CXX': 'no-such-compiler'}, r"no C\+\+ compiler 'no-such-compiler'.*apt install g\+\+"),
        ({'PYTHON': 'no-such-python'}, r'needs Python 3.10, 3.11 or 3.12.*python3-venv'),
    ],
)
def test_missing_tool_names_its_package(workshop, env, message):
    result = workshop.run(**env)
    assert result.returncode == 1
    assert re.search(message, result.stderr), result.stderr


@pytest.mark.parametrize(
    ('script', 'arguments', 'message'),
    [
        ('setup_env.sh', ['--fast'], "unknown argument '--fast'"),
        ('setup_env.sh', ['--stack', 'mmlab'], "must be onedl or openmmlab, got 'mmlab'"),
        ('setup_env.sh', ['--stack'], "must be onedl or openmmlab, got ''"),
        ('build_mmcv.sh', [], 'bash tools/build_mmcv.sh PYTHON SPEC BUILD_DIR'),
        ('run_tests.sh', ['--help'], 'bash tools/run_tests.sh [--slow]'),
        ('setup_env.sh', ['--help'], 'bash tools/setup_env.sh [--stack onedl|openmmlab]'),
    ],
)
def test_usage(root, script, arguments, message):
    command = ['bash', str(root / 'tools' / script), *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == (0 if '--help' in arguments else 2)
    assert message in result.stdout + result.stderr


@pytest.mark.parametrize('stack', ['onedl', 'openmmlab'])
def test_every_requirement_is_locked(root, stack):
    requirements = root / 'requirements'
    lock = (requirements / f'{stack}-lock.txt').read_text().split()
    assert all(re.fullmatch(r'[a-z0-9.-]+==[\w.]+', line) for line in lock)
    names = {line.split('==')[0] for line in lock}
    for file in ('build.txt', 'demo.txt', 'dev.txt', f'{stack}.txt'):
        listed = (requirements / file).read_text().split()
        assert listed and set(listed) <= names
    packages = (requirements / f'{stack}-mm.txt').read_text().split()
    assert all('==' in line for line in packages)


@pytest.mark.checklist('security')
def test_hashes_are_of_the_locked_versions(root):
    """Made again by a dry run of pip with `--no-deps --ignore-installed --report`, whose
    `archive_info` of each package has them; for the source of mmcv by `pip hash`."""
    requirements = root / 'requirements'
    hashed = (requirements / 'onedl-hashes.txt').read_text().splitlines()
    form = re.compile(r'([a-z0-9.-]+==[\w.]+) --hash=sha256:[0-9a-f]{64}')
    assert all(form.fullmatch(line) for line in hashed)
    locked = [
        line
        for name in ('onedl-lock.txt', 'onedl-mm.txt')
        for line in (requirements / name).read_text().split()
    ]
    assert sorted(line.split()[0] for line in hashed) == sorted(locked)
    assert len({line.split(':')[1] for line in hashed}) == len(hashed)
