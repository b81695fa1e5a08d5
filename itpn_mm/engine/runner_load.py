"""What a Runner loads (`load_from`, the checkpoint of `tools/test.py`): read safely, fitted."""

import logging
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, CheckpointLoader, Runner

from itpn_mm.checkpoint import LoadReport, remap
from itpn_mm.checkpoint.io import read_file, take_state
from itpn_mm.checkpoint.resume import check_file, newest_good

from .fit_state import fit_state, require_all, translate
from .wrappers import unwrap

# The Runner hands a path that starts with this to the function below instead of unpickling it.
SCHEME = 'itpn_mm://'


@CheckpointLoader.register_scheme(prefixes=SCHEME, force=True)
def load_from_itpn_mm(filename: str, map_location: Any = None) -> dict:
    """Read a file of the authors or ours, `.pth` or safetensors, without running what it holds."""
    return dict(read_file(filename.removeprefix(SCHEME)))


def prepare_load(runner: Runner) -> None:
    """See to it that the Runner reads the file it is going to load safely.

    A file to start from or to evaluate is read by :func:`load_from_itpn_mm`. A file to resume from
    is mmengine's own and left to it, after a look whether it is whole and asks for nothing but what
    mmengine saves. Without a name it is the last one of the run that is whole, whatever mmengine
    noted down last; if there is none, training begins, from `start_from` of the config if it has
    one, which is where `tools/train.py` keeps `load_from` of a run that is started with `--resume`.

    Raises:
        ValueError: The file to resume from is damaged or asks for something else.
    """
    path = runner._resume if isinstance(runner._resume, str) else runner._load_from
    if runner._resume and path is None:
        path = _newest_good(runner.work_dir)
        runner._resume = path is not None
        if path is None:
            print_log(f'nothing to resume in {runner.work_dir}: training begins', 'current')
            path = runner.cfg.get('start_from')
        runner._load_from = path
    elif runner._resume and Path(path).expanduser().exists():
        check_file(path)
    if not runner._resume and path is not None and '://' not in str(path):
        runner._load_from = f'{SCHEME}{path}'


def _newest_good(work_dir: str) -> str | None:
    """The checkpoint to resume from, the same on all ranks; None to begin."""
    found: list[Any] = [None]
    if is_main_process():  # the others wait, also for an error
        try:
            path, damaged = newest_good(work_dir)
            for other, reason in damaged.items():
                print_log(
                    f'{other.name} is passed over, the run goes on from {path.name}: {reason}',
                    'current',
                    logging.WARNING,
                )
            found = [None if path is None else str(path)]
        except ValueError as error:
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], ValueError):
        raise found[0]
    return found[0]


def adapt_checkpoint(runner: Runner, checkpoint: dict[str, Any]) -> None:
    """Bring a checkpoint that a Runner has read into the form that its model takes, in place.

    Names of the authors become ours, positions are resized, and parts that cannot fit, such as a
    head of other classes, are left out; what was done is logged. A checkpoint that a run is resumed
    from, and one of other models, stay as they are.

    Args:
        runner: The runner.
        checkpoint: What it has read.

    Raises:
        ValueError: The checkpoint is of another architecture, has names that nothing explains, or
            lacks parameters of a model that is to be evaluated; or it is one of the authors and a
            run is to be resumed from it.
    """
    source = str(runner._load_from).removeprefix(SCHEME)
    original = take_state(checkpoint, source)
    if runner._resume:
        if remap(original)[1].layout in ('authors', 'maskdino'):
            raise ValueError(
                f'{source}: a run cannot be resumed from a file of the authors; '
                'start from it: give it as `load_from` without `resume`'
            )
        return
    model, evaluates = unwrap(runner.model), _evaluates(runner)
    translated = translate(model, original, source, evaluates)
    if translated is None:
        return
    state, remapped = translated
    report = LoadReport(type(model).__name__, source, ignored=dict(remapped.dropped))
    fit_state(model, state, report)
    if evaluates:
        require_all(report)
    print_log(
        str(report),
        'current',
        logging.WARNING if report.missing or report.unexpected else logging.INFO,
    )
    loaded = {key: state[key] for key in report.loaded}
    if 'state_dict' not in checkpoint:
        checkpoint.clear()
    if loaded.keys() != original.keys() or any(loaded[k] is not original[k] for k in loaded):
        # mmengine's EMA hooks would exchange this one, tensor by tensor, for what was fitted; it
        # is the model before averaging, and without it they start from what is loaded
        checkpoint.pop('ema_state_dict', None)
    checkpoint['state_dict'] = loaded


def _evaluates(runner: Runner) -> bool:
    """Whether the runner tests or validates and does not train."""
    built = {
        kind: isinstance(getattr(runner, f'_{kind}_loop', None), BaseLoop)
        for kind in ('train', 'val', 'test')
    }
    return (built['val'] or built['test']) and not built['train']
