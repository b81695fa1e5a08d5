"""What the acceleration study runs: fine-tunings and their evaluations, on the stock runner."""

from functools import partial
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from .acceleration_plan import (
    CONFIG,
    EPOCHS,
    PARTS,
    accelerate,
    chain_name,
    settings_of,
)
from .acceleration_strip import NAME as STRIP
from .results import METRICS
from .runs import initial_weights, make_tester, study_options, train
from .steps import ROOT, digest, digest_files
from .tasks import Tasks

INPUTS = (
    'itpn_mm/**/*.py',
    CONFIG,
    'configs/_base_/models/*.py',
    'tools/demo_run/acceleration.py',
    'tools/demo_run/acceleration_plan.py',
    'tools/demo_run/runs.py',
    'data/demo/nuclei/manifest.json',
)
# --smoke: every task, hardly any training, from random weights.
SMOKE = {'train_dataloader.dataset.indices': 8, 'default_hooks.logger.interval': 1}


class Chain(Tasks):
    """A fine-tuning and its evaluations; nothing complete is repeated.

    Args:
        trained: What is switched on in the fine-tuning: one of `acceleration_plan.TRAINED`.
        seed: Of the weights that are not pre-trained, and of the order and flips of the tiles.
        work: The study's folder; `strip/` in it holds the held-out region as one picture.
        pretrained: Checkpoint to start from.
        smoke: Train next to nothing, from random weights.
    """

    def __init__(
        self, trained: str, seed: int, work: Path, pretrained: Path, smoke: bool = False
    ) -> None:
        self.trained, self.seed, self.work, self.smoke = trained, seed, work, smoke
        self.pretrained = pretrained
        name = chain_name(trained, seed)
        key = digest([digest_files(*INPUTS), name, str(smoke)])
        super().__init__(name, work / trained / f'seed{seed}', key)

    def run(self) -> None:
        """Run the tasks in their order."""
        self.once('train', self.train)
        for setting in settings_of(self.trained):
            self.once(f'evaluate-{setting}', partial(self.evaluate, setting))

    def train(self) -> dict:
        """Fine-tune; the mean of the last losses."""
        return train(self.config(self.trained), self.folder / 'train', f'{self.name}_train')

    def evaluate(self, setting: str) -> dict:
        """AP of the last checkpoint under a setting, on tiles and in one picture, in percent."""
        return {
            f'{part}_{metric}': 100 * value
            for part in PARTS
            for metric, value in self.test(setting, part).items()
        }

    def test(self, setting: str, part: str) -> dict[str, float]:
        """`METRICS` of the last checkpoint under a setting, by the stock test."""
        found = self.tester(setting, part).test()
        return {metric: found[f'coco/{metric}'] for metric in METRICS}

    def tester(self, setting: str, part: str) -> Runner:
        """The stock runner that tests the last checkpoint under a setting."""
        name = f'evaluate-{setting}-{part}'
        return make_tester(
            self.config(setting, part),
            self.folder / 'train',
            self.folder / name,
            f'{self.name}_{name}',
        )

    def config(self, setting: str, part: str = 'tiles') -> Config:
        """The demo's config with a setting and the seed, to be tested on one of `PARTS`."""
        cfg = Config.fromfile(ROOT / CONFIG)
        epochs = 1 if self.smoke else EPOCHS
        changes = {
            **study_options(self.seed, epochs),
            **initial_weights(None if self.smoke else self.pretrained),
            'train_cfg.val_interval': epochs,
            **(SMOKE if self.smoke else {}),
        }
        if part == 'strip':
            folder = self.work / STRIP
            changes |= {
                'test_dataloader.dataset.data_root': str(folder),
                'test_dataloader.dataset.ann_file': f'{STRIP}.json',
                'test_dataloader.dataset.data_prefix': dict(img=''),
                'test_dataloader.dataset.pipeline.2.scale': (512, 512),
                'test_evaluator.ann_file': str(folder / f'{STRIP}.json'),
            }
        cfg.merge_from_dict(changes)
        cfg.model.backbone = accelerate(cfg.model.backbone.to_dict(), setting)
        return cfg
