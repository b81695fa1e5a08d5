"""A dataset that puts another sample in the place of one that cannot be made, and notes it down."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import get_worker_info

from .dataset_proxy import DatasetProxy

# Where a dataset of an OpenMMLab package says what it reads a sample from.
FILES = ('img_path', 'seg_map_path')
TAIL = 4096


class BadSample(NamedTuple):
    """A sample that cannot be made: its index, its files and why."""

    index: int
    files: str
    reason: str

    def __str__(self) -> str:
        return f'{self.files}: {self.reason}'


class SkippingDataset(DatasetProxy):
    """Takes the next sample, in the order of the dataset, for each that cannot be made.

    So what stands in for a sample depends on its index alone. A sample is bad if its pipeline
    raises, if a picture ends too early, or if labels of pixels do not fit the picture or the
    classes.

    Args:
        dataset: Map-style dataset.
        folder: Where each process writes the bad samples that it meets.
        rank: Of the process that trains.
        max_skipped: How many in a row to pass over at most.
    """

    def __init__(self, dataset: Any, folder: str, rank: int, max_skipped: int) -> None:
        super().__init__(dataset)
        for name, value in dict(
            folder=folder, rank=rank, max_skipped=max_skipped, seen=set()
        ).items():
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple:
        return type(self), (self.dataset, self.folder, self.rank, self.max_skipped)

    def __getitem__(self, index: Any) -> Any:
        """A sample, or the one that stands in for it.

        Raises:
            ValueError: None of `max_skipped` + 1 samples in a row can be made.
        """
        length, passed = len(self.dataset), []
        for step in range(min(self.max_skipped + 1, length)):
            place = (int(index) + step) % length
            try:
                return make_sample(self.dataset, place)
            except MemoryError:
                raise
            except Exception as error:  # pipelines raise what they like
                bad = BadSample(place, describe_files(self.dataset, place), describe_error(error))
                cause = error
            passed.append(bad)
            if place not in self.seen:
                self.seen.add(place)
                write_record(self.folder, self.rank, bad)
        raise ValueError(stop_message(passed, self.max_skipped)) from cause


def make_sample(dataset: Any, index: int) -> Any:
    """Load a sample and look at it.

    Raises:
        ValueError: A picture is truncated, or labels do not fit.
        Exception: Whatever the pipeline raises.
    """
    for path in files_of(dataset, index):
        if damage := find_truncation(path):
            raise ValueError(f'{os.path.basename(path)} {damage}')
    sample = dataset[index]
    if fault := find_fault(sample, dataset):
        raise ValueError(fault)
    return sample


def files_of(dataset: Any, index: int) -> list[str]:
    """The files of a sample, empty where the dataset does not tell."""
    try:
        info = dataset.get_data_info(index)
        return [info[key] for key in FILES if isinstance(info.get(key), str)]
    except Exception:  # not every dataset has it, nor is it sure to work for a bad sample
        return []


def describe_files(dataset: Any, index: int) -> str:
    """The files of a sample, or its index, for a message."""
    return ' with '.join(files_of(dataset, index)) or f'sample {index}'


def describe_error(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__


def find_truncation(path: str) -> str | None:
    """What is wrong with the end of a local JPEG or PNG; OpenCV decodes what is there silently.

    Reads the last 4 KB, and the whole file only where these do not tell.
    """
    try:
        with open(path, 'rb') as file:
            head = file.read(8)
            file.seek(max(os.fstat(file.fileno()).st_size - TAIL, 0))
            tail = file.read()
            if not head:
                return 'is empty'
            if head.startswith(b'\x89PNG') and b'IEND' not in tail:
                return 'is truncated: a PNG without its end'
            if head.startswith(b'\xff\xd8\xff') and not _ends(tail):
                file.seek(0)
                if not _ends(file.read()):
                    return 'is truncated: a JPEG without its end'
    except OSError:
        return None  # not there, or not a local file: the pipeline says so
    return None


def _ends(data: bytes) -> bool:
    """Whether the last scan of a JPEG ends; no such bytes are within one."""
    return data.rfind(b'\xff\xd9') > data.rfind(b'\xff\xda')


def find_fault(sample: Any, dataset: Any) -> str | None:
    """What is wrong with the labels of the pixels of a packed sample, if it has any."""
    if not isinstance(sample, dict):
        return None
    image = sample.get('inputs')
    labels = getattr(getattr(sample.get('data_samples'), 'gt_sem_seg', None), 'data', None)
    if not isinstance(image, Tensor) or not isinstance(labels, Tensor):
        return None
    if labels.shape[-2:] != image.shape[-2:]:
        return (
            f'the labels of its pixels are {tuple(labels.shape[-2:])}, the picture '
            f'{tuple(image.shape[-2:])}'
        )
    ignored = getattr(dataset, 'ignore_index', None)
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if ignored is not None and classes:
        highest = labels[labels != ignored]
        if highest.numel() and highest.max() >= len(classes):
            return f'a pixel has the label {int(highest.max())}, of {len(classes)} classes'
    return None


def write_record(folder: str, rank: int, bad: BadSample) -> None:
    """Append to the file of this process; nobody else writes to it."""
    worker = get_worker_info()
    name = f'rank{rank}.jsonl' if worker is None else f'rank{rank}_worker{worker.id}.jsonl'
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), 'a', encoding='utf-8') as file:
        file.write(json.dumps(bad) + '\n')


def read_records(folder: str) -> list[BadSample]:
    """The bad samples that any process has met, each once, by index."""
    return sorted({bad.index: bad for bad in _read_all(folder)}.values())


def _read_all(folder: str) -> Iterator[BadSample]:
    for path in sorted(Path(folder).glob('*.jsonl')):
        for line in path.read_text(encoding='utf-8').splitlines(keepends=True):
            if line.endswith('\n'):  # else it is being written
                yield BadSample(*json.loads(line))


def stop_message(bad: list[BadSample], max_skipped: int) -> str:
    """Why training stops."""
    more = f', and {len(bad) - 3} more' if len(bad) > 3 else ''
    return (
        f'samples of the training data cannot be used, more than `max_skipped` = {max_skipped} of '
        f'SkipBadSamplesHook: {"; ".join(map(str, bad[:3]))}{more}; repair or remove them'
    )
