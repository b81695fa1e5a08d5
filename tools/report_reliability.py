"""Lay out what the tests found of the reliability checklist: tables in docs and README.

    bash tools/run_tests.sh --slow                     # writes work_dirs/reliability.json
    bash tools/run_tests.sh --slow --stack openmmlab   # writes work_dirs/reliability-openmmlab.json
    python tools/report_reliability.py

Records found in work_dirs are copied to docs/reliability/<stack>.json; the tables between the
markers `<!-- begin reliability -->` in docs/reliability.md and `<!-- begin versions -->` in
README.md are made of those. What is in a record is written in tests/checklist.py.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Stack -> the record that a run leaves, and the stack's name in tables.
RECORDS = {'onedl': 'reliability.json', 'openmmlab': 'reliability-openmmlab.json'}
TITLES = {'onedl': 'OneDL', 'openmmlab': 'OpenMMLab'}
# A row of the table of versions -> distributions that may stand for it.
PACKAGES = {
    'torch': ('torch',),
    'numpy': ('numpy',),
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv'),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
    'mmrotate': ('onedl-mmrotate', 'mmrotate'),
    'onnxruntime': ('onnxruntime',),
}
Records = dict[str, dict[str, Any]]  # of each stack


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--root', type=Path, default=ROOT, help='the repository')
    parser.add_argument(
        '--check', action='store_true', help='write nothing; fail if a table is not up to date'
    )
    args = parser.parse_args(argv)
    try:
        if not args.check:
            collect(args.root)
        records = read(args.root)
        stale = [
            path.name
            for path, name, body in (
                (args.root / 'docs' / 'reliability.md', 'reliability', checklist_table(records)),
                (args.root / 'README.md', 'versions', versions_table(records)),
            )
            if update(path, name, body, args.check)
        ]
    except ValueError as error:
        parser.exit(2, f'error: {error}\n')
    if args.check and stale:
        parser.exit(1, f'not up to date: {", ".join(stale)}; run tools/report_reliability.py\n')
    print('changed: ' + (', '.join(stale) or 'nothing'))
    return 0


def collect(root: Path) -> None:
    """Copy the records of the last runs to where the docs keep them."""
    for stack, name in RECORDS.items():
        if (source := root / 'work_dirs' / name).exists():
            target = root / 'docs' / 'reliability' / f'{stack}.json'
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def read(root: Path) -> Records:
    """The records that the docs keep.

    Raises:
        ValueError: There is none.
    """
    folder = root / 'docs' / 'reliability'
    paths = {stack: folder / f'{stack}.json' for stack in RECORDS}
    found = {stack: json.loads(path.read_text()) for stack, path in paths.items() if path.exists()}
    if not found:
        raise ValueError(f'no record in {folder}; run bash tools/run_tests.sh --slow first')
    return found


def update(path: Path, name: str, body: str, check: bool = False) -> bool:
    """Put `body` between the markers `name` of a file, unless `check`; whether that changes it.

    Raises:
        ValueError: The file has no such markers, or more than one pair.
    """
    begin, end = f'<!-- begin {name} -->', f'<!-- end {name} -->'
    text = path.read_text()
    if (text.count(begin), text.count(end)) != (1, 1) or text.index(begin) > text.index(end):
        raise ValueError(f'{path} must have one {begin} and, after it, one {end}')
    head, rest = text.split(begin)
    new = f'{head}{begin}\n\n{body}\n\n{end}{rest.split(end)[1]}'
    if not check:
        path.write_text(new)
    return new != text


def checklist_table(records: Records) -> str:
    """Each line with its tests on each stack, and the figures that they left."""
    heads = [f'{TITLES[stack]}, {selection(record)}' for stack, record in records.items()]
    rows = [['what has to hold', *heads, 'figures (limit)']]
    texts = {name: line['text'] for r in records.values() for name, line in r['lines'].items()}
    for name, text in texts.items():
        lines = [record['lines'].get(name) for record in records.values()]
        rows.append([f'`{name}`: {text}', *map(outcome, lines), '; '.join(figures(lines))])
    parts = [markdown(rows)]
    for stack, record in records.items():
        parts += skips(TITLES[stack], record)
    return '\n\n'.join(parts)


def selection(record: dict[str, Any]) -> str:
    return 'all tests' if record['slow'] else 'without slow tests'


def outcome(counts: dict[str, Any] | None) -> str:
    """What became of the tests of a line."""
    skipped = sum(counts['skipped'].values()) if counts else 0
    if not counts or not counts['passed'] + counts['failed'] + skipped:
        return 'not tested'
    parts = [f'**{counts["failed"]} failed**'] if counts['failed'] else []
    if counts['passed'] or not skipped:
        parts.append(f'{counts["passed"]} passed')
    if skipped:
        parts.append(f'{skipped} skipped')
    return f'{", ".join(parts)}; {counts["seconds"]:.0f} s'


def figures(lines: list[dict[str, Any] | None]) -> list[str]:
    """The figures of a line, one text each; where stacks differ, one after the other."""
    found: dict[tuple[str, str | None], list[str]] = {}
    for line in filter(None, lines):
        cases = (
            [dict(what='random cases', value=line['cases'], limit=None)] if line['cases'] else []
        )
        for figure in cases + line['figures']:
            values = found.setdefault((figure['what'], figure['limit']), [])
            if (value := number(figure['value'])) not in values:
                values.append(value)
    return [
        f'{what} {" / ".join(values)}' + (f' ({limit})' if limit else '')
        for (what, limit), values in found.items()
    ]


def number(value: float | int | str) -> str:
    return f'{value:.2g}' if isinstance(value, float) else str(value)


def skips(title: str, record: dict[str, Any]) -> list[str]:
    """Why tests of the checklist were skipped."""
    lines: dict[str, list[str]] = {}
    for name, line in record['lines'].items():
        for reason, count in line['skipped'].items():
            lines.setdefault(reason, []).append(f'{count} of `{name}`')
    if not lines:
        return []
    items = [f'* {reason}: {", ".join(counts)}' for reason, counts in lines.items()]
    return [f'Skipped on {title}:', '\n'.join(items)]


def versions_table(records: Records) -> str:
    """What was tested with which versions."""
    rows = [['', *(f'{TITLES[stack]} stack' for stack in records)]]
    rows.append(['Python', *(record['python'] for record in records.values())])
    for name, distributions in PACKAGES.items():
        cells = []
        for record in records.values():
            installed = [d for d in distributions if d in record['versions']]
            texts = [f'{record["versions"][d]}' + f' ({d})' * (d != name) for d in installed]
            cells.append(', '.join(texts) or 'absent')
        rows.append([name, *cells])
    rows.append(['tests', *(f'{total(record)} ({record["date"]})' for record in records.values())])
    return markdown(rows)


def total(record: dict[str, Any]) -> str:
    counts = record['tests']
    parts = [f'{counts["passed"]} passed', f'{sum(counts["skipped"].values())} skipped']
    if counts['failed']:
        parts.insert(0, f'**{counts["failed"]} failed**')
    if not record['finished']:
        parts.append('**stopped early**')
    return f'{selection(record)}: {", ".join(parts)}'


def markdown(rows: list[list[str]]) -> str:
    cells = [[cell.replace('|', '\\|') for cell in row] for row in rows]
    lines = [f'| {" | ".join(row)} |'.replace('|  |', '| |') for row in cells]
    return '\n'.join([lines[0], '|' + '---|' * len(rows[0]), *lines[1:]])


if __name__ == '__main__':
    raise SystemExit(main())
