"""One HTML page of the results of all demos, which needs no other file and no network."""

import base64
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from PIL import Image

from .command import STATUS
from .page_sections import SECTIONS, Section
from .results import describe_machine
from .steps import clock

TEMPLATE = 'page.html.j2'
PAGE = 'report.html'
MAX_WIDTH, QUALITY = 1800, 82  # of pictures
NUMBER = re.compile(r'<td>([+-]?\d[^<]*|)</td>')


@dataclass(frozen=True)
class Picture:
    """A picture as the page holds it."""

    source: str  # data URI
    width: int
    height: int
    caption: str


@dataclass(frozen=True)
class Licence:
    """A package that carries data: its licence with the text of it, the data sets made of it."""

    package: str
    version: str
    licence: str
    data: Sequence[str]
    text: str


@dataclass(frozen=True)
class Shown:
    """A section as the template gets it.

    Args:
        name: Of the demo on the command line.
        section: What there is to say about it.
        state: `'complete'`, `'failed'`, `'left out'` or `'not run'`.
        message: Why, if it is not complete.
        headline: The main result.
        seconds: That its tasks took, as h:mm:ss.
        finished: When its last run ended.
        table: HTML.
        pictures: Those that there are.
        sources: The packages that its data are of, with their licences.
        command: That runs it again.
        commands: Of its trainings and evaluations alone.
    """

    name: str
    section: Section
    state: str
    message: str
    headline: str
    seconds: str
    finished: str
    table: str
    pictures: Sequence[Picture]
    sources: str
    command: str
    commands: Sequence[str]


def make_page(
    work: Path, commands: Mapping[str, Mapping[str, str]], licences: Sequence[Licence]
) -> str:
    """The page of what lies in a folder.

    Args:
        work: Folder of all demos; any of them may be missing.
        commands: Of the chains of each demo, by name.
        licences: Of the packages that the data are of.
    """
    summaries = {name: read_json(work / s.folder / s.summary) for name, s in SECTIONS.items()}
    found = {name: summary['machine'] for name, summary in summaries.items() if summary}
    here = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return here.get_template(TEMPLATE).render(
        sections=[show(work, name, summaries[name], commands[name], licences) for name in SECTIONS],
        run=read_record(work),
        machines=group_machines(found or {'this page': describe_machine(used_gpu=False)}),
        licences=licences,
    )


def show(
    work: Path,
    name: str,
    summary: dict,
    commands: Mapping[str, str],
    licences: Sequence[Licence],
) -> Shown:
    """A section, as far as there are results."""
    section, folder = SECTIONS[name], work / SECTIONS[name].folder
    status = read_json(folder / STATUS)
    state, message = 'complete', ''
    if status.get('failed'):
        state, message = 'failed', status['failed']
    elif status.get('skipped'):
        state, message = 'left out', status['skipped']
    elif not summary:
        state, message = 'not run', 'There are no results of it.'
    seconds = summary.get('demo_seconds') or sum(summary.get('seconds_of_tasks', {}).values())
    return Shown(
        name,
        section,
        state,
        message,
        section.headline(summary) if summary else '',
        clock(seconds) if seconds else '',
        status.get('finished', ''),
        to_html(section.table(summary)) if summary else '',
        [
            embed(folder / file, caption)
            for file, caption in section.pictures.items()
            if summary and (folder / file).exists()
        ],
        '; '.join(
            f'{one.package} {one.version} ({one.licence})'
            for one in licences
            if set(section.data) & set(one.data)
        ),
        f'bash tools/demo.sh {name}{section.options(summary) if summary else ""}',
        chosen(commands, summary.get('seconds_of_tasks')),
    )


def chosen(commands: Mapping[str, str], tasks: Iterable[str] | None) -> list[str]:
    """The commands of the chains that tasks belong to; all of them if that is not known."""
    if tasks is None:
        return list(commands.values())
    chains = {task.partition('/')[0] for task in tasks}
    return [command for name, command in commands.items() if name in chains]


def read_json(path: Path) -> dict:
    """A document; an empty one if there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def read_record(work: Path) -> dict:
    """What the last run of all demos noted; empty if there was none."""
    record = read_json(work / 'all.json')
    return {**record, 'clock': clock(record['seconds'])} if record else {}


def group_machines(machines: Mapping[str, dict]) -> list[tuple[str, list[str]]]:
    """Every machine in words, with the demos that ran on it."""
    found: dict[str, list[str]] = {}
    for name, machine in machines.items():
        packages = ', '.join(f'{package} {it}' for package, it in machine['packages'].items())
        said = (
            f'{machine["cpu"]}, {machine["cores"]} cores'
            + (f', {machine["gpu"]}' if machine['gpu'] else '')
            + f'; {machine["system"]}; Python {machine["python"]}, {packages}'
        )
        found.setdefault(said, []).append(name)
    return list(found.items())


def to_html(markdown: str) -> str:
    """HTML of a table with notes; cells that hold figures are marked, tables can be scrolled."""
    html = MarkdownIt('commonmark', {'html': False}).enable('table').render(markdown)
    html = NUMBER.sub(r'<td class="n">\1</td>', html)
    html = html.replace('<table>', '<div class="scroll"><table>')
    return html.replace('</table>', '</table></div>')


def embed(path: Path, caption: str) -> Picture:
    """A picture as a data URI: as it is, or compressed, for screens, if that takes less."""
    kept, size = path.read_bytes(), Image.open(path).size
    kind = 'png'
    image = Image.open(path).convert('RGB')
    if image.width > MAX_WIDTH:
        height = round(image.height * MAX_WIDTH / image.width)
        image = image.resize((MAX_WIDTH, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, 'WEBP', quality=QUALITY, method=6)
    if len(buffer.getvalue()) < len(kept):
        kind, kept, size = 'webp', buffer.getvalue(), image.size
    return Picture(f'data:image/{kind};base64,{base64.b64encode(kept).decode()}', *size, caption)
