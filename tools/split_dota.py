"""Cut raw DOTA into the patches that the configs read, by the tool that mmrotate ships.

    python tools/split_dota.py RAW                  # into data/split_ss_dota
    python tools/split_dota.py RAW --multi-scale    # into data/split_ms_dota

RAW holds `train/images`, `train/labelTxt`, `val/images`, `val/labelTxt` and `test/images`. What
would make that tool lose objects or pictures without a word is an error here. A part is cut beside
its place and moved there when it is complete.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

if find_spec('itpn_mm') is None:  # a clone that is not installed
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from itpn_mm.hosts import describe_distributions, is_installed
from itpn_mm.launch import find_stock_script

STOCK_TOOL = 'data/dota/split/img_split.py'
# The folders that each part is cut from; the test part has no labels.
PARTS = {'trainval': ('train', 'val'), 'train': ('train',), 'val': ('val',), 'test': ('test',)}
UNLABELLED = 'test'
SUFFIXES = ('.jpg', '.JPG', '.png', '.tif', '.bmp')  # that the stock tool takes
PADDING = ('104', '116', '124')  # of a patch that reaches over the border, in BGR
HEADERS = ('imagesource', 'gsd')  # first words of the lines above the objects
PROGRESS = re.compile(r'\([\d.]+% (\d+):(\d+)\) - Filename: (.+?) - width')
TOTAL = re.compile(r'Total images number: (\d+)')


class SplitError(RuntimeError):
    """The raw data or the place for the patches are not as they have to be."""


@dataclass(frozen=True)
class Windows:
    """How pictures are cut.

    Args:
        size: Side of a patch in pixels.
        gap: Overlap of neighbouring patches in pixels.
        rates: Scales; at 0.5, patches have twice the side and are shrunk when they are read.
    """

    size: int
    gap: int
    rates: tuple[float, ...]

    def arguments(self) -> list[str]:
        """As the stock tool takes them."""
        rates = [str(rate) for rate in self.rates]
        return [f'--sizes={self.size}', f'--gaps={self.gap}', '--rates', *rates]


def split(raw: Path, out: Path, parts: list[str], windows: Windows, processes: int = 1) -> None:
    """Cut `parts` of `raw` into `out`/<part>/{images,annfiles}; what is there is replaced.

    Raises:
        SplitError: `raw` is not as it has to be, or the stock tool failed.
    """
    for part in parts:
        check_raw([raw / folder for folder in PARTS[part]], labelled=part != UNLABELLED)
    out.mkdir(parents=True, exist_ok=True)
    for part in parts:
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f'.{part}-', dir=out) as scratch:
            made = Path(scratch) / part
            cut(raw, part, made, windows, processes)
            if (out / part).exists():
                shutil.rmtree(out / part)
            made.rename(out / part)
        labels = list((out / part / 'annfiles').iterdir())
        objects = sum(path.stat().st_size > 0 for path in labels)
        print(
            f'{part}: {len(labels)} patches, {objects} with objects, in {out / part}, '
            f'written in {time.monotonic() - start:.1f} s',
            flush=True,
        )


def check_raw(folders: list[Path], labelled: bool) -> None:
    """Raise SplitError unless the stock tool would take every picture and object of `folders`."""
    seen: dict[str, Path] = {}
    for folder in folders:
        pictures = list_pictures(folder / 'images')
        labels = folder / 'labelTxt'
        if labelled and not labels.is_dir():
            raise SplitError(f'the folder {labels} does not exist; put the labels of DOTA there')
        for picture in pictures:
            check_name(picture, seen)
            if labelled:
                check_labels(labels / f'{picture.stem}.txt', picture)


def list_pictures(folder: Path) -> list[Path]:
    """Pictures in `folder` by name; SplitError if it is not there or holds none."""
    if not folder.is_dir():
        raise SplitError(f'the folder {folder} does not exist; RAW has to be unpacked as DOTA is')
    files = sorted(path for path in folder.iterdir() if not path.name.startswith('.'))
    pictures = [path for path in files if path.suffix in SUFFIXES]
    if not pictures:
        raise SplitError(f'no pictures in {folder}; expected files ending in {", ".join(SUFFIXES)}')
    others = [path for path in files if path not in pictures]
    if others:
        raise SplitError(f'{others[0]} would be left out; rename or remove it: {SUFFIXES} are read')
    return pictures


def check_name(picture: Path, seen: dict[str, Path]) -> None:
    """Names are unique, for patches are named by them, and hold no `__`, where merging cuts."""
    if picture.stem in seen:
        raise SplitError(
            f'{seen[picture.stem]} and {picture} have the same name, so that patches of one would '
            'replace those of the other; rename one'
        )
    seen[picture.stem] = picture
    if '__' in picture.stem:
        raise SplitError(
            f'the name of {picture} holds `__`, at which results of patches are told apart; rename '
            'it'
        )


def check_labels(path: Path, picture: Path) -> None:
    """Each line has the ten fields that the stock tool reads."""
    if not path.is_file():
        raise SplitError(
            f'{picture} has no labels; {path} has to exist, empty if nothing is in the picture'
        )
    for number, line in enumerate(path.read_text(errors='replace').splitlines(), start=1):
        if line.strip() and not line.startswith(HEADERS) and not is_object(line):
            raise SplitError(
                f'{path}:{number} is {line!r}; expected x1 y1 x2 y2 x3 y3 x4 y4 class difficulty, '
                'with single spaces between'
            )


def is_object(line: str) -> bool:
    """Whether `line` is 8 coordinates, a class and a difficulty, with single spaces between."""
    fields = line.split(' ')
    try:
        [float(field) for field in fields[:8]], int(fields[9])
    except (ValueError, IndexError):
        return False
    return len(fields) == 10 and bool(fields[8])


def cut(raw: Path, part: str, made: Path, windows: Windows, processes: int) -> None:
    """Let the stock tool make the folder `made`, showing its progress.

    Raises SplitError if it fails, or wrote less than it says.
    """
    folders = [raw / folder for folder in PARTS[part]]
    command = [sys.executable, '-u', find_stock_script('mmrotate', STOCK_TOOL)]
    command += [f'--nproc={processes}', *windows.arguments(), '--padding-value', *PADDING]
    command += ['--img-rate-thr=0.6', '--iof-thr=0.7', f'--save-dir={made}', '--save-ext=.png']
    command += ['--img-dirs', *(folder / 'images' for folder in folders)]
    if part != UNLABELLED:
        command += ['--ann-dirs', *(folder / 'labelTxt' for folder in folders)]
    last, total, done = '', None, set()
    for line in follow([str(word) for word in command], part):
        last = line.strip() or last
        if match := PROGRESS.search(line):
            done.add(match[3])
        elif match := TOTAL.match(line):
            total = int(match[1])
    if total is None:
        check_readable([folder / 'images' for folder in folders], done)
        raise SplitError(f'{part}: the tool of mmrotate stopped with: {last or "no message"}')
    for folder in ('images', 'annfiles'):
        count = len(list((made / folder).iterdir()))
        if count != total:
            raise SplitError(
                f'{part}: {count} of {total} files of {folder} were written; is the disk full?'
            )


def check_readable(folders: list[Path], done: set[str]) -> None:
    """Raise SplitError at a damaged picture, which the stock tool does not name, beside `done`."""
    Image.MAX_IMAGE_PIXELS = None  # some pictures of DOTA are larger than what Pillow thinks safe
    for picture in (path for folder in folders for path in list_pictures(folder)):
        if picture.name in done:
            continue
        try:
            Image.open(picture).load()
        except (OSError, SyntaxError) as error:
            raise SplitError(f'{picture} is damaged: {error}; replace it') from error


def follow(command: list[str], part: str) -> Iterator[str]:
    """Run `command` and yield its lines; those of progress are shown too.

    They are rewritten on a terminal; elsewhere one appears every 5 seconds.
    """
    terminal = sys.stdout.isatty()
    start = shown = time.monotonic()
    print(f'{part}: reading the list of pictures', flush=True)
    # A session of its own: the tool's pool of processes has to end with it.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
        start_new_session=True,
    )
    try:
        for line in process.stdout:
            yield line
            match = PROGRESS.search(line)
            if not match:
                continue
            now, done, total = time.monotonic(), int(match[1]), int(match[2])
            if done < total and now - shown < (0.2 if terminal else 5):
                continue
            shown = now
            left = (now - start) * (total - done) / done
            text = f'{part}: {done} of {total} pictures, about {left:.0f} s left'
            end = '\n' if done == total or not terminal else ''
            print(f'\r{text:<79}' if terminal else text, end=end, flush=True)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('raw', type=Path, metavar='RAW', help='folder of the unpacked DOTA')
    parser.add_argument(
        '--out', type=Path, help='default: data/split_ss_dota, or data/split_ms_dota'
    )
    parser.add_argument(
        '--parts',
        nargs='+',
        choices=PARTS,
        default=['trainval', 'test'],
        help='default: trainval test; `train val` keeps the validation apart',
    )
    parser.add_argument(
        '--multi-scale', action='store_true', help='scales 0.5, 1 and 1.5, an overlap of 500'
    )
    parser.add_argument('--size', type=int, default=1024, help='side of a patch; default: 1024')
    parser.add_argument('--gap', type=int, help='overlap; default: 200, or 500 with --multi-scale')
    parser.add_argument(
        '--processes',
        type=int,
        default=min(os.cpu_count() or 1, 10),
        help='each holds a whole picture; default: %(default)s',
    )
    parser.add_argument('--fresh', action='store_true', help='replace what is there')
    args = parser.parse_args(arguments)
    multi = args.multi_scale
    windows = Windows(
        size=args.size,
        gap=(500 if multi else 200) if args.gap is None else args.gap,
        rates=(0.5, 1.0, 1.5) if multi else (1.0,),
    )
    out = args.out or Path('data') / ('split_ms_dota' if multi else 'split_ss_dota')
    try:
        if not 0 <= windows.gap < windows.size:
            raise SplitError(
                f'the gap is {windows.gap}, but has to be at least 0 and less than the size, '
                f'{windows.size}'
            )
        if args.processes < 1:
            raise SplitError(f'--processes is {args.processes}, but has to be at least 1')
        if not is_installed('mmrotate'):
            raise SplitError(
                f'mmrotate is not installed; install {describe_distributions("mmrotate")}'
            )
        for part in args.parts:
            if not args.fresh and (out / part).exists() and any((out / part).iterdir()):
                raise SplitError(f'{out / part} is not empty; --fresh makes it again')
        split(args.raw, out, args.parts, windows, args.processes)
    except (SplitError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\ninterrupted; parts that are complete are kept', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
