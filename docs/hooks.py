"""One site out of docs/ and the documents beside it in the repository.

Pages link to files outside docs/ as they do where the repository is browsed. In the site, a
document that is linked is a page, too, and any other file lies there as it is. Folders have no
page: of a link to one, the text remains.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.highlight import Highlight

ROOT = Path(__file__).resolve().parents[1]
DOCS = 'docs/'
README, OVERVIEW = 'README.md', 'overview.md'  # the site begins with docs/index.md
FENCED = re.compile(r'^(```.*?^```)', flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r'\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)')


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let mkdocstrings 1.0 make a `Highlight` without `md`, which pymdown-extensions 12.3 asks for.

    All other parameters have defaults, and `md` is needed for titles of code blocks alone.
    """
    names, defaults = Highlight.__init__.__code__.co_varnames[1:], Highlight.__init__.__defaults__
    if names[0] == 'md' and len(defaults) == Highlight.__init__.__code__.co_argcount - 2:
        Highlight.__init__.__defaults__ = (None, *defaults)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README, what any page links to, and what that links to in turn."""
    pending = [README, *(to_repository(file.src_uri) for file in files.documentation_pages())]
    seen = set(pending)
    while pending:
        path = pending.pop()
        uri = to_site(path)
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
        if not path.endswith('.md'):
            continue
        for link in links(path, (ROOT / path).read_text(encoding='utf8')):
            if link not in seen and (ROOT / link).is_file():
                seen.add(link)
                pending.append(link)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to where files are in the site."""
    path = to_repository(page.file.src_uri)
    return ''.join(
        part if FENCED.match(part) else LINK.sub(lambda match: relink(match, path), part)
        for part in FENCED.split(markdown)
    )


def relink(match: re.Match, path: str) -> str:
    """A link of the document `path` in the repository, as it is written in the site."""
    target, mark, anchor = match['target'].partition('#')
    found = resolve(path, target)
    if found is None or not (ROOT / found).exists():
        return match[0]  # mkdocs says what is missing
    if (ROOT / found).is_dir():
        return match['text']
    uri = posixpath.relpath(to_site(found), posixpath.dirname(to_site(path)) or '.')
    return f'[{match["text"]}]({uri}{mark}{anchor})'


def links(path: str, markdown: str) -> Iterator[str]:
    """What a document links to, as paths in the repository."""
    for part in FENCED.split(markdown):
        if FENCED.match(part):
            continue
        for match in LINK.finditer(part):
            found = resolve(path, match['target'].partition('#')[0])
            if found is not None:
                yield found


def resolve(path: str, target: str) -> str | None:
    """Where a link of the document `path` leads to in the repository; None for one elsewhere."""
    if not target or '://' in target or target.startswith(('/', 'mailto:')):
        return None
    found = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    return None if found.startswith('..') else found


def to_site(path: str) -> str:
    """Where a file of the repository lies among the sources of the site."""
    return OVERVIEW if path == README else path.removeprefix(DOCS)


def to_repository(uri: str) -> str:
    """Where a source of the site lies in the repository."""
    if uri == OVERVIEW:
        return README
    return DOCS + uri if (ROOT / DOCS / uri).exists() else uri
