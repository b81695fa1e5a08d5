"""Runs the demo's steps: commands with a banner, a log, a time, and a stamp when complete."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What the OpenMMLab packages print beside progress and results; logs keep all of it.
NOISE = re.compile(
    r'is skipped since its requires_grad|paramwise_options --|will be deprecated in future'
    r'|Exp name: |Distributed training is not used|_copypaste: |Could not import OneDL'
    r'|pin_memory|super\(\)\.__init__\(loader\)'
    r'|^(Loading and preparing|loading annotations|DONE|Done|creating index|index created'
    r'|Running per image|Evaluate annotation|Accumulating|COCOeval)'
    r'|^ Average (Precision|Recall)|^ *$'
)
HEADER = re.compile(r'^[\d/]+ [\d:]+ - mmengine - [A-Z]+ - (.*)')
# The message of a header that begins a long block: the environment, the config, the hooks.
BLOCK = re.compile(r'$|Config:$|Hooks will be executed')


class StepError(RuntimeError):
    """A step failed."""


class LiveFilter:
    """Decides line by line what of a training's output is shown."""

    def __init__(self) -> None:
        self.in_block = False

    def shows(self, line: str) -> bool:
        """Whether to show the next line."""
        header = HEADER.match(line)
        if header:
            self.in_block = bool(BLOCK.match(header[1]))
        elif line.startswith('Traceback'):
            self.in_block = False
        return not self.in_block and not NOISE.search(line)


class Steps:
    """Runs steps one after the other under a folder, and skips those that are complete.

    Args:
        work: The folder; `logs/` and `stamps/` are made in it.
        total: How many steps there will be, for the banners.
    """

    def __init__(self, work: Path, total: int) -> None:
        self.work, self.total = work, total
        self.number, self.start = 0, time.monotonic()
        self.executed = 0  # steps that were not skipped

    def run(
        self,
        name: str,
        command: Sequence[str],
        outputs: Iterable[Path],
        inputs: Sequence[str] = (),
        clear: Path | None = None,
    ) -> None:
        """Run a step unless its stamp says that it was run with these very inputs.

        Args:
            name: Of the step, its log and its stamp.
            command: Of the step; the first word is the interpreter.
            outputs: What it writes; without them it is not complete.
            inputs: What its result depends on beside the command: digests and older stamps.
            clear: A folder to remove first, so that what it holds is of one run.

        Raises:
            StepError: The command failed or left an output out; the message names the log.
        """
        key = digest([*command, *inputs])
        self._banner(name, command)
        stamp = self.read(name)
        if stamp.get('key') == key and all(path.exists() for path in outputs):
            print(f'   complete: {clock(stamp["seconds"])} on {stamp["finished"]}', flush=True)
            return
        self._path(name).unlink(missing_ok=True)
        if clear is not None and clear.exists():
            shutil.rmtree(clear)
        seconds = self.execute(name, command)
        missing = [str(path) for path in outputs if not path.exists()]
        if missing:
            raise StepError(f'step {name!r} did not write {missing[0]}; log: {self.log(name)}')
        self.stamp(name, key, seconds)

    def run_always(self, name: str, command: Sequence[str]) -> float:
        """Run a step that finds out itself what is left to do; the seconds it took."""
        self._banner(name, command)
        return self.execute(name, command)

    def execute(self, name: str, command: Sequence[str]) -> float:
        """Run a command, show and log its output; the seconds it took. Raises StepError."""
        self.executed += 1
        log = self.log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        live, start = LiveFilter(), time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, 'PYTHONUNBUFFERED': '1'},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
        )
        try:
            with log.open('w') as file, process.stdout:
                for line in process.stdout:
                    file.write(line)
                    file.flush()
                    if live.shows(line):
                        print(line, end='', flush=True)
            status = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        seconds = time.monotonic() - start
        if status:
            tail = log.read_text().splitlines()[-12:]
            print('\n'.join(f'   | {line}' for line in tail), file=sys.stderr)
            raise StepError(f'step {name!r} failed (exit status {status}); log: {log}')
        print(f'   done in {clock(seconds)}', flush=True)
        return seconds

    def log(self, name: str) -> Path:
        """The log of a step."""
        return self.work / 'logs' / f'{name}.log'

    def read(self, name: str) -> dict:
        """The stamp of a step; empty if it is not complete."""
        path = self._path(name)
        return json.loads(path.read_text()) if path.exists() else {}

    def stamp(self, name: str, key: str, seconds: float) -> None:
        """Note that a step is complete."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        finished = time.strftime('%Y-%m-%d %H:%M:%S')
        path.write_text(
            json.dumps({'key': key, 'seconds': round(seconds, 1), 'finished': finished})
        )

    def keep_longest(self, name: str, key: str, seconds: float) -> None:
        """Stamp a step that was repeated, unless it took longer before, with the same result."""
        old = self.read(name)
        if old.get('key') != key or old['seconds'] < seconds:
            self.stamp(name, key, seconds)

    def forget(self, keep: Iterable[str]) -> None:
        """Drop all stamps but those named."""
        for path in (self.work / 'stamps').glob('*.json'):
            if path.stem not in keep:
                path.unlink()

    def _path(self, name: str) -> Path:
        return self.work / 'stamps' / f'{name}.json'

    def _banner(self, name: str, command: Sequence[str]) -> None:
        self.number += 1
        elapsed = clock(time.monotonic() - self.start)
        print(f'\n== {self.number} of {self.total}: {name} ({elapsed} since the start)')
        print(f'   {shown(command)}', flush=True)


def shown(command: Sequence[str]) -> str:
    """A command as one would type it in the repository."""
    program = os.path.relpath(command[0], ROOT)
    program = command[0] if program.startswith('..') else program
    return shlex.join([program, *command[1:]])


def find_config(pattern: str) -> str:
    """The one config that matches, relative to the repository."""
    paths = sorted(ROOT.glob(pattern))
    if len(paths) != 1:
        raise StepError(f'expected one config {pattern}, found {[path.name for path in paths]}')
    return str(paths[0].relative_to(ROOT))


def digest(parts: Iterable[str]) -> str:
    """A number for a sequence of strings."""
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()


def digest_files(*patterns: str) -> str:
    """A number for the contents of the files of the repository that match any of the patterns."""
    paths = sorted({path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()})
    return digest(f'{path.relative_to(ROOT)}\0{path.read_text()}' for path in paths)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02}:{seconds:02}'
