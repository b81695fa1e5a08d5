"""Lay out the configs that model-index.yml lists, with the paper's figures, in docs/model_zoo.md.

    python tools/report_model_zoo.py           # after a change of a metafile
    python tools/report_model_zoo.py --check   # writes nothing; fails if the page is not up to date

What stands outside the markers `<!-- begin model zoo -->` and `<!-- end model zoo -->` of the page
is left as it is.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for `tools` where this is a script

from tools.report_reliability import markdown, update  # noqa: E402

PAGE = Path('docs', 'model_zoo.md')
NAME = 'model zoo'
NONE = '-'
SOURCE = 'where in the paper'


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--root', type=Path, default=ROOT, help='the repository')
    parser.add_argument(
        '--check', action='store_true', help='write nothing; fail if the page is not up to date'
    )
    args = parser.parse_args(argv)
    try:
        stale = update(args.root / PAGE, NAME, model_zoo(args.root), args.check)
    except ValueError as error:
        parser.exit(2, f'error: {error}\n')
    if args.check and stale:
        parser.exit(1, f'not up to date: {PAGE}; run tools/report_model_zoo.py\n')
    print(f'changed: {PAGE if stale else "nothing"}')
    return 0


def model_zoo(root: Path) -> str:
    """A heading and a table for each metafile."""
    index = yaml.safe_load((root / 'model-index.yml').read_text(encoding='utf8'))
    return '\n\n'.join(section(root, metafile) for metafile in index['Import'])


def section(root: Path, metafile: str) -> str:
    """The configs of one folder; columns that no row has are left out."""
    folder = Path(metafile).parent
    content = yaml.safe_load((root / metafile).read_text(encoding='utf8'))
    rows = [row(model) for model in content['Models']]
    columns = list(dict.fromkeys(column for cells in rows for column in cells))
    columns.sort(key=lambda column: column == SOURCE)  # the last one
    title = folder.name.replace('_', ' ').capitalize().replace('Pretraining', 'Pre-training')
    table = [columns, *([cells.get(column, NONE) for column in columns] for cells in rows)]
    return f'## {title}\n\n[Recipes and commands](../{folder}/README.md).\n\n{markdown(table)}'


def row(model: dict[str, Any]) -> dict[str, str]:
    """The cells of a model by column.

    Raises:
        ValueError: A figure does not say that it is the paper's.
    """
    facts = model.get('Metadata', {})
    cells = {
        'config': f'[`{model["Name"]}`](../{model["Config"]})',
        'data': facts['Training Data'],
        'length': length(facts),
    }
    if 'Parameters' in facts:
        cells['parameters (M)'] = f'{facts["Parameters"] / 1e6:.1f}'
    for result in model.get('Results', []):
        for metric, value in result['Metrics'].items():
            if not metric.endswith(' (paper)'):
                raise ValueError(
                    f'metric {metric!r} of {model["Name"]} must end with " (paper)", or this page '
                    'needs a column for figures of this project'
                )
            cells[f'{metric.removesuffix(" (paper)")}, **paper**'] = f'{value}'
    if source := facts.get('Source of Results'):
        cells[SOURCE] = source.removeprefix('paper, ')
    return cells


def length(facts: dict[str, Any]) -> str:
    """How long the training is, in epochs or iterations."""
    for unit in ('Epochs', 'Iterations'):
        if unit in facts:
            return f'{facts[unit]} {unit.lower()}'
    return NONE


if __name__ == '__main__':
    raise SystemExit(main())
