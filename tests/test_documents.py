"""Code and commands of the documents in docs/ work."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from itpn_mm.backbones import FastiTPN
from itpn_mm.hosts import is_installed

from .test_readme import DOCUMENTS, assert_trained, blocks
from .tiny_configs import ROOT, shrink, train

FINE_TUNE = (ROOT / 'docs' / 'fine_tune.md').read_text()
# Section of docs/fine_tune.md -> folder of its config, and packages that it needs.
TASKS = {
    'Classification': ('classification', 'mmpretrain'),
    'Detection': ('detection', 'mmdet'),
    'Semantic segmentation': ('segmentation', 'mmseg'),
    'Oriented boxes': ('rotated_detection', 'mmrotate'),
}


def block_of(document: str, language: str = 'python', holds: str = '') -> str:
    """The one block of a document in which a text stands."""
    text = (ROOT / 'docs' / document).read_text()
    [found] = [block for block in blocks(language, text) if holds in block]
    return found


def test_quick_start_prints_what_it_says(capsys):
    exec(compile(block_of('quick_start.md', holds='torch.rand'), 'quick_start.md', 'exec'), {})
    # onedl-mmpretrain prints a line of its own when it is imported
    assert capsys.readouterr().out.endswith(block_of('quick_start.md', 'text'))


def test_detector_of_the_quick_start(tmp_path):
    pytest.importorskip('mmdet')
    path = tmp_path / 'faster-rcnn_hivit-tiny.py'
    path.write_text(block_of('quick_start.md', holds='swap_in'))
    cfg = shrink(Config.fromfile(path), 'faster-rcnn_hivit-tiny_coco', tmp_path / 'run')
    assert cfg.model.backbone.type == 'itpn_mm.HiViT'
    assert_trained(*train(cfg))
    assert str(Config.fromfile(path).train_cfg.max_epochs) in re.findall(
        r'epoch_(\d+)\.pth', (ROOT / 'docs' / 'quick_start.md').read_text()
    )


@pytest.mark.parametrize('task', TASKS)
def test_fine_tuning(task, tmp_path):
    """The config of each task trains a step on data of the classes and folders that it names."""
    folder, host = TASKS[task]
    pytest.importorskip(host)
    text = re.search(rf'^## {task}\n.*?^```python\n(.*?)^```', FINE_TUNE, re.M | re.S)[1]
    [base] = re.findall(r"^_base_ = '\./(.+)\.py'", text)
    path = tmp_path / 'config.py'
    path.write_text(text.replace("'./", f"'{ROOT}/configs/{folder}/"))
    cfg = Config.fromfile(path)
    [weights] = re.findall(r"'(checkpoints/\S+)'", text)
    starts = re.findall(r"'checkpoint': '([^']+)'", str(cfg.model.to_dict()))
    assert set(starts) == {weights}
    heads = re.findall(r"'?num_classes'?: (\d+)", str(cfg.model))
    assert heads and set(heads) == {'2'}  # of every head
    for part in [cfg.model.backbone, cfg.model.neck]:
        part.pop('init_cfg', None)
    cfg = shrink(cfg, base, tmp_path / 'run')
    runner, gradients = train(cfg)
    assert runner.iter == 1 and all(value.isfinite() for value in gradients.values())
    classes = runner.train_dataloader.dataset.metainfo['classes']
    if task != 'Classification':  # whose classes are those of the folders that were written
        assert classes == cfg.train_dataloader.dataset.metainfo['classes'] and len(classes) == 2


def test_every_config_of_the_documents_is_tested():
    """A document with a config in it has a test that builds it."""
    found = {
        path.stem
        for path in (ROOT / 'docs').rglob('*.md')
        for block in blocks('python', path.read_text())
        if re.search('^_base_ = ', block, re.MULTILINE)
    }
    here = {'quick_start', 'fine_tune'}
    assert found == here | {'acceleration', 'maskdino', 'swap_in', 'scaling'}


def test_loading_as_in_the_document(tmp_path, monkeypatch, capsys):
    """Both ways to load a part of a file."""
    arch = dict(embed_dims=64, depths=(1, 1, 2), num_heads=2)
    state = {f'backbone.{k}': v for k, v in FastiTPN(arch).state_dict().items()}
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': state}, 'FILE')
    scope: dict = {}
    for holds in ('backbone = dict', 'load_pretrained'):
        code = block_of('checkpoints.md', holds=holds)
        assert "'base'" in code
        exec(compile(code.replace("'base'", f'{arch}'), 'checkpoints.md', 'exec'), scope)
    assert capsys.readouterr().out.endswith('1.0 [] {}\n')  # behind the report, if it is printed
    backbone = MODELS.build(scope['backbone'])
    backbone.init_weights()
    assert all(torch.equal(v, state[f'backbone.{k}']) for k, v in backbone.state_dict().items())


def flags_of(script: Path) -> set[str]:
    """Options that stand in the source of a tool, of what it imports from beside it, or, where it
    hands over to a stock script, in that.
    """
    sources = [script, *script.parent.glob('*_run/command.py')]
    text = script.read_text()
    if 'itpn_mm.launch' in text:
        sources.append(ROOT / 'itpn_mm' / 'launch.py')
        for host in ('mmpretrain', 'mmdet', 'mmseg'):
            if is_installed(host):
                package = Path(__import__(host).__file__).parent
                sources.append(package / '.mim' / 'tools' / script.name)
    return set(
        re.findall(
            r"'(--[\w-]+)'", '\n'.join(path.read_text() for path in sources if path.is_file())
        )
    )


def commands_of(document: str) -> list[list[str]]:
    text = '\n'.join(blocks('bash', (ROOT / document).read_text())).replace('\\\n', ' ')
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize('document', DOCUMENTS)
def test_commands(document):
    """They can be parsed; tools, their options and configs exist."""
    for words in commands_of(document):
        scripts = [word for word in words if re.match(r'(tools/|\.ci/)\S', word)]
        for script in map(ROOT.joinpath, scripts):
            assert script.exists(), words
            if script.suffix == '.py':
                given = {
                    w.partition('=')[0] for w in words[words.index(scripts[0]) :] if w[:2] == '--'
                }
                assert given <= flags_of(script), f'{words}: {given - flags_of(script)}'
        assert all((ROOT / w).is_file() for w in words if re.match(r'configs/.*\.py$', w)), words


def test_commands_are_found():
    counts = {document: len(commands_of(document)) for document in DOCUMENTS}
    assert sum(counts.values()) > 60 and counts['docs/checkpoints.md'] == 6
