"""What the demo on aerial photographs runs: fine-tunings and their evaluations."""

from pathlib import Path

from mmengine.config import Config

from .aerial_plan import STUDIES
from .chains import chain_folder, chain_name
from .runs import initial_weights, make_tester, study_options, train
from .steps import ROOT, digest, digest_files, find_config
from .tasks import Tasks

INPUTS = ('itpn_mm/**/*.py', 'configs/_base_/**/*.py', 'tools/demo_run/aerial.py')
# --smoke: every task, hardly any training, from random weights.
SMOKE = {
    'train_dataloader.dataset.indices': 8,
    'test_dataloader.dataset.indices': 4,
    'default_hooks.logger.interval': 1,
}
PREDICTIONS = 'val'  # of the evaluation; the runner adds `.bbox.json`


class Chain(Tasks):
    """A fine-tuning and its evaluation; nothing complete is repeated.

    Args:
        study: One of `aerial_plan.STUDIES`.
        detector: One of its detectors.
        start: `'pretrained'` or `'scratch'`.
        seed: Of the weights that are not pre-trained, and of the order and flips of the tiles.
        work: The study's folder.
        pretrained: Checkpoint to start from.
        smoke: Train next to nothing, from random weights.
    """

    def __init__(
        self,
        study: str,
        detector: str,
        start: str,
        seed: int,
        work: Path,
        pretrained: Path,
        smoke: bool = False,
    ) -> None:
        self.study, self.seed, self.smoke = STUDIES[study], seed, smoke
        self.path = find_config(self.study.detectors[detector].config)
        self.pretrained = None if smoke or start == 'scratch' else pretrained
        name = chain_name(detector, start, seed)
        inputs = digest_files(*INPUTS, self.path, f'data/demo/{self.study.data}/manifest.json')
        folder = work / chain_folder(detector, start, seed)
        super().__init__(name, folder, digest([inputs, name, str(self.pretrained), str(smoke)]))

    def run(self) -> None:
        """Run the tasks in their order."""
        self.once('train', self.train)
        self.once('evaluate', self.evaluate)

    def train(self) -> dict:
        """Fine-tune; the mean of the last losses."""
        return dict(train(self.config(), self.folder / 'train', f'{self.name}_train'))

    def evaluate(self) -> dict:
        """The study's metrics of the last checkpoint on the held-out photograph, in percent."""
        folder = self.folder / 'evaluate'
        cfg = self.config()
        cfg.test_evaluator.outfile_prefix = str(self.folder / PREDICTIONS)
        runner = make_tester(cfg, self.folder / 'train', folder, f'{self.name}_evaluate')
        found = runner.test()
        return {name: 100 * found[key] for key, name in self.study.metrics.items()}

    def config(self) -> Config:
        """The shipped config with the start and the seed."""
        cfg = Config.fromfile(ROOT / self.path)
        epochs = 1 if self.smoke else cfg.train_cfg.max_epochs
        changes = {
            **study_options(self.seed, epochs),
            **initial_weights(self.pretrained),
            **(SMOKE if self.smoke else {}),
        }
        if not self.study.validates:
            changes['train_cfg.val_begin'] = epochs + 1
        cfg.merge_from_dict(changes)
        return cfg
