"""The record that a run of tests writes, and the tables made of it."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.checklist import LINES, Record, pytest_collection_modifyitems
from tools import report_reliability as tool

TESTS = """
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.checklist import note_figure

pytestmark = pytest.mark.checklist('parity')


@pytest.mark.parametrize('value', [0.1, 0.3, 0.2])
def test_figure(value, record_figure):
    record_figure('error', value, '<= 0.5')
    note_figure('lowest', value, '>= 0')


@pytest.mark.checklist('amp')
@settings(max_examples=7, database=None)
@given(st.integers(0, 10**6))
def test_cases(n):
    assert n >= 0


def test_bad():
    assert False


@pytest.mark.skip(reason='no reason')
def test_skipped():
    pass


def test_of_an_absent_package():
    pytest.importorskip('no_such_package')
"""


@pytest.fixture(scope='module')
def record(root, tmp_path_factory) -> dict:
    """The record of a run of the tests above, with one more of no line."""
    return run(root, tmp_path_factory.mktemp('run'))


def run(root: Path, folder: Path, *options: str) -> dict:
    (folder / 'test_a.py').write_text(TESTS)
    (folder / 'test_b.py').write_text('def test_of_no_line():\n    pass\n')
    path = folder / 'deep' / 'record.json'
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'tests.checklist', '-m', 'not slow']
    command += ['-c', str(root / 'pyproject.toml'), '--rootdir', str(folder), '--reliability', path]
    command += [*options, folder]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.returncode == 1, result.stdout + result.stderr
    return json.loads(path.read_text())


def test_record(record):
    parity = record['lines']['parity']
    assert (parity['passed'], parity['failed'], parity['cases']) == (4, 1, 7)
    reason = "could not import 'no_such_package': No module named 'no_such_package'"
    assert parity['skipped'] == {'no reason': 1, reason: 1}
    assert parity['figures'] == [
        dict(what='error', value=0.3, limit='<= 0.5'),
        dict(what='lowest', value=0.1, limit='>= 0'),
    ]
    assert (record['lines']['amp']['passed'], record['lines']['amp']['cases']) == (1, 7)
    assert record['tests']['passed'] == 5 and not record['slow'] and record['finished']
    assert record['python'] == '.'.join(map(str, sys.version_info[:3]))
    assert 'torch' in record['versions']
    assert {name: line['text'] for name, line in record['lines'].items()} == LINES


def test_two_processes_write_one_record(record, root, tmp_path):
    pytest.importorskip('xdist')

    def timeless(record: dict) -> dict:
        for counts in (record['tests'], *record['lines'].values()):
            counts.pop('seconds')
        return record

    found = run(root, tmp_path, '-n', '2')
    assert timeless(found) == timeless(copy.deepcopy(record))


def test_unknown_line_is_refused():
    mark = pytest.mark.checklist('parrot').mark
    item = SimpleNamespace(nodeid='test_a.py::test_a', iter_markers=lambda name: [mark])
    with pytest.raises(pytest.UsageError, match=r"test_a: the checklist has no line 'parrot'"):
        pytest_collection_modifyitems([item])


def test_of_several_figures_the_worst_is_kept():
    record = Record(Path('none'), slow=True)
    for value in (2, 'text', 'text', 3, 1):
        for limit in ('<= 5', '>= 0', None):
            record.add_figure('ddp', 'x', value, limit)
    figures = record.lines['ddp']['figures']
    assert [f['value'] for f in figures if f['limit'] == '<= 5'] == [3, 'text']
    assert [f['value'] for f in figures if f['limit'] == '>= 0'] == [1, 'text']
    assert [f['value'] for f in figures if f['limit'] is None] == [2, 'text', 3, 1]


@pytest.fixture
def repository(tmp_path, record) -> Path:
    """Documents with markers, and the records of two stacks, the second without a failure."""
    (tmp_path / 'docs').mkdir()
    text = 'Before.\n\n<!-- begin {0} -->\nold\n<!-- end {0} -->\n\nAfter.\n'
    (tmp_path / 'docs' / 'reliability.md').write_text(text.format('reliability'))
    (tmp_path / 'README.md').write_text(text.format('versions'))
    other = copy.deepcopy(record)
    other.update(slow=True, versions={'torch': '2.5.1', 'mmengine': '0.10.7'})
    other['tests'].update(failed=0)
    other['lines']['parity'].update(failed=0, skipped={}, seconds=2.6)
    other['lines']['parity']['figures'][0]['value'] = 2.54e-7
    (tmp_path / 'work_dirs').mkdir()
    for name, value in (('reliability', record), ('reliability-openmmlab', other)):
        (tmp_path / 'work_dirs' / f'{name}.json').write_text(json.dumps(value))
    return tmp_path


def test_tables(repository, capsys):
    assert tool.main(['--root', str(repository)]) == 0
    assert 'changed: reliability.md, README.md' in capsys.readouterr().out
    text = (repository / 'docs' / 'reliability.md').read_text()
    assert text.startswith('Before.\n\n<!-- begin reliability -->\n\n| what has to hold | OneDL,')
    assert text.endswith('<!-- end reliability -->\n\nAfter.\n') and '\nold\n' not in text
    assert '| OneDL, without slow tests | OpenMMLab, all tests |' in text
    rows = {line.split('`')[1]: line for line in text.splitlines() if line.startswith('| `')}
    assert rows.keys() == LINES.keys()
    assert '**1 failed**, 4 passed, 2 skipped; ' in rows['parity']
    assert '| 4 passed; 3 s |' in rows['parity']
    figures = 'random cases 7; error 0.3 / 2.5e-07 (<= 0.5); lowest 0.1 (>= 0)'
    assert rows['parity'].endswith(f'| {figures} |')
    assert rows['resume'].endswith('| not tested | not tested | |')
    assert 'Skipped on OneDL:\n\n* no reason: 1 of `parity`\n' in text
    assert 'Skipped on OpenMMLab' not in text

    text = (repository / 'README.md').read_text()
    assert '| | OneDL stack | OpenMMLab stack |' in text
    assert '| 0.10.7 |' in text and '| 2.5.1 |' in text and '| absent |' in text
    assert 'without slow tests: **1 failed**, 5 passed, 2 skipped (' in text
    assert 'all tests: 5 passed, 2 skipped (' in text


def test_check_fails_until_the_tables_are_made(repository, capsys):
    arguments = ['--root', str(repository)]
    tool.main(arguments)
    shown = (repository / 'README.md').read_text()
    assert tool.main([*arguments, '--check']) == 0
    kept = repository / 'docs' / 'reliability' / 'onedl.json'
    kept.write_text(kept.read_text().replace('"passed": 5', '"passed": 6'))
    with pytest.raises(SystemExit) as stop:
        tool.main([*arguments, '--check'])
    assert stop.value.code == 1 and (repository / 'README.md').read_text() == shown
    assert 'not up to date: README.md' in capsys.readouterr().err


def test_one_stack_is_enough(repository):
    (repository / 'work_dirs' / 'reliability-openmmlab.json').unlink()
    assert tool.main(['--root', str(repository)]) == 0
    assert '| | OneDL stack |\n' in (repository / 'README.md').read_text()


@pytest.mark.parametrize(
    'spoil, message',
    [
        (lambda path: path.unlink(), 'no record in .*; run bash tools/run_tests.sh --slow first'),
        (lambda path: Path(path.parents[1] / 'README.md').write_text('x'), 'must have one <!-- b'),
    ],
)
def test_what_is_missing_is_said(repository, spoil, message, capsys):
    (repository / 'work_dirs' / 'reliability-openmmlab.json').unlink()
    spoil(repository / 'work_dirs' / 'reliability.json')
    with pytest.raises(SystemExit) as stop:
        tool.main(['--root', str(repository)])
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_docs_show_the_records(root):
    """The tables in the documents are those of the records beside them."""
    if not list((root / 'docs' / 'reliability').glob('*.json')):
        pytest.skip('no record is kept yet')
    assert tool.main(['--check']) == 0
