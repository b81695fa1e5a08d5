"""One chain of the study: a pre-training and the fine-tunings from it."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo_run.parallel import BEGIN, DONE

from . import convolution, teacher  # noqa: F401  (registers what configs name)
from .plan import Chain
from .results import PRETRAIN, RANDOM_PYRAMID, row_name
from .row import finetune, pretrain, write

EXACT = ('score', 'curve', 'loss', 'losses')  # what a repetition has to give again


def run_chain(
    chain: Chain, tasks: tuple[str, ...], rows: list[str], work: Path, until: float | None = None
) -> None:
    """Run the rows of a chain that are missing, and write each as soon as it is there.

    Args:
        chain: Which.
        tasks: Those to fine-tune.
        rows: Names of the missing rows.
        work: Folder of rows and runs.
        until: No row is begun after that time of `time.time`.
    """
    if not rows:
        return
    folder, checkpoint = work / 'runs' / chain.name, None
    if chain.pretraining != 'none':
        name, mark = row_name(chain, PRETRAIN), folder / 'last_checkpoint'
        if name in rows or not mark.exists():
            if is_late(until):
                return
            row, checkpoint = narrate(name, lambda: pretrain(chain, folder))
            write(work / 'rows' / f'{name}.json', row)
        else:
            checkpoint = Path(mark.read_text().strip())
    for task, pyramid in chain.finetunings(tasks):
        name = row_name(chain, task, pyramid)
        if name in rows and not is_late(until):
            place = folder / name.rsplit('/', 1)[1]
            row = narrate(
                name, lambda t=task, p=pyramid, f=place: finetune(chain, t, checkpoint, p, f)
            )
            write(work / 'rows' / f'{name}.json', row)


def run_again(name: str, committed: dict[str, Any], work: Path) -> list[str]:
    """Run a row anew, with the pre-training that it starts from; what differs from before."""
    shutil.rmtree(work, ignore_errors=True)
    family, pretraining, seed, last = name.split('/')
    chain = Chain(int(seed.removeprefix('seed')), family, pretraining)
    made: dict[str, Any] = {}
    checkpoint = None
    if pretraining != 'none':
        first = row_name(chain, PRETRAIN)
        made[first], checkpoint = narrate(first, lambda: pretrain(chain, work / 'pretrain'))
    if last != PRETRAIN:
        task, pyramid = last.removesuffix(RANDOM_PYRAMID), not last.endswith(RANDOM_PYRAMID)
        made[name] = narrate(name, lambda: finetune(chain, task, checkpoint, pyramid, work / task))
    return [
        f'{row}: {key} was {committed[row][key]}, is {found[key]}'
        for row, found in made.items()
        for key in EXACT
        if key in found and found[key] != committed[row][key]
    ]


def is_late(until: float | None) -> bool:
    """Whether no other row is to begin."""
    return until is not None and time.time() > until


def narrate(name: str, run: Callable[[], Any]) -> Any:
    """Run, with the lines before and after that the study reads."""
    print(f'{BEGIN}{name}', flush=True)
    begin = time.monotonic()
    found = run()
    row = found[0] if isinstance(found, tuple) else found
    score = f', score {row["score"]:.1f}' if 'score' in row else ''
    print(f'{DONE}{name}: {time.monotonic() - begin:.0f} s{score}', flush=True)
    return found
