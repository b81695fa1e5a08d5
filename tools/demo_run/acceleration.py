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
from .steps import ROOT, digest, digest_files
from .tasks import Tasks

INPUTS = (
    'itpn_mm/**/*.py',
    CONFIG,
    'configs/_base_/models/*.py',
    'tools/demo_run/*.py',
    'data/demo/nuclei/manifest.json',
)
# --smoke: every task, hardly any training, from random weights.
SMOKE = {'train_dataloader.dataset.indices': 8, 'default_hooks.logger.interval': 1}
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


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
        cfg = self.config(self.trained)
        cfg.work_dir, cfg.experiment_name = str(self.folder / 'train'), f'{self.name}_train'
        runner = Runner.from_cfg(cfg)
        runner.train()
        return {'loss': float(runner.message_hub.log_scalars['train/loss'].mean(25))}

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
        cfg = self.config(setting, part)
        name = f'evaluate-{setting}-{part}'
        cfg.work_dir, cfg.experiment_name = str(self.folder / name), f'{self.name}_{name}'
        cfg.load_from = (self.folder / 'train' / 'last_checkpoint').read_text().strip()
        return Runner.from_cfg(cfg)

    def config(self, setting: str, part: str = 'tiles') -> Config:
        """The demo's config with a setting and the seed, to be tested on one of `PARTS`.

        One thread loads the images and computes: as many chains as there are cores run beside it.
        """
        cfg = Config.fromfile(ROOT / CONFIG)
        epochs = 1 if self.smoke else EPOCHS
        # The progress of a chain is counted in iterations.
        changes = {
            'randomness.seed': self.seed,
            'train_cfg.max_epochs': epochs,
            'train_cfg.val_interval': epochs,
            'param_scheduler.1.T_max': epochs,
            'param_scheduler.1.end': epochs,
            'default_hooks.checkpoint.interval': epochs,
            'log_processor.by_epoch': False,
            **(SMOKE if self.smoke else {}),
        }
        for loader in LOADERS:
            changes |= {f'{loader}.num_workers': 0, f'{loader}.persistent_workers': False}
        for module in ('backbone', 'neck'):
            key = f'model.{module}.init_cfg'
            changes |= {key: None} if self.smoke else {f'{key}.checkpoint': str(self.pretrained)}
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
