"""Predict on pictures with a detector or segmentor, panoptic ones too: drawings, and JSON beside.

    python tools/predict.py CONFIG CHECKPOINT IMAGE... --out FOLDER [--score-thr 0.3]

CONFIG is of mmdet, mmrotate or mmseg. An IMAGE is a file, a folder (the pictures in it, without
sub-folders) or a quoted pattern ('photographs/**/*.jpg'). A picture that cannot be read is reported
and skipped; the exit status is then 1. docs/inference.md describes the JSON.
"""

import argparse
import statistics
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from mmengine.utils import ProgressBar

if find_spec('itpn_mm') is None:  # a clone that is not installed
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from prediction.drawing import Drawer, write_png
from prediction.pictures import find_pictures, first_line, name_results
from prediction.predictor import Picture, Predictor
from prediction.results import (
    describe_instances,
    describe_labels,
    describe_segments,
    encode_segments,
    select_instances,
    select_labels,
    select_segments,
    to_json,
)

from itpn_mm.hosts import is_installed
from itpn_mm.launch import read_config

# What configs and checkpoints raise that are not there, or do not fit.
MISTAKES = (AssertionError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError)
SAID = dict(  # what the last line counts
    segments_info='{} segments', instances='{} objects', classes='classes of pixels'
)
LISTED = 8  # most pictures that the last line tells one by one


class Run:
    """Predicts on files one after another and keeps what the last line tells.

    Args:
        predictor: The model.
        out: Folder for the results.
        threshold: Least score of objects.
        total: Number of files.
    """

    def __init__(self, predictor: Predictor, out: Path, threshold: float, total: int) -> None:
        self.predictor, self.out, self.threshold = predictor, out, threshold
        self.drawer = None
        if is_installed('matplotlib'):  # the visualizers need it
            self.drawer = Drawer(predictor.names, predictor.palette)
        else:
            print('matplotlib is not installed: only JSON is written', file=sys.stderr)
        self.found: list[tuple[str, int]] = []  # picture, its objects or its classes of pixels
        self.what = '{} objects'
        self.skipped = 0
        self.bar = ProgressBar(total, file=sys.stderr)

    def skip(self, path: Path, reason: object) -> None:
        """Report a file that gives no result, and go on with the bar."""
        self.skipped += 1
        print(f'\n{path}: skipped, {reason}', file=sys.stderr)
        self.bar.update()

    def predict(self, batch: Sequence[tuple[Picture, str]]) -> None:
        """Predict on pictures of one input shape, and write the results under their names."""
        try:
            samples = self.predictor.predict([picture for picture, _ in batch])
        except (RuntimeError, AssertionError, ValueError, IndexError) as error:
            if len(batch) > 1:  # too large for the memory, or only one of them is at fault
                for item in batch:
                    self.predict([item])
            else:
                self.skip(batch[0][0].path, f'the model fails on it ({first_line(error)})')
            return
        for (picture, name), sample in zip(batch, samples, strict=True):
            self.write(picture, name, sample)
            self.bar.update()

    def write(self, picture: Picture, name: str, sample: object) -> None:
        """Write the drawing and the JSON of a picture.

        Raises:
            ValueError: The model gives nothing that can be written.
        """
        drawing = self.out / f'{name}.png'
        height, width = picture.image.shape[:2]
        head = dict(image=str(picture.path), width=width, height=height)
        lists = {}  # the first is what was found
        if (segments := select_segments(sample, self.predictor.num_classes)) is not None:
            head['panoptic'] = f'{name}_panoptic.png'
            lists['segments_info'] = self._write_segments(picture, *segments, head, drawing)
            drawing = None
        if (found := select_instances(sample, self.threshold)) is not None:
            lists['instances'] = describe_instances(found, self.predictor.names)
            if self.drawer and drawing:
                self.drawer.draw_instances(picture.image, found, drawing)
        elif not lists and (labels := select_labels(sample)) is not None:
            head['labels'] = f'{name}_labels.png'
            lists['classes'] = self._write_labels(picture, labels, head, drawing)
        if not lists:
            raise ValueError(
                f'{type(self.predictor.model).__name__} gives neither objects nor a segmentation, '
                f'but {sample.keys()}'
            )
        kind, items = next(iter(lists.items()))
        self.what = SAID[kind]
        self.found.append((picture.path.name, len(items)))
        (self.out / f'{name}.json').write_text(to_json(head, lists))

    def _write_segments(
        self, picture: Picture, numbers: np.ndarray, segments: list[dict], head: dict, drawing: Path
    ) -> list[dict]:
        write_png(self.out / head['panoptic'], encode_segments(numbers))
        if self.drawer:
            self.drawer.draw_segments(picture.image, numbers, segments, drawing)
        return describe_segments(numbers, segments, self.predictor.names)

    def _write_labels(
        self, picture: Picture, labels: np.ndarray, head: dict, drawing: Path
    ) -> list[dict]:
        names = self.predictor.names
        kind = np.uint8 if len(names) <= 256 else np.uint16
        write_png(self.out / head['labels'], labels.astype(kind))
        if self.drawer:
            self.drawer.draw_labels(picture.image, labels, drawing)
        return describe_labels(labels, names)

    def summary(self) -> str:
        """One line: what was found in each picture, what was skipped, where it is."""
        counts = [count for _, count in self.found]
        pictures = f'{len(counts)} picture{"" if len(counts) == 1 else "s"}'
        if 0 < len(counts) <= LISTED:
            listed = ', '.join(f'{name} {count}' for name, count in self.found)
            pictures = f'{pictures} ({listed})'
        elif counts:
            middle = statistics.median_low(counts)
            pictures = f'{pictures} ({min(counts)} to {max(counts)} each, median {middle})'
        skipped = f'; {self.skipped} skipped' if self.skipped else ''
        return f'{self.what.format(sum(counts))} in {pictures}{skipped}; see {self.out}'


def batches(run: Run, files: Sequence[Path], size: int) -> Iterator[list[tuple[Picture, str]]]:
    """Read files and group neighbours of one input shape, so that nobody's padding matters."""
    batch: list[tuple[Picture, str]] = []
    for file, name in zip(files, name_results(files), strict=True):
        try:
            picture = run.predictor.prepare(file)
        except ValueError as error:
            run.skip(file, error)
            continue
        if batch and (len(batch) == size or batch[0][0].input_shape != picture.input_shape):
            yield batch
            batch = []
        batch.append((picture, name))
    if batch:
        yield batch


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('images', nargs='+', metavar='IMAGE')
    parser.add_argument('--out', type=Path, required=True, help='folder for the results')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='least score of an object (default: 0.3)'
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1 (default: cuda where there is one)')
    parser.add_argument('--batch', type=int, default=1, help='most pictures at a time (default: 1)')
    return parser.parse_args(arguments)


def find_device(name: str | None) -> torch.device:
    """The device of a name.

    Raises:
        ValueError: It is not there.
    """
    name = name or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        return torch.zeros(1, device=name).device
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f'`--device` {name!r} is not there ({first_line(error)})') from error


def start(args: argparse.Namespace) -> tuple[Run, list[Path]]:
    """Check the arguments, load the model and make the folder.

    Raises:
        MISTAKES: Something is not there or does not fit.
    """
    if not 0 <= args.score_thr <= 1:
        raise ValueError(f'`--score-thr` must be from 0 to 1, but got {args.score_thr}')
    if args.batch < 1:
        raise ValueError(f'`--batch` must be at least 1, but got {args.batch}')
    device = find_device(args.device)
    try:
        cfg = read_config([args.config])
    except SyntaxError as error:
        raise ValueError(f'{args.config}: {error}') from error
    files = find_pictures(args.images, args.out)
    predictor = Predictor(cfg, args.checkpoint, device)
    args.out.mkdir(parents=True, exist_ok=True)
    return Run(predictor, args.out, args.score_thr, len(files)), files


def work(args: argparse.Namespace) -> int:
    """Predict on all pictures and tell the result; the exit status."""
    run = None
    try:
        try:
            run, files = start(args)
        except MISTAKES as error:
            sys.exit(f'predict.py: {first_line(error)}')
        for batch in batches(run, files, args.batch):
            run.predict(batch)
    except KeyboardInterrupt:
        print('\npredict.py: interrupted', file=sys.stderr)
        if run is not None:
            print(run.summary())
        return 130
    except (OSError, ValueError) as error:
        sys.exit(f'predict.py: {first_line(error)}')
    print(file=sys.stderr)
    print(run.summary())
    return int(run.skipped > 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit status: 1 if a picture was skipped, 130 if interrupted."""
    args = parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # of the packages, about their own code
        return work(args)


if __name__ == '__main__':
    sys.exit(main())
