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

# What a command prints at the start of a line when it begins a task and when that is complete.
BEGIN, DONE = 'task begins: ', 'task done: '
STATUS_SECONDS = 10
# mmengine's line of a training that counts iterations.
ITERATION = re.compile(r'Iter\(train\) \[ *(\d+)/(\d+)\]')


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


class Progress:
    """Prints a line a task, and one now and then, with the time that is left.

    Args:
        costs: Expected cost of every task by name, in any unit.
    """

    def __init__(self, costs: Mapping[str, float]) -> None:
        self.costs, self.number = costs, 0
        # Costs of what was done, and of what was complete before and says nothing about the speed.
        self.done = self.skipped = 0.0
        # By command: its task, how far that is, and the iterations as they are shown.
        self.running: dict[str, tuple[str, float, str]] = {}
        self.lock = threading.Lock()
        self.start = self.shown = time.monotonic()

    def line(self, command: str, line: str) -> None:
        """Take a line of a command's output."""
        with self.lock:
            iteration = ITERATION.search(line)
            if line.startswith(BEGIN):
                self.running[command] = (line.removeprefix(BEGIN).strip(), 0.0, '')
            elif line.startswith(DONE):
                self.running.pop(command, None)
                self.finish(*line.removeprefix(DONE).strip().split(': ', 1))
            elif iteration and command in self.running:
                number, total = int(iteration[1]), int(iteration[2])
                task = self.running[command][0]
                self.running[command] = (task, number / total, f'{number}/{total}')
                if time.monotonic() - self.shown > STATUS_SECONDS:
                    self.show(', '.join(f'{task} {at}' for task, _, at in self.running.values()))

    def finish(self, name: str, said: str) -> None:
        """Note that a task is complete."""
        self.number += 1
        self.done += self.costs[name]
        if said == 'complete':
            self.skipped += self.costs[name]
        self.show(f'{name}: {said}')

    def left(self) -> float | None:
        """Seconds that are left, if all goes on as it went; None at the beginning."""
        done = self.done + sum(self.costs[task] * at for task, at, _ in self.running.values())
        if done <= self.skipped:
            return None
        elapsed = time.monotonic() - self.start
        return elapsed * (sum(self.costs.values()) - done) / (done - self.skipped)

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
    group = _Group(logs, progress)
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(group.execute, *item) for item in commands.items()]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            group.stop()
            raise


class _Group:
    """Commands that stop together."""

    def __init__(self, logs: Path, progress: Progress) -> None:
        self.logs, self.progress = logs, progress
        self.stopped = threading.Event()
        self.processes: list[subprocess.Popen] = []

    def execute(self, name: str, command: Sequence[str]) -> None:
        """Run a command to its end, unless the group was stopped. Raises StepError."""
        if self.stopped.is_set():
            return
        log = self.logs / f'{name}.log'
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, 'PYTHONUNBUFFERED': '1', 'OMP_NUM_THREADS': '1'},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
        )
        self.processes.append(process)
        with log.open('w') as file, process.stdout:
            for line in process.stdout:
                file.write(line)
                file.flush()
                self.progress.line(name, line)
        if process.wait() and not self.stopped.is_set():
            self.stopped.set()
            tail = '\n'.join(f'   | {line}' for line in log.read_text().splitlines()[-12:])
            status = process.returncode
            raise StepError(f'{name} failed (exit status {status}); log: {log}\n{tail}')

    def stop(self) -> None:
        """End what runs, and begin nothing more."""
        self.stopped.set()
        for process in self.processes:
            process.terminate()
