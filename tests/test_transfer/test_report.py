import json

import pytest

from benchmarks.transfer import report, results
from benchmarks.transfer.plan import FAMILIES, PRETRAININGS, TASKS, chains
from benchmarks.transfer.plots import draw_curves, draw_differences
from benchmarks.transfer.results import PRETRAIN, row_name, rows_of

VALUES = {'none': 40.0, 'mim': 45.0, 'integral': 50.0, 'no-mfm': 48.0, 'teacher': 55.0}


@pytest.fixture
def rows():
    """All rows of the plan with invented scores that depend on the pre-training and the seed."""
    made = {}
    for chain in chains():
        for name in rows_of(chain, TASKS):
            if name.endswith(PRETRAIN):
                row = dict(losses=dict(loss=[1.0] * 25, loss_pixel=[0.9] * 25), seconds=60.0)
            else:
                score = VALUES.get(chain.pretraining, 49.0) + chain.seed
                score -= 3 * name.endswith('random-pyramid')
                row = dict(score=score, curve=[[10, 1.0], [20, score]], loss=[1.0], seconds=30.0)
            made[name] = row
    return made


def text_with_markers():
    return '\n'.join(f'<!-- begin {name} -->\nold\n<!-- end {name} -->' for name in report.TABLES)


def test_tables(rows):
    text = report.fill(text_with_markers(), rows)
    assert 'old' not in text
    assert report.fill(text, rows) == text
    # 50 + (0 + ... + 4) / 5; Student's quantile for 4 degrees of freedom is 2.776.
    assert '| integral, pyramid loaded | 52.0 ± 2.0 |' in text
    assert '| *integral, pyramid loaded - random weights* | **+13.0 ± 0.0** |' in text
    assert '| *teacher - pixels* | **+6.0 ± 0.0** |' in text
    for name in report.OPEN:
        assert f'| {PRETRAININGS[name].label} | 51.0 ± 2.0 | **-1.0 ± 0.0** |' in text


def test_what_was_not_run_is_a_dash(rows):
    del_teacher = {k: v for k, v in rows.items() if '/teacher/' not in k}
    assert '| features of a ViT-S/14, the same views | - | - |' in report.teacher_table(del_teacher)
    assert report.fill(text_with_markers(), {})


def test_a_missing_marker():
    with pytest.raises(ValueError, match='must have the lines <!-- begin count -->'):
        report.fill('nothing', {})


def test_plots(rows, tmp_path):
    draw_curves(rows, tmp_path / 'curves.png')
    draw_differences(rows, tmp_path / 'differences.png')
    draw_curves({}, tmp_path / 'empty.png')
    assert all(path.stat().st_size > 10_000 for path in tmp_path.glob('[cd]*.png'))


def test_the_document_is_of_the_committed_rows(root):
    document = root / report.DOCUMENT
    text = document.read_text()
    assert report.fill(text, results.read()) == text, (
        'run `python tools/benchmark_transfer.py --report`'
    )


def test_every_committed_row_is_of_the_plan():
    planned = {name for chain in chains() for name in rows_of(chain, TASKS)}
    assert results.read().keys() <= planned


def test_rows_are_collected(tmp_path):
    name = 'itpn/mim/seed0/classes-random-pyramid'
    file = tmp_path / 'rows' / f'{name}.json'
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(dict(score=1.0)))
    committed = tmp_path / 'results.json'
    committed.write_text(json.dumps(dict(rows={'itpn/mim/seed0/pretrain': dict(seconds=1)})))
    assert results.collect(tmp_path, committed).keys() == {name, 'itpn/mim/seed0/pretrain'}
    document = json.loads(committed.read_text())
    assert document['rows'][name] == dict(score=1.0)
    assert document['versions']['torch'] and document['processor']


@pytest.mark.parametrize('name', ['x', 'itpn/new/seed0/classes', 'itpn/mim/seed0/boxes'])
def test_unknown_rows(name):
    with pytest.raises(ValueError, match='no row is called'):
        results.check_names([name])


def test_the_plan_covers_both_families():
    core = ('none', 'mim', 'integral', 'no-mfm', 'conv', 'conv-no-mfm', 'teacher')
    assert all(PRETRAININGS[name].families == tuple(FAMILIES) for name in core)
    assert row_name(next(iter(chains())), PRETRAIN) == 'itpn/none/seed0/pretrain'
