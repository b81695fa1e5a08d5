"""What the digits demo runs: chains of tasks, on the stock runner."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from .digits_plan import CONFIGS, LABELS, PRETRAINED, chain_name, list_of, tasks_of
from .knn import accuracy, classify, extract_features
from .steps import ROOT, digest, digest_files
from .tasks import Tasks

# --smoke: every task, hardly any training.
SMOKE = {'train_cfg.max_iters': 2, 'train_dataloader.batch_size': 8}
INPUTS = (
    'itpn_mm/**/*.py',
    'configs/demo/*.py',
    'tools/demo_run/digits.py',
    'tools/demo_run/digits_plan.py',
    'tools/demo_run/knn.py',
    'data/demo/digits/manifest.json',
    'data/demo/photographs/manifest.json',
)


class Chain(Tasks):
    """The pre-training of a start, or all that a seed of it is for; nothing complete is repeated.

    Args:
        start: One of `digits_plan.STARTS`.
        part: `'pretrain'`, or `'seed0'` and so on. A seed sets the weights that are not
            pre-trained, which images are labelled, and the training; the pre-training has seed 0.
        work: The demo's folder.
        smoke: Train next to nothing.
    """

    def __init__(self, start: str, part: str, work: Path, smoke: bool = False) -> None:
        self.start, self.part, self.smoke = start, part, smoke
        self.seed = 0 if part == 'pretrain' else int(part.removeprefix('seed'))
        name, self.root = chain_name(start, part), work / start
        folder = self.root if part == 'pretrain' else self.root / part
        super().__init__(name, folder, digest([digest_files(*INPUTS), name, str(smoke)]))

    def run(self) -> None:
        """Run the tasks in their order."""
        for task in tasks_of(self.part):
            if task == 'pretrain':
                self.once(task, self.pretrain)
            elif task == 'knn':
                self.once(task, self.classify_neighbours)
            else:
                self.once(task, partial(self.train, *task.split('-')))

    def pretrain(self) -> dict:
        """Pre-train on the pool that the start is named after; the mean of the last losses."""
        runner = self.make_runner('pretrain', CONFIGS[self.start])
        runner.train()
        scalars = runner.message_hub.log_scalars
        return {'loss': float(scalars['train/loss'].mean(25))}

    def classify_neighbours(self) -> dict:
        """k-NN on frozen features; top-1 for each number of labels."""
        runner = self.make_runner('knn', CONFIGS['linear'])
        runner.model.init_weights()  # what `runner.train` begins with
        test = runner.cfg.test_dataloader
        train = test.copy()
        train.dataset = {**test.dataset, 'ann_file': 'meta/train.txt', 'data_prefix': 'train'}
        queries, classes, _ = extract_features(runner, test)
        features, labels, paths = extract_features(runner, train)
        names = ['/'.join(Path(path).parts[-2:]) for path in paths]
        found = {}
        for number in LABELS:
            listed = Path(test.dataset.data_root, list_of(number, self.seed)).read_text()
            chosen = {line.split()[0] for line in listed.splitlines()}
            keep = torch.tensor([name in chosen for name in names])
            predicted = classify(queries, features[keep], labels[keep])
            found[number] = accuracy(predicted, classes)
        return found

    def train(self, kind: str, labels: str) -> dict:
        """Linear probe or fine-tuning with a number of labels; top-1 on the test part."""
        options = {'train_dataloader.dataset.ann_file': list_of(labels, self.seed)}
        runner = self.make_runner(f'{kind}-{labels}', CONFIGS[kind], options)
        runner.train()
        return {labels: float(runner.message_hub.get_scalar('val/accuracy/top1').current())}

    def make_runner(self, task: str, config: str, options: Mapping | None = None) -> Runner:
        """The stock runner of a config, with the start and the seed set.

        One thread loads the images and trains: as many chains as there are cores run beside it.
        """
        cfg = Config.fromfile(ROOT / config)
        changes = {'randomness.seed': self.seed, **(options or {})}
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            if cfg.get(loader):
                changes |= {f'{loader}.num_workers': 0, f'{loader}.persistent_workers': False}
        if task != 'pretrain':
            changes |= self.initial_weights(cfg)
        if self.smoke:
            changes |= SMOKE
            if 'val_interval' in cfg.train_cfg:
                changes['train_cfg.val_interval'] = SMOKE['train_cfg.max_iters']
        cfg.merge_from_dict(changes)
        cfg.work_dir = str(self.folder / task)
        cfg.experiment_name = f'{self.name}_{task}'
        if task == 'pretrain':
            cfg.default_hooks.checkpoint.interval = cfg.train_cfg.max_iters
        else:
            cfg.default_hooks.checkpoint = None  # a file for each of dozens is of no use
        return Runner.from_cfg(cfg)

    def initial_weights(self, cfg: Config) -> dict:
        """Config options of what the backbone starts from."""
        if self.start not in PRETRAINED:
            return {'model.backbone.init_cfg': None}
        path = (self.root / 'pretrain' / 'last_checkpoint').read_text().strip()
        return {'model.backbone.init_cfg.checkpoint': path}
