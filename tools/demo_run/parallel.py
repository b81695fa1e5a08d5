"""Runs commands side by side, each with a log, and says how far they are."""

import os
import re
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from .steps import ROOT, StepError, clock

DONE = 'task done: '  # what a command prints at the start of a line when a task is complete
STATUS_SECONDS = 10
# mmengine's line of a training that counts iterations.
ITERATION = re.compile(r'Iter\(train\) \[ *(\d+)/(\d+)\]')


class Progress:
    """Prints a line a task, and one now and then, with the time that is left.

    Args:
        costs: Expected cost of every task by name, in any unit.
    """

    def __init__(self, costs: Mapping[str, float]) -> None:
        self.costs, self.done = costs, 0.0
        self.number = 0
        self.running: dict[str, str] = {}
        self.start = self.shown = time.monotonic()
        # What was complete before says nothing about the speed.
        self.lock, self.skipped = threading.Lock(), 0.0

    def line(self, command: str, line: str) -> None:
        """Take a line of a command's output."""
        with self.lock:
            iteration = ITERATION.search(line)
            if line.startswith(DONE):
                name, _, said = line.removeprefix(DONE).strip().partition(': ')
                self.finish(name, said)
            elif iteration:
                self.running[command] = f'{command} {iteration[1]}/{iteration[2]}'
                if time.monotonic() - self.shown > STATUS_SECONDS:
                    self.show(', '.join(self.running.values()))

    def finish(self, name: str, said: str) -> None:
        """Note that a task is complete."""
        self.number += 1
        self.done += self.costs[name]
        if said.startswith('complete'):
            self.skipped += self.costs[name]
        self.show(f'{name}: {said}')

    def left(self) -> float | None:
        """Seconds that are left, if the tasks so far took as long as they were expected to."""
        worked = self.done - self.skipped
        if not worked:
            return None
        elapsed = time.monotonic() - self.start
        return elapsed * (sum(self.costs.values()) - self.done) / worked

    def show(self, said: str) -> None:
        """Print a line."""
        self.shown, left = time.monotonic(), self.left()
        eta = '-:--:--' if left is None else clock(left)
        elapsed = clock(self.shown - self.start)
        print(f'   [{self.number:2}/{len(self.costs)}  {elapsed}  eta {eta}] {said}', flush=True)


def run_parallel(
    commands: Mapping[str, Sequence[str]], jobs: int, logs: Path, progress: Progress
) -> None:
    """Run commands, `jobs` at a time; after a failure no other is begun.

    Args:
        commands: By name, which is that of the log too.
        jobs: How many at a time; each computes with one thread.
        logs: Folder of the logs.
        progress: Gets every line of output.

    Raises:
        StepError: A command failed; the message names its log and quotes its last lines.
    """
    logs.mkdir(parents=True, exist_ok=True)
    processes: list[subprocess.Popen] = []
    with ThreadPoolExecutor(jobs) as pool:
        futures = [
            pool.submit(_execute, name, command, logs / f'{name}.log', progress, processes)
            for name, command in commands.items()
        ]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            raise


def _execute(
    name: str,
    command: Sequence[str],
    log: Path,
    progress: Progress,
    processes: list[subprocess.Popen],
) -> None:
    environment = {**os.environ, 'PYTHONUNBUFFERED': '1', 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
    )
    processes.append(process)
    with log.open('w') as file, process.stdout:
        for line in process.stdout:
            file.write(line)
            file.flush()
            progress.line(name, line)
    progress.running.pop(name, None)
    if process.wait():
        tail = '\n'.join(f'   | {line}' for line in log.read_text().splitlines()[-12:])
        raise StepError(f'{name} failed (exit status {process.returncode}); log: {log}\n{tail}')
