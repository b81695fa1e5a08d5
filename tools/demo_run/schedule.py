"""Runs the commands of several parts side by side; a part that fails does not stop the others."""

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from .parallel import BEGIN, DONE, Group, Progress
from .steps import StepError


@dataclass(frozen=True)
class Job:
    """A command of a part.

    Args:
        part: What fails if it does.
        name: Of its log; no other job of any part has it.
        command: Called when it is run, as it may name what others have written by then.
        cost: Expected seconds.
        after: Names of the jobs that it waits for.
    """

    part: str
    name: str
    command: Callable[[], Sequence[str]]
    cost: float
    after: tuple[str, ...] = ()


class PartProgress:
    """Puts the name of a part before those of its tasks."""

    def __init__(self, part: str, progress: Progress) -> None:
        self.part, self.progress = part, progress

    def line(self, command: str, line: str) -> None:
        """Take a line of a command's output."""
        for mark in (BEGIN, DONE):
            if line.startswith(mark):
                line = f'{mark}{task_name(self.part, line.removeprefix(mark))}'
        self.progress.line(command, line)


def task_name(part: str, task: str) -> str:
    """Name of a task among those of all parts."""
    return f'{part} {task}'


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """The order in which jobs are begun if they can be.

    Those that others wait for come first, then those that take long, so that all cores are done at
    about the same time.
    """
    awaited = {name for job in jobs for name in job.after}
    return sorted(jobs, key=lambda job: (job.name not in awaited, -job.cost))


def run_jobs(
    jobs: Sequence[Job], groups: Mapping[str, Group], at_a_time: int, progress: Progress
) -> dict[str, str]:
    """Run all jobs that can be run.

    Args:
        jobs: In any order.
        groups: Where the commands of each part run.
        at_a_time: How many run side by side.
        progress: Forgets the tasks of a part that failed.

    Returns:
        What went wrong, by part. A part fails with its first job that does, or if it waits for one
        that did not succeed.
    """
    left, running, succeeded = in_order(jobs), {}, set()
    parts = {job.name: job.part for job in jobs}
    failures: dict[str, str] = {}

    def fail(part: str, message: str) -> None:
        if part not in failures:
            failures[part] = message
            groups[part].stop()
            progress.drop(task_name(part, ''))
            print(f'   {part} failed, the others go on: {message}', file=sys.stderr, flush=True)

    def execute(job: Job) -> None:
        groups[job.part].execute(job.name, job.command())

    def settle(job: Job, future: Future) -> None:
        try:
            future.result()
        except (StepError, OSError) as error:
            fail(job.part, str(error))
        if job.part not in failures:
            succeeded.add(job.name)

    with ThreadPoolExecutor(at_a_time) as pool:
        try:
            while left or running:
                for job in list(left):
                    broken = [n for n in job.after if n not in succeeded and parts[n] in failures]
                    if broken:
                        fail(job.part, f'it needs {broken[0]}, which failed')
                    if job.part in failures:
                        left.remove(job)
                    elif len(running) < at_a_time and succeeded.issuperset(job.after):
                        left.remove(job)
                        running[pool.submit(execute, job)] = job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    settle(running.pop(future), future)
        except BaseException:
            for group in groups.values():
                group.stop()
            raise
    return failures
