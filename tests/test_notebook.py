"""demo/itpn_mm_tour.ipynb: committed without outputs; each cell of it runs."""

import ast
import json
import os
import re
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip('nbformat')
ROOT = Path(__file__).resolve().parents[1]
PATH = ROOT / 'demo' / 'itpn_mm_tour.ipynb'


@pytest.fixture(scope='module')
def notebook():
    return nbformat.read(PATH, as_version=4)


def code(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == 'code']


def test_the_file_is_clean(notebook):
    """No outputs, one way to write it down, small."""
    nbformat.validate(notebook)
    text = PATH.read_text(encoding='utf-8')
    whole = json.dumps(json.loads(text), indent=1, ensure_ascii=False, sort_keys=True)
    assert text == f'{whole}\n'
    assert len(text) < 100_000
    for cell in notebook.cells:
        assert cell.metadata == {} and cell.source.strip() == cell.source
        if cell.cell_type == 'code':
            assert cell.outputs == [] and cell.execution_count is None
    assert set(notebook.metadata) == {'kernelspec', 'language_info'}


def test_it_reads_well(notebook):
    """Short cells, and text before each part; sections are counted."""
    cells = notebook.cells
    assert cells[0].cell_type == 'markdown' and cells[0].source.startswith('# ')
    titles = [c.source for c in cells if c.source.startswith('## ')]
    assert [int(t[3]) for t in titles] == list(range(1, len(titles) + 1))
    for source in code(notebook):
        assert len(source.splitlines()) <= 30
        assert all(len(line) <= 100 for line in source.splitlines())


def test_what_it_names_exists(notebook):
    text = '\n'.join(cell.source for cell in notebook.cells if cell.cell_type == 'markdown')
    links = [link.partition('#')[0] for link in re.findall(r'\]\(([^)]+)\)', text)]
    links = [link for link in links if '://' not in link]
    assert links and not [link for link in links if not (PATH.parent / link).exists()]
    for tool in re.findall(r'`(tools/\w+\.(?:py|sh))', text):
        assert (ROOT / tool).is_file()
    [config] = re.findall(r"'(itpn-\S+\.py)'", '\n'.join(code(notebook)))
    assert (ROOT / 'configs' / 'pretraining' / config).is_file()


def test_it_needs_nothing_else(notebook):
    """Only packages of the requirements, no network, no shell."""
    trees = [ast.parse(source) for source in code(notebook)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {a.name.split('.')[0] for n in nodes if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module.split('.')[0] for n in nodes if isinstance(n, ast.ImportFrom)}
    tools = {name for name in imported if (ROOT / 'tools' / f'{name}.py').is_file()}
    assert {'visualize_reconstruction', 'visualize_attention', 'visualize_tokens'} <= tools
    known = {'PIL', 'itpn_mm', 'matplotlib', 'mmengine', 'numpy', 'scipy', 'skimage', 'torch'}
    standard = {'json', 'pathlib', 'sys', 'tempfile', 'time', 'warnings'}
    assert imported - tools == known | standard
    assert '://' not in '\n'.join(code(notebook))


@pytest.mark.slow
def test_every_cell_runs(notebook, tmp_path, monkeypatch):
    """From a folder that has nothing in it; a minute of one core."""
    nbclient = pytest.importorskip('nbclient')
    for package in ('ipykernel', 'matplotlib', 'mmdet', 'mmpretrain', 'skimage'):
        pytest.importorskip(package)
    start = tmp_path / 'start'
    start.mkdir()
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    monkeypatch.setenv('IPYTHONDIR', str(tmp_path / 'ipython'))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    monkeypatch.setenv('PYTHONPATH', f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
    kernel = tmp_path / 'kernels' / 'tour' / 'kernel.json'
    kernel.parent.mkdir(parents=True)
    command = [sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}']
    kernel.write_text(json.dumps(dict(argv=command, display_name='Tour', language='python')))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path))
    client = nbclient.NotebookClient(
        notebook,
        kernel_name='tour',
        timeout=1200,
        resources=dict(metadata=dict(path=str(start))),
    )
    client.execute()
    outputs = [out for cell in notebook.cells for out in cell.get('outputs', ())]
    assert not [out for out in outputs if out.output_type == 'error']
    pictures = sum('image/png' in out.get('data', {}) for out in outputs)
    assert pictures == 6
    text = '\n'.join(out.text for out in outputs if out.output_type == 'stream')
    assert 'pyramid, stride 64 (64, 3, 4)' in text
    assert 'loaded:     59 tensors, 100.00% of the values' in text
    assert 'resized:    1: pos_embed (1, 36, 96) -> (1, 100, 96)' in text
    assert 'set backbone.arch to one with embed_dims=96' in text
    assert '551 -> 360 patches' in text
    found = re.search(r'(\d) of 6 held-out coins are found', text)
    assert int(found[1]) >= 2  # 4 and 5 were seen
    assert not list(start.iterdir())  # results go elsewhere
