"""The site of the documents: it is built without a warning, and what it links to is in it."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import yaml

pytest.importorskip('mkdocs')
pytest.importorskip('material')
pytest.importorskip('mkdocstrings')

from mkdocs.config import load_config
from mkdocs.structure.files import File

from .test_public_api import PUBLIC, SUBPACKAGES

ROOT = Path(__file__).resolve().parents[1]
# Attributes with which a page fetches something, as opposed to leading somewhere.
FETCHED = re.compile(r'<(?:script|img|iframe|link|source)\b[^>]*?\s(?:src|href)="([^"]+)"')


@pytest.fixture(scope='module')
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('site')
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', folder]
    # Material for MkDocs has a long note on versions to come.
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | {'NO_MKDOCS_2_WARNING': '1'}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope='module')
def hooks():
    """The module that mkdocs loads."""
    config = load_config(str(ROOT / 'mkdocs.yml'))
    return config.hooks['docs/hooks.py']


def pages(site: Path) -> dict[str, str]:
    found = {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob('*.html')}
    assert len(found) > 40
    return found


def test_documents_are_pages(site):
    """Those of docs, and those elsewhere under their own path."""
    documents = [p.relative_to(ROOT / 'docs') for p in (ROOT / 'docs').rglob('*.md')]
    documents += [p.relative_to(ROOT) for p in ROOT.glob('configs/*/README.md')]
    documents += [Path('overview.md'), Path('CHANGELOG.md'), Path('benchmarks/README.md')]
    assert len(documents) > 30
    for document in documents:
        folder = (
            document.parent if document.stem in ('index', 'README') else document.with_suffix('')
        )
        assert (site / folder / 'index.html').is_file(), document


def test_every_entry_of_the_navigation_is_shown(site):
    """Beside the page, also those that are called README and so are the index of their folder."""
    nav = load_config(str(ROOT / 'mkdocs.yml')).nav
    [titles] = [list(map(next, map(iter, part['Configs']))) for part in nav if 'Configs' in part]
    text = (site / 'configs' / 'detection' / 'index.html').read_text()
    shown = re.findall(r'<span class="md-ellipsis">\s*(.+?)\s*(?:<|$)', text, re.MULTILINE)
    assert len(titles) == 5 and set(titles) <= set(shown)


def test_links_lead_to_files_of_the_site(site):
    """Also those that mkdocs leaves alone, and no page has a link that leaves the repository."""
    count = 0
    for name, text in pages(site).items():
        for link in re.findall(r'<a\b[^>]*?\shref="([^"]+)"', text):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or not parts.path or name == '404.html':
                continue
            target = (site / name).parent / parts.path
            target = target / 'index.html' if target.is_dir() else target
            assert target.is_file(), f'{name}: {link}'
            count += 1
    assert count > 1000


def test_nothing_is_fetched_from_elsewhere(site):
    for name, text in pages(site).items():
        links = FETCHED.findall(re.sub(r'<link[^>]*rel="(?:canonical|next|prev)"[^>]*>', '', text))
        assert links
        assert [link for link in links if urlsplit(link).netloc] == [], name
    for path in site.rglob('*.css'):
        assert not re.search(r'url\([\'"]?(https?:)?//|@import', path.read_text()), path


def test_every_public_name_is_in_the_reference(site):
    listed = {path.stem for path in (ROOT / 'docs' / 'api').glob('*.md')}
    assert listed == {'index', *PUBLIC}


def listed_in(name: str) -> list[str]:
    """`__all__` of a public module, without importing what it needs."""
    package = ROOT / 'itpn_mm' / name
    path = package / '__init__.py' if name in SUBPACKAGES else package.with_suffix('.py')
    [value] = [
        node.value
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__'
    ]
    return ast.literal_eval(value)


@pytest.mark.parametrize('name', PUBLIC)
def test_reference_of_a_package(site, name):
    """Exactly what is in `__all__`, and no reference of a docstring is left as it was written."""
    text = (site / 'api' / name / 'index.html').read_text()
    shown = re.findall(rf'<h2 id="itpn_mm\.{name}\.(?:\w+\.)?(\w+)"', text)
    assert sorted(shown) == sorted(listed_in(name))
    assert not re.search(r':(?:class|func|data|meth|mod|attr):', text)


def test_links_of_docstrings(site):
    text = (site / 'api' / 'backbones' / 'index.html').read_text()
    assert re.search(r'<a [^>]*href="\.\./layers/#itpn_mm\.layers\.resize_pos_embed"', text)


def test_what_is_wrong_fails_the_build():
    """Warnings stop a strict build; these are warnings."""
    validation = load_config(str(ROOT / 'mkdocs.yml')).validation
    levels = [level for part in validation.values() for level in part.values()]
    assert len(levels) == 7 and set(levels) == {30}  # logging.WARNING


@pytest.mark.parametrize(
    'path, link, expected',
    [
        ('docs/data.md', '[a](export.md#measured)', '[a](export.md#measured)'),
        ('docs/data.md', '[a](../README.md#more)', '[a](overview.md#more)'),
        ('docs/data.md', '[a](../configs/demo/README.md)', '[a](configs/demo/README.md)'),
        ('docs/api/index.md', '[a](../data.md)', '[a](../data.md)'),
        ('README.md', '[a](docs/data.md)', '[a](data.md)'),
        ('README.md', '![a [b]](docs/images/demo.png)', '![a [b]](images/demo.png)'),
        ('configs/demo/README.md', '[a](../../docs/data.md)', '[a](../../data.md)'),
        ('configs/demo/README.md', '[a](#b)', '[a](#b)'),
        ('benchmarks/README.md', '[results/](results)', 'results/'),
        ('docs/data.md', '[a](../setup.py)', '[a](setup.py)'),
        ('docs/data.md', '[a](../missing.md)', '[a](../missing.md)'),
        ('docs/data.md', '[a](https://arxiv.org/abs/1)', '[a](https://arxiv.org/abs/1)'),
    ],
)
def test_links_are_rewritten(hooks, path, link, expected):
    assert hooks.LINK.sub(lambda match: hooks.relink(match, path), link) == expected


def test_code_is_left_as_it_is(hooks):
    text = '```python\n[a](../README.md)\n```\n[a](../README.md)\n'
    config = load_config(str(ROOT / 'mkdocs.yml'))
    file = File('data.md', config.docs_dir, config.site_dir, config.use_directory_urls)
    written = hooks.on_page_markdown(text, SimpleNamespace(file=file), config, None)
    assert written == '```python\n[a](../README.md)\n```\n[a](overview.md)\n'
    assert list(hooks.links('docs/data.md', text)) == ['README.md']


def test_requirements_are_those_of_the_site():
    names = (ROOT / 'requirements' / 'docs.txt').read_text().split()
    assert names == ['mkdocs-material', 'mkdocstrings[python]']
    plugins = yaml.safe_load(re.sub(r'!!python\S+', '', (ROOT / 'mkdocs.yml').read_text()))[
        'plugins'
    ]
    assert [p if isinstance(p, str) else next(iter(p)) for p in plugins] == [
        'search',
        'mkdocstrings',
    ]
