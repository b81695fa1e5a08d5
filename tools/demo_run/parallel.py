"""Runs commands side by side, each with a log, and says how far they are."""

import os
import re
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from .steps import ROOT, StepError, clock

# What a command prints at the start of a line when it begins a task and when that is complete.
BEGIN, DONE = 'task begins: ', 'task done: '
STATUS_SECONDS = 10
# mmengine's lines of a training that counts iterations or of a test, and of one by epochs.
ITERATION = re.compile(r'(?:Iter\(train\)|(?:Epoch|Iter)\(test\)) +\[ *(\d+)/(\d+)\]')
EPOCH = re.compile(r'Epoch\(train\) +\[(\d+)\]\[.* eta: (?:(\d+) days?, )?(\d+):(\d+):(\d+)')


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


@dataclass
class Running:
    """A task: its name, when it began, what share of it is done, and how that is shown."""

    task: str
    began: float
    share: float = 0.0
    at: str = ''

    def take(self, line: str) -> bool:
        """Whether a line of a training's output says how far it is; notes it."""
        if iteration := ITERATION.search(line):
            number, total = int(iteration[1]), int(iteration[2])
            self.share, self.at = number / total, f'{number}/{total}'
        elif epoch := EPOCH.search(line):
            days, hours, minutes, seconds = (int(group or 0) for group in epoch.groups()[1:])
            left = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
            elapsed = time.monotonic() - self.began
            self.share, self.at = elapsed / (elapsed + left + 1e-6), f'epoch {epoch[1]}'
        else:
            return False
        return True


class Progress:
    """Prints a line a task, and one now and then, with the time that is left.

    Args:
        costs: Expected cost of every task by name, in any unit.
    """

    def __init__(self, costs: Mapping[str, float]) -> None:
        self.costs, self.finished = dict(costs), set()
        # Costs of what was done, and of what was complete before and says nothing about the speed.
        self.done = self.skipped = 0.0
        self.running: dict[str, Running] = {}  # by command
        self.lock = threading.Lock()
        self.start = self.shown = time.monotonic()

    def line(self, command: str, line: str) -> None:
        """Take a line of a command's output."""
        with self.lock:
            if line.startswith(BEGIN):
                task = line.removeprefix(BEGIN).strip()
                self.running[command] = Running(task, time.monotonic())
            elif line.startswith(DONE):
                self.running.pop(command, None)
                self.finish(*line.removeprefix(DONE).strip().split(': ', 1))
            elif (
                command in self.running
                and self.running[command].take(line)
                and time.monotonic() - self.shown > STATUS_SECONDS
            ):
                running = self.running.values()
                self.show(', '.join(f'{one.task} {one.at}' for one in running))

    def finish(self, name: str, said: str) -> None:
        """Note that a task is complete."""
        self.finished.add(name)
        self.done += self.costs[name]
        if said == 'complete':
            self.skipped += self.costs[name]
        self.show(f'{name}: {said}')

    def drop(self, prefix: str) -> None:
        """Forget the tasks that begin so and are not complete: nobody will run them."""
        with self.lock:
            self.costs = {
                name: cost
                for name, cost in self.costs.items()
                if name in self.finished or not name.startswith(prefix)
            }
            self.running = {
                command: one
                for command, one in self.running.items()
                if not one.task.startswith(prefix)
            }

    def left(self) -> float | None:
        """Seconds that are left, if all goes on as it went; None at the beginning."""
        running = sum(self.costs[one.task] * one.share for one in self.running.values())
        done = self.done + running
        if done <= self.skipped:
            return None
        elapsed = time.monotonic() - self.start
        return elapsed * (sum(self.costs.values()) - done) / (done - self.skipped)

    def show(self, said: str) -> None:
        """Print a line."""
        self.shown, left = time.monotonic(), self.left()
        eta = '-:--:--' if left is None else clock(left)
        elapsed = clock(self.shown - self.start)
        number = f'{len(self.finished):2}/{len(self.costs)}'
        print(f'   [{number}  {elapsed}  eta {eta}] {said}', flush=True)


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
    group = Group(logs, progress)
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(group.execute, *item) for item in commands.items()]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            group.stop()
            raise


class Group:
    """Commands that stop together.

    Args:
        logs: Folder of the logs.
        progress: Gets the name of a command and every line of its output.
    """

    def __init__(self, logs: Path, progress: Progress) -> None:
        self.logs, self.progress = logs, progress
        self.stopped = threading.Event()
        self.processes: list[subprocess.Popen] = []

    def execute(self, name: str, command: Sequence[str]) -> None:
        """Run a command to its end, unless the group was stopped. Raises StepError."""
        if self.stopped.is_set():
            return
        self.logs.mkdir(parents=True, exist_ok=True)
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
