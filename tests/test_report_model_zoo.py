"""The tables of docs/model_zoo.md are those of the metafiles."""

import shutil
from pathlib import Path

import pytest
import yaml

from tools import report_model_zoo as tool

PAGE = Path('docs', 'model_zoo.md')


def read_models(root: Path) -> list[dict]:
    index = yaml.safe_load((root / 'model-index.yml').read_text())
    return [
        model
        for metafile in index['Import']
        for model in yaml.safe_load((root / metafile).read_text())['Models']
    ]


def test_the_page_is_up_to_date(root):
    assert tool.main(['--check']) == 0


def test_every_model_has_its_row(root):
    """With its figures, in columns that say whose they are."""
    text = (root / PAGE).read_text()
    models = read_models(root)
    assert len(models) > 150
    for model in models:
        [line] = [line for line in text.splitlines() if f'| [`{model["Name"]}`]' in line]
        cells = [cell.strip() for cell in line.split('|')]
        for result in model.get('Results', []):
            assert all(f'{value}' in cells for value in result['Metrics'].values())
    titles = [line for line in text.splitlines() if line.startswith('| config |')]
    assert len(titles) == 6
    figures = [cell for line in titles for cell in line.split('|') if 'AP' in cell or 'top' in cell]
    assert figures and all('**paper**' in cell for cell in figures)


@pytest.fixture
def copy(root, tmp_path) -> Path:
    """The page and what it is made of, to be changed."""
    for path in ('model-index.yml', PAGE, *root.glob('configs/*/metafile.yml')):
        path = (root / path).relative_to(root)
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, tmp_path / path)
    return tmp_path


def test_a_change_is_found_and_written(copy, capsys):
    metafile = copy / 'configs' / 'detection' / 'metafile.yml'
    metafile.write_text(metafile.read_text().replace('58.8', '12.3'))
    before = (copy / PAGE).read_text()
    with pytest.raises(SystemExit) as stop:
        tool.main(['--root', f'{copy}', '--check'])
    assert stop.value.code == 1 and 'report_model_zoo.py' in capsys.readouterr().err
    assert (copy / PAGE).read_text() == before
    assert tool.main(['--root', f'{copy}']) == 0
    after = (copy / PAGE).read_text()
    assert after.count('12.3') == before.count('58.8') > 0
    assert after.partition('<!-- begin')[0] == before.partition('<!-- begin')[0]


def test_figures_of_nobody_are_refused(copy, capsys):
    metafile = copy / 'configs' / 'detection' / 'metafile.yml'
    metafile.write_text(metafile.read_text().replace('box AP (paper)', 'box AP', 1))
    with pytest.raises(SystemExit) as stop:
        tool.main(['--root', f'{copy}'])
    assert stop.value.code == 2 and "metric 'box AP' of mask-rcnn" in capsys.readouterr().err
