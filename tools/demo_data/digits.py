"""Handwritten digits in class folders, split between the forms that people filled in."""

import csv
import gzip
import io
from pathlib import Path

import numpy as np
from PIL import Image

from .archives import ArchiveError, ArchiveReader
from .pictures import save_png

PACKAGE = 'scikit-learn'
TABLE = 'sklearn/datasets/data/digits.csv.gz'  # a row a digit: 64 counts of 0..16, then its class
SIDE, LEVELS = 8, 16
CLASSES = tuple('0123456789')
PIXELS = 64  # of a picture written

# People copied a form of about 130 digits, the same for all, and the table goes form by form: its
# classes start again with 0123456789 0123456789 0123456789 09556... at these rows (a few digits are
# missing). Its description names 13 writers, so one of them may have filled in two forms.
FORMS = (0, 130, 256, 386, 516, 646, 776, 906, 1029, 1157, 1287, 1415, 1545, 1667)
# A digit of a hand that is in the training part is an easy one: whole forms are held out.
TEST_FORMS = (11, 12, 13)
# Training lists with few labels: so many of each class, drawn with each of these seeds.
FEW = (10, 50)
SEEDS = (0, 1, 2)


def build(folder: Path, reader: ArchiveReader) -> tuple[dict, dict]:
    """Write `{train,test}/<class>/*.png` and the lists `meta/*.txt` of files and their classes.

    Returns counts, and what was made of each (package, member).
    """
    pictures, labels = read_digits(reader)
    forms = np.searchsorted(FORMS, np.arange(len(labels)), side='right') - 1
    lists: dict[str, list[str]] = {'train': [], 'test': []}
    for row, (picture, label, form) in enumerate(zip(pictures, labels, forms)):
        split = 'test' if form in TEST_FORMS else 'train'
        name = f'{CLASSES[label]}/form{form:02d}_{row:04d}.png'
        save_png(folder / split / name, enlarge(picture))
        lists[split].append(f'{name} {label}')
    counts = {f'{split}_images': len(lines) for split, lines in lists.items()}
    for number in FEW:
        for seed in SEEDS:
            lists[few_name(number, seed)] = draw_few(lists['train'], number, seed)
    (folder / 'meta').mkdir()
    for name, lines in lists.items():
        (folder / 'meta' / f'{name}.txt').write_text('\n'.join(lines) + '\n')
    made = f'{counts["train_images"]} train and {counts["test_images"]} test images'
    return counts, {(PACKAGE, TABLE): made}


def read_digits(reader: ArchiveReader) -> tuple[np.ndarray, np.ndarray]:
    """The table: (N, 8, 8) uint8 of 0..16 and (N,) classes. Raises ArchiveError if misshapen."""
    text = gzip.decompress(reader.read(PACKAGE, TABLE)).decode()
    rows = np.array([[float(cell) for cell in row] for row in csv.reader(io.StringIO(text))])
    if rows.ndim != 2 or rows.shape[1] != SIDE * SIDE + 1 or len(rows) <= FORMS[-1]:
        raise ArchiveError(
            f'{TABLE} must have 65 columns and more than {FORMS[-1]} rows, got {rows.shape}'
        )
    table = rows.astype(np.uint8)
    return table[:, :-1].reshape(-1, SIDE, SIDE), table[:, -1].astype(int)


def enlarge(picture: np.ndarray) -> np.ndarray:
    """(8, 8) of 0..16 -> (64, 64) uint8 of 0..255, bicubic."""
    grey = Image.fromarray(np.rint(picture * (255 / LEVELS)).astype(np.uint8))
    return np.asarray(grey.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC))


def few_name(number: int, seed: int) -> str:
    """Name of the list with `number` labels of each class."""
    return f'train_{number}-per-class_seed{seed}'


def draw_few(lines: list[str], number: int, seed: int) -> list[str]:
    """`number` lines of each class, which is the last word of a line; in their order."""
    rng = np.random.default_rng([number, seed])
    labels = np.array([int(line.split()[-1]) for line in lines])
    drawn = [rng.choice(np.flatnonzero(labels == c), number, replace=False) for c in set(labels)]
    return [lines[i] for i in sorted(np.concatenate(drawn).tolist())]
