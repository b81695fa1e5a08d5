"""Run every demo, side by side on all cores; one page of all tables and pictures at the end.

    bash tools/demo.sh all [--fresh] [--smoke] [--jobs N] [--work-dir DIR]

sets up the environment and runs this; see there.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import demo_acceleration
import demo_aerial
import demo_digits
import demo_segmentation
from demo import Demo
from demo_run import acceleration_plan, aerial_plan, digits_plan, nuclei_plan, segmentation_plan
from demo_run.command import (
    make_parser,
    parse,
    relative,
    stop_like_an_interrupt,
    work_folder,
    write_status,
)
from demo_run.parallel import Group, Progress
from demo_run.schedule import Job, PartProgress, run_jobs, task_name
from demo_run.steps import StepError, clock
from prepare_demo_data import DATA_SETS

RECORD = 'all.json'  # of the last run of all demos
REPORT = 'report'  # task of a part, after all others
REPORT_SECONDS = 10.0
SPEED_SECONDS = 200.0  # measured alone, so all cores count
SEEDS = digits_plan.SEEDS[:1]  # every training once, to be done in less than 45 minutes


@dataclass(frozen=True)
class Part:
    """A demo as a part of all.

    Args:
        folder: Its results.
        data: Data sets beside those of the pre-training.
        commands: Of its chains, by name.
        costs: Expected seconds of their tasks.
        forget: Removes what the chains have made.
        report: Writes its tables and pictures when all are complete, in about `report_seconds`;
            None if a task of a chain does.
        after: Chains that one waits for, by name.
        pretrained: Whether its chains start from the pre-training on photographs.
    """

    folder: Path
    data: tuple[str, ...]
    commands: Mapping[str, list[str]]
    costs: Mapping[str, float]
    forget: Callable[[], None]
    report: Callable[[], object] | None
    after: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pretrained: bool = True
    report_seconds: float = REPORT_SECONDS

    @property
    def missing(self) -> str | None:
        """The package without which its data cannot be made."""
        return next((DATA_SETS[n].needs for n in self.data if not DATA_SETS[n].possible), None)


def all_parts(work: Path, smoke: bool) -> dict[str, Part]:
    """Every demo by its name on the command line."""
    return {
        'nuclei': nuclei(work, smoke),
        'digits': digits(work / 'digits'),
        'detection': aerial('detection', work / 'detection'),
        'rotated': aerial('rotated', work / 'rotated'),
        'segmentation': segmentation(work / 'segmentation'),
        'acceleration': acceleration(work / 'acceleration', smoke),
    }


def nuclei(work: Path, smoke: bool) -> Part:
    """Pre-training; and Mask R-CNN, whose report is a task of its chain."""
    script = [sys.executable, 'tools/demo_nuclei_chain.py']
    demo = Demo(work, compare=False, smoke=smoke)
    return Part(
        work,
        ('photographs', 'nuclei'),
        {name: [*script, name, '--work-dir', str(work)] for name in nuclei_plan.CHAINS},
        nuclei_plan.costs(),
        partial(demo.steps.forget, keep=('setup', 'data')),
        None,
        {'nuclei': ('pretraining',)},
        pretrained=False,
    )


def digits(work: Path) -> Part:
    """Digits, whose pre-trainings are their own."""
    pairs = digits_plan.chains(SEEDS)
    needs = {digits_plan.chain_name(*pair): digits_plan.waits_for(*pair) for pair in pairs}
    return Part(
        work,
        ('digits',),
        demo_digits.commands(work, SEEDS),
        digits_plan.costs(SEEDS),
        partial(demo_digits.forget, work),
        partial(demo_digits.report, work, SEEDS),
        {name: (need,) for name, need in needs.items() if need},
        pretrained=False,
    )


def aerial(study: str, work: Path) -> Part:
    """Trees, with boxes along the axes or oriented ones."""

    def report() -> None:
        from demo_run.aerial_report import write_report  # after what takes minutes

        write_report(study, work, compare=False)

    return Part(
        work,
        (aerial_plan.STUDIES[study].data,),
        demo_aerial.commands(study, work, compare=False),
        aerial_plan.costs(study, compare=False),
        partial(demo_aerial.forget, study, work),
        report,
    )


def segmentation(work: Path) -> Part:
    """Classes of pixels, and instances."""

    def report() -> None:
        from demo_run.segmentation_report import write_report  # after what takes minutes

        write_report(work, compare=False)

    return Part(
        work,
        ('nuclei_semantic',),
        demo_segmentation.commands(work, compare=False),
        segmentation_plan.costs(compare=False),
        partial(demo_segmentation.forget, work),
        report,
    )


def acceleration(work: Path, smoke: bool) -> Part:
    """Mask R-CNN dense and accelerated; its report measures the speed."""
    return Part(
        work,
        ('nuclei',),
        demo_acceleration.commands(work, SEEDS),
        acceleration_plan.costs(SEEDS),
        partial(demo_acceleration.forget, work),
        partial(demo_acceleration.report, work, SEEDS, smoke),
        report_seconds=SPEED_SECONDS,
    )


def make_jobs(parts: Mapping[str, Part], work: Path, smoke: bool) -> list[Job]:
    """The chains of all parts."""

    def complete(command: list[str], pretrained: bool) -> list[str]:
        if smoke:
            return [*command, '--smoke']
        if not pretrained:
            return command
        return [*command, '--pretrained', (work / 'pretrain/last_checkpoint').read_text().strip()]

    jobs = []
    for name, part in parts.items():
        for chain, command in part.commands.items():
            after = ('pretraining',) if part.pretrained else part.after.get(chain, ())
            prefix = f'{chain}/'
            cost = sum(s for task, s in part.costs.items() if task.startswith(prefix))
            call = partial(complete, command, part.pretrained)
            jobs.append(Job(name, chain, call, cost, after))
    return jobs


def make_costs(parts: Mapping[str, Part]) -> dict[str, float]:
    """Expected seconds of every task of all parts."""
    found = {}
    for name, part in parts.items():
        tasks = {**part.costs, REPORT: part.report_seconds} if part.report else part.costs
        found |= {task_name(name, task): seconds for task, seconds in tasks.items()}
    return found


def run(parts: Mapping[str, Part], work: Path, jobs: int, smoke: bool) -> dict[str, str]:
    """Run all parts; what went wrong, by part. Raises StepError if there are no data."""
    demo = Demo(work, compare=False, smoke=smoke, total=1)
    demo.prepare(*(name for part in parts.values() for name in part.data))
    demo_acceleration.prepare(parts['acceleration'].folder)
    costs = make_costs(parts)
    print(
        f'\n== {len(costs)} tasks, {jobs} at a time; logs: {work}/logs, {work}/*/logs', flush=True
    )
    progress = Progress(costs)
    groups = {
        name: Group(part.folder / 'logs', PartProgress(name, progress))
        for name, part in parts.items()
    }
    failures = run_jobs(make_jobs(parts, work, smoke), groups, jobs, progress)
    for name, part in parts.items():
        if part.report and name not in failures:
            try:
                part.report()
                progress.finish(task_name(name, REPORT), 'done')
            except Exception as error:  # whatever it is, the other parts have results to show
                failures[name] = f'its report: {type(error).__name__}: {error}'
        write_status(part.folder, failures.get(name))
    return failures


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    args = parse(make_parser(__doc__), arguments)
    work, start = work_folder(args), time.monotonic()
    parts = all_parts(work, args.smoke)
    for name, part in list(parts.items()):
        if part.missing:
            write_status(part.folder, skipped=f'needs {part.missing}, which is not installed')
            print(f'demo: {name} is left out: needs {part.missing}', file=sys.stderr)
            del parts[name]
        elif args.fresh:
            part.forget()
    stop_like_an_interrupt()
    try:
        failures = run(parts, work, args.jobs, args.smoke)
    except StepError as error:
        print(f'demo: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\ndemo: interrupted; run it again to go on', file=sys.stderr)
        return 130
    record = {
        'seconds': round(time.monotonic() - start, 1),
        'finished': time.strftime('%Y-%m-%d %H:%M:%S'),
        'jobs': args.jobs,
        'smoke': args.smoke,
    }
    (work / RECORD).write_text(json.dumps(record))
    from demo_html import write_page  # after what takes minutes

    page = relative(write_page(work))
    print(f'\n== {clock(record["seconds"])} after set-up; tables and pictures: {page}')
    for name, message in failures.items():
        print(f'demo: {name} failed: {message}', file=sys.stderr)
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
