"""What the documents say is true: lines train, paths and commands exist, figures fit."""

import importlib.util
import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from itpn_mm import hosts

from .tiny_configs import ROOT, shrink, train

README = (ROOT / 'README.md').read_text()
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in (
        '*.md',
        '*/README.md',
        'configs/*/README.md',
        'tests/data/README.md',
        'docs/**/*.md',
    )
    for path in ROOT.glob(pattern)
    if not path.parts[-2].startswith('.')
)


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', text, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = '\n'.join(blocks('bash')).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture
def swapped(tmp_path) -> list[Path]:
    """The Python blocks as files: the stock config with our parts, and two on top of it."""
    pytest.importorskip('mmdet')
    first, *others = (block for block in blocks('python') if '_base_' in block)
    names = {re.search(r"_base_ = '\./(.+)'", other)[1] for other in others}
    assert len(others) == 2 and len(names) == 1
    [name] = names
    assert f'`{name}`' in README  # the text around calls the first one so
    paths = [tmp_path / name, tmp_path / 'loaded.py', tmp_path / 'accelerated.py']
    for path, text in zip(paths, (first, *others), strict=True):
        path.write_text(text)
    return paths


def test_swapping_in_and_loading(swapped, tmp_path):
    """The lines train in the stock config; what they save is what the other lines load."""
    first, second, _ = swapped
    stock = Config.fromstring(re.search('_base_ = .*', first.read_text())[0], '.py')
    cfg = Config.fromfile(first)
    changed = {key for key in stock.model if stock.model[key] != cfg.model[key]}
    assert changed == {'backbone', 'neck'}
    assert {key for key in cfg if key != 'model' and cfg[key] != stock.get(key)} == set()
    cfg = shrink(cfg, first.stem, tmp_path / 'first')
    cfg.randomness = dict(seed=1)  # not what a model starts with that loads nothing
    assert_trained(*train(cfg))

    cfg = Config.fromfile(second)
    for name in ('backbone', 'neck'):
        cfg.model[name].init_cfg.checkpoint = str(tmp_path / 'first' / 'epoch_1.pth')
    cfg = shrink(cfg, first.stem, tmp_path / 'second')
    cfg.optim_wrapper.optimizer.lr = 1e-9  # the start can still be read off
    runner, gradients = train(cfg)
    assert_trained(runner, gradients)
    state = torch.load(tmp_path / 'first' / 'epoch_1.pth', weights_only=False)['state_dict']
    for key, value in runner.model.state_dict().items():
        if key.startswith(('backbone.', 'neck.')):
            torch.testing.assert_close(value, state[key], atol=1e-6, rtol=0)
    groups = runner.optim_wrapper.optimizer.param_groups
    assert {round(group['lr_scale'], 6) for group in groups} == {1.0, 0.9, 0.81}
    assert any(type(hook).__name__ == 'PreflightHook' for hook in runner.hooks)


def test_accelerating(swapped, tmp_path):
    """The last block wraps the backbone, and trains."""
    first, _, path = swapped
    backbone = Config.fromfile(first).model.backbone
    cfg = Config.fromfile(path)
    assert cfg.model.backbone.type == 'itpn_mm.TokenMigration'
    assert cfg.model.backbone.backbone == backbone
    runner, gradients = train(shrink(cfg, first.stem, tmp_path / 'accelerated'))
    assert runner.model.backbone.acceleration is not None
    assert runner.iter == 1 and all(value.isfinite() for value in gradients.values())


def test_hooks_of_long_runs_are_those_of_our_configs():
    [block] = (block for block in blocks('python') if 'default_hooks' in block)
    said = Config.fromstring(block, '.py').default_hooks
    base = Config.fromfile(ROOT / 'configs' / '_base_' / 'detection_runtime.py').default_hooks
    ours = {name: hook.type for name, hook in base.items() if hook.type.startswith('itpn_mm.')}
    assert {name: hook.type for name, hook in said.items()} == ours


def test_configs_of_the_other_documents(tmp_path):
    """They start from a detection config and build its model."""
    pytest.importorskip('mmdet')
    found = []
    for name in ('acceleration', 'maskdino', 'swap_in'):  # the others: test_documents.py
        document = ROOT / 'docs' / f'{name}.md'
        for text in blocks('python', document.read_text()):
            if not text.startswith('_base_'):
                continue  # a script
            path = tmp_path / f'{document.stem}_{len(found)}.py'
            path.write_text(text.replace("'./", f"'{ROOT}/configs/detection/"))
            cfg = Config.fromfile(path)
            kind = '_coco-panoptic' if '-panoptic' in text else '_coco'
            cfg = shrink(cfg, path.stem + kind, tmp_path / path.stem)
            with DefaultScope.overwrite_default_scope('mmdet'):
                model = MODELS.build(cfg.model)
            if document.stem == 'maskdino':
                assert type(model).__name__ == 'MaskDINO'
                assert model.panoptic_head.predictor.denoiser is not None
            else:
                assert model.backbone.acceleration is not None
            found.append(document.stem)
    assert found == ['acceleration', *['maskdino'] * 3, 'swap_in', 'swap_in']


def test_semantic_config_of_maskdino(tmp_path):
    """The model that stands there whole, on the data and schedule of another config, trains."""
    pytest.importorskip('mmseg')
    text = (ROOT / 'docs/maskdino.md').read_text()
    [text] = [block for block in blocks('python', text) if 'EncoderDecoder' in block]
    base = ROOT / 'configs/segmentation/maskdino_r50_8xb2-160k_ade20k-512x512.py'
    whole = Config.fromfile(base)
    (tmp_path / 'config.py').write_text(text)
    model = Config.fromfile(tmp_path / 'config.py').model
    head, shipped = model.decode_head, whole.model.decode_head
    defaults = dict(oversample_ratio=3.0, importance_sample_ratio=0.75, num_points=12544)
    assert shipped.pop('train_cfg') == defaults  # what it says beside is by default so
    assert shipped.denoising.pop('noise_scale') == 0.4
    assert model.to_dict() == whole.model.to_dict()
    head.train_cfg = defaults
    whole.model = model
    runner, gradients = train(shrink(whole, base.stem, tmp_path / 'run'))
    trained = {n for n, p in runner.model.named_parameters() if p.requires_grad}
    assert runner.iter == 1 and gradients.keys() == trained
    assert all(value.isfinite() for value in gradients.values())


def test_what_swap_in_writes(tmp_path):
    """Both configs of its document are the same one."""
    pytest.importorskip('mmdet')
    configs = []
    for i, text in enumerate(blocks('python', (ROOT / 'docs/swap_in.md').read_text())):
        path = tmp_path / f'{i}.py'
        path.write_text(text)
        configs.append(Config.fromfile(path).to_dict())
    first, second = configs
    assert first == second


def assert_trained(runner, gradients) -> None:
    assert runner.iter == 1
    trained = {n for n, p in runner.model.named_parameters() if p.requires_grad}
    assert gradients.keys() == trained
    assert all(value.isfinite() and value > 0 for value in gradients.values())


@pytest.mark.parametrize('document', DOCUMENTS)
def test_paths_exist(document):
    folder, text = (ROOT / document).parent, (ROOT / document).read_text()
    links = [
        link.partition('#')[0]
        for link in re.findall(r'\]\(([^)]+)\)', text)
        if '://' not in link and not link.startswith('#')
    ]
    missing = [link for link in links if not (folder / link).exists()]
    for path in re.findall(r'(?<![\w./$>)-])(?:tools|configs|itpn_mm|tests|\.ci)/[\w./-]+', text):
        path = path.rstrip('.')
        if not (ROOT / path).exists() and path != 'itpn_mm/.mim':  # made by the installation
            missing.append(path)
    assert missing == []


def test_the_documents_are_found():
    assert {'README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'} <= set(DOCUMENTS)
    assert sum(document.startswith('configs/') for document in DOCUMENTS) >= 2


def without_code(text: str) -> str:
    return re.sub(r'^```.*?^```', '', text, flags=re.MULTILINE | re.DOTALL)


def links_of(document: str) -> list[str]:
    """Targets of the links of a document."""
    return re.findall(r'\]\(([^()\s]+)\)', without_code((ROOT / document).read_text()))


def anchors_of(path: Path) -> list[str]:
    """Anchors of the sections of a document, as they are made where a repository is browsed."""
    titles = re.findall(r'^#+ (.*)', without_code(path.read_text()), flags=re.MULTILINE)
    return [re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in titles]


def test_sections_that_are_linked_exist():
    """In all documents; names are unique, as the second of a name has an anchor of another kind in
    each place that shows documents.
    """
    found = []
    for document in DOCUMENTS:
        for link in links_of(document):
            target, _, anchor = link.partition('#')
            if anchor and '://' not in target:
                path = (ROOT / document).parent / target if target else ROOT / document
                assert anchors_of(path).count(anchor) == 1, f'{document}: {link}'
                found.append(link)
    assert len(found) > 20


def test_links_elsewhere_can_be_followed():
    """Nothing is fetched: they have a host, and are not those of a machine."""
    found = [(document, link) for document in DOCUMENTS for link in links_of(document)]
    links = [(document, urlsplit(link)) for document, link in found if '://' in link]
    assert len(links) > 5
    for document, link in links:
        assert link.scheme == 'https' and re.fullmatch(
            r'[\w-]+(\.[\w-]+)*\.[a-z]{2,}', link.netloc
        ), (
            document,
            link.geturl(),
        )


def test_commands_of_the_demo():
    """Scripts and configs exist, and checkpoints are called as the trainings call them."""
    found = []
    for words in commands():
        if words[0] == 'python' and words[1].endswith('.py'):
            assert (ROOT / words[1]).is_file()
            if 'demo' in ' '.join(words):
                found.append(Path(words[1]).name)
        configs = [word for word in words if word.startswith('configs/')]
        for config in configs:
            assert (ROOT / config).is_file()
        for checkpoint in re.findall(r'work_dirs/demo/\w+/epoch_(\d+)\.pth', ' '.join(words)):
            assert int(checkpoint) == Config.fromfile(ROOT / configs[0]).train_cfg.max_epochs
    steps = ['prepare_demo_data.py', 'train.py', 'train.py', 'test.py']
    assert found == [*steps, 'visualize_reconstruction.py']


def test_stock_scripts_lie_where_it_says():
    packages = re.findall(
        r'^python \$\(python -c "import (\w+); print\(\1\.__path__\[0\]\)"\)/(\S+\.py) ',
        '\n'.join(blocks('bash')),
        flags=re.MULTILINE,
    )
    assert [name for name, _ in packages] == ['mmpretrain', 'mmdet']
    for name, script in packages:
        pytest.importorskip(name)
        package = Path(importlib.util.find_spec(name).origin).parent
        assert (package / script).is_file()


def test_versions_are_those_that_are_tested():
    """The table has a column for each stack of which a record is kept."""
    table = README[README.index('<!-- begin versions -->') : README.index('<!-- end versions -->')]
    titles, *rows = (
        line.strip('| ').split(' | ') for line in table.splitlines() if line.startswith('| ')
    )
    stacks = [title.removesuffix(' stack').lower() for title in titles]
    said = {name: cells for name, *cells in rows}
    assert 'onedl' in stacks and set(stacks) <= {'onedl', 'openmmlab'}
    for name in ('torch', *(n for n in hosts.DISTRIBUTIONS if n.startswith('mm'))):
        for stack, cell in zip(stacks, said[name], strict=True):
            pin = hosts.DISTRIBUTIONS[name][stack]
            if pin is None:
                assert cell == 'absent'
            else:
                package, version = pin
                assert cell == version + f' ({package})' * (package != name), name


@pytest.mark.parametrize('task', ['detection', 'segmentation'])
def test_figures_are_those_of_the_metafile(task):
    models = yaml.safe_load((ROOT / f'configs/{task}/metafile.yml').read_text())['Models']
    folder = f'configs/{task}/README.md'
    documents = {'README.md': README, folder: (ROOT / folder).read_text()}
    for model in models:
        values = [v for r in model.get('Results', ()) for v in r['Metrics'].values()]
        for document, text in documents.items():
            whole_name = rf'(?<![\w-]){re.escape(model["Name"])}(?![\w-])'  # no part of another one
            rows = [line for line in text.splitlines() if re.search(whole_name, line)]
            rows = [row for row in rows if row.startswith('|')]
            if document == 'README.md' and not rows:  # it has the most important ones only
                continue
            [row] = rows
            figures = [float(x) for x in re.findall(r'\b\d\d\.\d\b', row)]
            assert figures[: len(values)] == values, f'{document}: {row}'
