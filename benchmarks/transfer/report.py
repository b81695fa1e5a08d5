"""Tables and plots of docs/pretraining.md from the rows of the study."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .plan import FAMILIES, PRETRAININGS, TASKS
from .results import PRETRAIN, scores
from .statistics import Estimate, estimate, paired

DOCUMENT = Path('docs/pretraining.md')
DEFAULT = 'integral'
# Rows of the tables: label, pre-training, whether the pyramid is loaded.
INTEGRAL = (
    ('random weights', 'none', False),
    ('backbone alone by MIM, random pyramid', 'mim', False),
    ('integral, pyramid not loaded', DEFAULT, False),
    ('integral, pyramid loaded', DEFAULT, True),
)
PARTS = (
    ('convolutions', 'MIM', 'conv-no-mfm'),
    ('C-MLP', 'MIM', 'no-mfm'),
    ('convolutions', 'MIM and MFM', 'conv'),
    ('C-MLP', 'MIM and MFM', DEFAULT),
)
OPEN = (
    'visible',
    'raw-targets',
    'whole-image',
    'lambda-0.1',
    'lambda-1',
    'momentum-0.98',
    'momentum-0.999',
)
TEACHERS = ('fixed-views', 'teacher')


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    header = list(header)
    lines = [header, ['---'] * len(header), *map(list, rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def cell(values: dict[int, float]) -> str:
    """Mean and interval over seeds, or a dash."""
    return str(estimate(list(values.values()))) if values else '-'


def difference(found: Estimate | None) -> str:
    """A paired difference; bold where its interval excludes zero."""
    if found is None:
        return '-'
    return f'**{found.signed()}**' if found.sure else found.signed()


def integral_table(rows: dict[str, Any]) -> str:
    """Table VIII: what is pre-trained and what of it is loaded."""
    columns = [
        (family, task)
        for task in TASKS
        for family in FAMILIES
        if scores(rows, family, 'none', task, False)
    ]
    header = [
        'start',
        *(f'{TASKS[task][0]}: {TASKS[task][1]}, {FAMILIES[f]}' for f, task in columns),
    ]
    body = [
        [label, *(cell(scores(rows, f, name, task, loaded)) for f, task in columns)]
        for label, name, loaded in INTEGRAL
    ]
    best = INTEGRAL[-1]
    for label, name, loaded in INTEGRAL[:-1]:
        body.append(
            [
                f'*{best[0]} - {label}*',
                *(
                    difference(
                        paired(
                            scores(rows, f, best[1], task, best[2]),
                            scores(rows, f, name, task, loaded),
                        )
                    )
                    for f, task in columns
                ),
            ]
        )
    return table(header, body)


def parts_table(rows: dict[str, Any]) -> str:
    """Table IX: channel MLPs or convolutions in the pyramid, MFM or not."""
    header = ['pyramid', 'targets']
    for label in FAMILIES.values():
        header += [f'mIoU, {label}', 'default - this']
    body = []
    for pyramid, targets, name in PARTS:
        line = [pyramid, targets]
        for family in FAMILIES:
            found = scores(rows, family, name, 'classes')
            line.append(cell(found))
            reference = scores(rows, family, DEFAULT, 'classes')
            line.append('' if name == DEFAULT else difference(paired(reference, found)))
        body.append(line)
    return table(header, body)


def open_table(rows: dict[str, Any]) -> str:
    """What the paper leaves open, each against the default."""
    reference = scores(rows, 'itpn', DEFAULT, 'classes')
    body = [['the default', cell(reference), '']]
    for name in OPEN:
        found = scores(rows, 'itpn', name, 'classes')
        body.append([PRETRAININGS[name].label, cell(found), difference(paired(found, reference))])
    return table(['MFM', 'mIoU', 'this - default'], body)


def teacher_table(rows: dict[str, Any]) -> str:
    """A foreign teacher against pixels, on the same views."""
    header, body = ['supervision'], [[PRETRAININGS[name].label] for name in TEACHERS]
    body.append(['*teacher - pixels*'])
    for family, label in FAMILIES.items():
        header.append(f'mIoU, {label}')
        pixels, features = (scores(rows, family, name, 'classes') for name in TEACHERS)
        body[0].append(cell(pixels))
        body[1].append(cell(features))
        body[2].append(difference(paired(features, pixels)))
    return table(header, body)


def count_line(rows: dict[str, Any]) -> str:
    """How much was run."""
    if not rows:
        return 'Nothing was run yet: the tables below are empty.'
    hours = sum(row['seconds'] for row in rows.values()) / 3600
    pretrainings = sum(name.endswith(PRETRAIN) for name in rows)
    return (
        f'{pretrainings} pre-trainings and {len(rows) - pretrainings} fine-tunings, '
        f'{hours:.1f} hours of one core.'
    )


TABLES = {
    'count': count_line,
    'integral': integral_table,
    'parts': parts_table,
    'open': open_table,
    'teacher': teacher_table,
}


def fill(text: str, rows: dict[str, Any]) -> str:
    """The document with its tables made anew, each between its two markers."""
    for name, make in TABLES.items():
        begin, end = f'<!-- begin {name} -->', f'<!-- end {name} -->'
        if begin not in text or end not in text:
            raise ValueError(f'{DOCUMENT} must have the lines {begin} and {end}')
        head, rest = text.split(begin, 1)
        text = f'{head}{begin}\n\n{make(rows)}\n\n{end}{rest.split(end, 1)[1]}'
    return text


def write_all(rows: dict[str, Any], root: Path) -> list[Path]:
    """Write tables and plots; the files."""
    from .plots import draw_curves, draw_differences

    document = root / DOCUMENT
    document.write_text(fill(document.read_text(), rows))
    images = root / 'docs' / 'images'
    plots = [images / 'transfer_curves.png', images / 'transfer_differences.png']
    draw_curves(rows, plots[0])
    draw_differences(rows, plots[1])
    return [document, *plots]
