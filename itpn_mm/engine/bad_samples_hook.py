"""Goes on where a sample of the training data cannot be used, and says which."""

import atexit
import logging
import os
from functools import partial

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from itpn_mm.registry import HOOKS

from .bad_samples import SkippingDataset, read_records, stop_message
from .seeded_data import SeededDataset

SHOWN = 20


@HOOKS.register_module()
class SkipBadSamplesHook(Hook):
    """Put the next sample in the place of one that cannot be used, up to a number of them.

    That is a sample whose pipeline raises (its picture cannot be read, an annotation is broken),
    whose JPEG or PNG is truncated, or whose labels of pixels do not fit. What stands in depends on
    the index alone, so runs stay the same for any number of workers. Each process notes what it
    skips in `<folder of the log>/bad_samples/`; a summary is logged when training ends, also when
    it is interrupted.

    Args:
        max_skipped: How many different samples to skip; one more stops training. 0 stops at the
            first, with a message that names its file.

    Raises:
        ValueError: `max_skipped` is negative, or more samples are bad; the message names the first.
    """

    # Before the first batch is asked for; in which order with SeedHook does not matter.
    priority = 'VERY_HIGH'

    def __init__(self, max_skipped: int = 100) -> None:
        if not isinstance(max_skipped, int) or max_skipped < 0:
            raise ValueError(
                f'`max_skipped` of SkipBadSamplesHook must be 0 or more, but got {max_skipped!r}'
            )
        self.max_skipped = max_skipped
        self.folder: str | None = None
        self._sizes: dict[str, int] = {}
        self._at_exit = partial(self._summarise, 'interrupted')

    def before_train(self, runner: Runner) -> None:
        """Stand between the pipelines and the data loader."""
        self.folder = os.path.join(runner.log_dir, 'bad_samples')
        loader = runner.train_dataloader
        seeded = loader.dataset if isinstance(loader.dataset, SeededDataset) else None
        dataset = SkippingDataset(
            loader.dataset if seeded is None else seeded.dataset,
            self.folder,
            runner.rank,
            self.max_skipped,
        )
        # A proxy, and a loader once it is built, refuse to have these set the usual way.
        if seeded is None:
            vars(loader).update(dataset=dataset, _iterator=None)
        else:
            vars(seeded).update(dataset=dataset)
        iterator = getattr(runner.train_loop, 'dataloader_iterator', None)
        if getattr(iterator, '_iterator', None) is not None:  # made with the dataset of before
            runner.train_loop.dataloader_iterator = type(iterator)(loader)
        if runner.rank == 0:
            atexit.register(self._at_exit)

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Stop if all processes together have skipped too many."""
        sizes = self._file_sizes()
        if sizes != self._sizes:
            self._sizes = sizes
            bad = read_records(self.folder)
            if len(bad) > self.max_skipped:
                raise ValueError(stop_message(bad, self.max_skipped))

    def after_train(self, runner: Runner) -> None:
        """Say what was skipped."""
        if runner.rank == 0:
            atexit.unregister(self._at_exit)
            self._summarise('finished')

    def _file_sizes(self) -> dict[str, int]:
        if not os.path.isdir(self.folder):
            return {}
        return {entry.name: entry.stat().st_size for entry in os.scandir(self.folder)}

    def _summarise(self, how: str) -> None:
        bad = read_records(self.folder)
        if not bad:
            print_log(f'training {how}: no sample was skipped', 'current')
            return
        lines = [f'training {how}: {len(bad)} samples cannot be used and were skipped']
        lines += [f'  {sample}' for sample in bad[:SHOWN]]
        if len(bad) > SHOWN:
            lines.append(f'  and {len(bad) - SHOWN} more, see {self.folder}')
        print_log('\n'.join(lines), 'current', logging.WARNING)
