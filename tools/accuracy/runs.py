"""Runs rows, each once, and keeps what came out in a file a row."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from demo_run.parallel import BEGIN, DONE, Progress

from .launchers import Launcher
from .report import compare, say
from .rows import Row

# A line that ends a traceback or is the message of tools/test.py; torchrun adds one of its own.
ERROR = re.compile(
    r'^(?:\[\w+\]: *)?((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception)\b.*|test\.py: .*)'
)
TORCHRUN = 'torch.distributed.elastic'
GPU = re.compile(r'^ +GPU [\d,]+: (.+)$', re.MULTILINE)  # in mmengine's list of the environment


class Runs:
    """Runs rows and knows which of them are complete.

    Args:
        folder: Of the results. What a row writes is in `rows/NAME`, which is emptied when it is run
            again: `state.json`, `log.txt`, `config.py`, `run/`.
        launcher: How a test is started.
        options: Of `--cfg-options`, `KEY=VALUE`.
        progress: Gets every line of output.
    """

    def __init__(
        self, folder: Path, launcher: Launcher, options: Sequence[str], progress: Progress
    ) -> None:
        self.folder, self.launcher, self.options = folder / 'rows', launcher, options
        self.progress = progress
        self.stopped = threading.Event()
        self.processes: set[subprocess.Popen] = set()

    def run_all(self, rows: Sequence[Row], jobs: int, after: Callable[[], None]) -> None:
        """Run what is not complete, `jobs` at a time; a failure is kept, and the rest goes on.

        Args:
            rows: Those that miss nothing.
            jobs: How many at a time.
            after: Called after each.
        """
        left = [row for row in rows if self.state(row).get('status') != 'done']
        for row in rows:
            if row not in left:
                self.progress.finish(row.entry.name, 'complete')
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(self._run, row) for row in left]
            try:
                for future in as_completed(futures):
                    future.result()
                    after()
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """End what runs, and begin nothing more."""
        self.stopped.set()
        for process in list(self.processes):
            process.terminate()

    def state(self, row: Row) -> dict:
        """What is known of a row; empty if it was not run with this config and checkpoint."""
        path = self.folder / row.entry.name / 'state.json'
        state = json.loads(path.read_text()) if path.is_file() else {}
        return state if row.key and state.get('key') == row.key else {}

    def command(self, row: Row) -> list[str]:
        """Command line of a row; its config is there once it runs."""
        folder = self.folder / row.entry.name
        config = folder / 'config.py' if row.config else row.entry.config
        return self.launcher.command(
            row.entry.name, config, row.checkpoint, folder / 'run', self.options
        )

    def _run(self, row: Row) -> None:
        if self.stopped.is_set():
            return
        name = row.entry.name
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if row.config:
            (folder / 'config.py').write_text(row.config)
        self.progress.line(name, f'{BEGIN}{name}')
        start = time.monotonic()
        status = self._execute(name, self.command(row), folder / 'log.txt')
        if self.stopped.is_set():
            return
        seconds = round(time.monotonic() - start, 1)
        state = collect(row, folder, status, self.launcher) | {'seconds': seconds}
        write_atomically(folder / 'state.json', json.dumps(state, indent=1))
        if state['status'] == 'done':
            said = say(compare(row.entry.paper, state['metrics']))
        else:
            said = f'FAILED: {state["error"]}; log: {state["log"]}'
        self.progress.line(name, f'{DONE}{name}: {said}')

    def _execute(self, name: str, command: Sequence[str], log: Path) -> int:
        process = subprocess.Popen(
            command,
            env=self.launcher.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
        )
        self.processes.add(process)
        if self.stopped.is_set():
            process.terminate()
        with log.open('w') as file, process.stdout:
            for line in process.stdout:
                file.write(line)
                file.flush()
                self.progress.line(name, line)
        self.processes.discard(process)
        return process.wait()


def collect(row: Row, folder: Path, status: int, launcher: Launcher) -> dict:
    """What a test has left behind, as it is kept.

    Args:
        row: What was run.
        folder: Of the row, with `log.txt` and, in `run/`, what mmengine wrote.
        status: Exit status of the test.
        launcher: That started it.
    """
    log = folder / 'log.txt'
    state = {
        'key': row.key,
        'log': str(log),
        'finished': time.strftime('%Y-%m-%d %H:%M:%S'),
        'checkpoint': str(row.checkpoint),
        'images': row.images,
        'part': row.part,
        'batch': row.batch,
        'processes': launcher.processes,
    }
    text = log.read_text(errors='replace')
    if status:
        error = last_error(text) or f'exit status {status}'
        return state | {'status': 'failed', 'error': error}
    metrics = {}
    for path in (folder / 'run').glob('*/*.json'):  # there is one, or none
        metrics = json.loads(path.read_text())
    speed = {key: metrics.pop(key, None) for key in ('time', 'data_time')}
    metrics = {
        key: value if math.isfinite(value) else None
        for key, value in metrics.items()
        if isinstance(value, (int, float))
    }
    if all(figure.measured is None for figure in compare(row.entry.paper, metrics)):
        return state | {'status': 'failed', 'error': 'the test has measured no accuracy'}
    gpu = GPU.search(text)
    if speed['time']:
        state['images_per_second'] = row.batch * launcher.processes / speed['time']
        state['share_of_loading'] = speed['data_time'] / speed['time']
    return state | {
        'status': 'done',
        'metrics': metrics,
        'device': gpu[1] if gpu else 'CPU',
    }


def last_error(text: str) -> str:
    """The line of a log that says why a test failed; its last one if none looks like it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [match[1] for line in lines if (match := ERROR.match(line))]
    errors = [error for error in errors if not error.startswith(TORCHRUN)]
    return (errors or lines or [''])[-1]


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it is whole or as it was."""
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}')
    unfinished.write_text(text)
    os.replace(unfinished, path)
