"""The doctor: on a whole environment, on broken ones, and its pins against requirements/."""

import subprocess
import sys

import pytest

from itpn_mm import doctor, registry
from itpn_mm.__main__ import main
from itpn_mm.doctor import Package
from itpn_mm.hosts import DISTRIBUTIONS, PARTS, STACKS, describe_distributions

pytestmark = pytest.mark.checklist('environments')


def run_without(*names: str) -> subprocess.CompletedProcess:
    """Run the doctor in a process that cannot import `names`."""
    script = (
        'import sys\n'
        f'for name in {names}: sys.modules[name] = None\n'
        'from itpn_mm.__main__ import main\n'
        'sys.exit(main(["doctor"]))'
    )
    return subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)


def healthy(**errors: str) -> dict[str, Package]:
    """A whole environment of the stack onedl, but for `errors`."""
    packages = {}
    for name, stacks in DISTRIBUTIONS.items():
        error = errors.get(name)
        found = {} if error == 'not installed' else dict([stacks['onedl']])
        packages[name] = Package(name, found, error)
    return packages


def test_whole_environment(capsys):
    assert main(['doctor']) == 0
    out = capsys.readouterr().out
    if doctor.find_stack() == 'openmmlab':  # which has no mmrotate
        out = out.replace('CANNOT RUN, lacks mmrotate', '')
    assert 'CANNOT RUN' not in out and 'To mend it' not in out
    for word in (*(p.name for p in PARTS), 'load and work on the CPU', sys.executable):
        assert word in out


@pytest.mark.parametrize('name', ['torch', 'mmengine'])
def test_without_the_core(name):
    result = run_without(name)
    assert result.returncode == 1, result.stderr
    dist, version = DISTRIBUTIONS[name][doctor.find_stack()]
    assert f'{sys.executable} -m pip install {dist}=={version}' in result.stdout
    assert f'backbones, pyramid   CANNOT RUN, lacks {name}' in result.stdout


def test_without_mmdet_the_rest_runs():
    result = run_without('mmdet')
    assert result.returncode == 0, result.stderr
    assert 'detection            CANNOT RUN, lacks mmdet' in result.stdout
    assert 'pre-training         runs' in result.stdout


def test_unknown_command(capsys):
    with pytest.raises(SystemExit, match='2'):
        main(['nurse'])
    assert 'nurse' in capsys.readouterr().err


def test_pins_are_those_of_the_requirements(root):
    for stack in STACKS:
        pins = set((root / 'requirements' / f'{stack}-lock.txt').read_text().split())
        mm = set((root / 'requirements' / f'{stack}-mm.txt').read_text().split())
        entries = {'=='.join(s[stack]) for s in DISTRIBUTIONS.values() if s[stack]}
        assert entries <= pins | mm
        assert {m for m in mm if 'mm' in m} <= entries


def test_describe_distributions():
    assert describe_distributions('mmcv') == '`onedl-mmcv` or `mmcv`'
    assert describe_distributions('mmrotate') == '`onedl-mmrotate`'


def test_remedies_come_in_the_order_of_need():
    packages = healthy(torch='not installed', mmcv='not installed', mmseg='not installed')
    first, second, third, last = doctor.find_remedies(packages, None, 'onedl')
    assert first.endswith('pip install torch==2.12.1')
    assert 'MMCV_WITH_OPS=1' in second and 'onedl-mmcv==2.3.6' in second
    assert '--no-deps' not in second
    assert third.endswith('onedl-mmsegmentation==1.4.2')
    assert last.endswith('tools/setup_env.sh')


def test_operators_that_do_not_load():
    error = 'ModuleNotFoundError: No module named mmcv._ext'
    core, lines = doctor.report_parts(healthy(), error)
    assert core
    state = {line[2:22].strip(): line[23:] for line in lines}
    assert state['detection'].startswith('CANNOT RUN, the operators of mmcv do not load')
    assert state['rotated detection'].startswith('CANNOT RUN')
    assert state['MaskDINO in mmseg'].startswith('CANNOT RUN')
    assert state['segmentation'].startswith('runs')
    rebuild = doctor.find_remedies(healthy(), error, 'onedl')[0]
    assert '--force-reinstall --no-deps onedl-mmcv==2.3.6' in rebuild


def test_other_stack_has_its_own_commands():
    packages = healthy(mmdet='not installed', mmrotate='not installed')
    command, clone = doctor.find_remedies(packages, None, 'openmmlab')
    assert command.endswith('install mmdet==3.3.0')  # and no mmrotate, which it does not have
    assert clone.endswith('--stack openmmlab')
    assert 'this stack has none' in doctor.describe(packages['mmrotate'], 'openmmlab')


def test_two_distributions_of_one_package():
    packages = healthy()
    packages['mmcv'].found['mmcv'] = '2.1.0'
    assert 'uninstall onedl-mmcv mmcv' in doctor.find_remedies(packages, None, 'onedl')[0]


def test_untested_version_and_broken_import_are_told():
    package = Package('mmdet', {'onedl-mmdetection': '3.4.0'}, 'AssertionError: MMCV==9 is used')
    text = doctor.describe(package, 'onedl')
    assert 'onedl-mmdetection 3.4.0' in text
    assert 'tested with 3.5.1' in text
    assert 'BROKEN: AssertionError: MMCV==9 is used' in text


def test_python_out_of_range(monkeypatch):
    monkeypatch.setattr(doctor, 'PYTHON_RANGE', ((3, 1), (3, 2)))
    assert 'use Python' in doctor.find_remedies(healthy(), None, 'onedl')[0]


def test_import_errors_take_one_line(monkeypatch, tmp_path):
    (tmp_path / 'broken_package.py').write_text('raise OSError("libx.so.1\\nmore")')
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor.try_import('broken_package') == 'OSError: libx.so.1'


def test_part_whose_own_module_breaks(monkeypatch):
    monkeypatch.setattr(
        doctor, 'try_import', lambda name: 'boom' if 'pretraining' in name else None
    )
    core, lines = doctor.report_parts(healthy(), None)
    assert core
    assert any('pre-training' in line and 'CANNOT RUN, boom' in line for line in lines)


def test_core_is_what_mmengine_imports_to_build_anything():
    found = {place for name in registry.__all__ for place in getattr(registry, name)._locations}
    assert set(doctor.CORE_MODULES) == found - {'itpn_mm.optional'}
