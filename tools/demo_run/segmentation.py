"""What the demo of segmentation runs: fine-tunings and their evaluations."""

from pathlib import Path

from mmengine.config import Config

from .chains import chain_folder, chain_name
from .runs import initial_weights, iteration_options, make_tester, study_options, train
from .segmentation_plan import CLASSES, MODELS
from .segmentation_scores import class_ious, read_maps
from .steps import ROOT, digest, digest_files, find_config
from .tasks import Tasks

INPUTS = ('itpn_mm/**/*.py', 'configs/_base_/**/*.py', 'tools/demo_run/segmentation.py')
DATA = 'data/demo/nuclei_semantic'
INSTANCE_DATA = 'data/demo/nuclei'
TRUTH = 'annotations/validation'  # label maps of the held-out tiles
PREDICTIONS = 'val'  # of the evaluation: a folder of label maps, or the stem of `.segm.json`
# --smoke: every task, hardly any training, from random weights.
SMOKE = {
    'train_dataloader.dataset.indices': 8,
    'train_cfg.val_interval': 1,
    'default_hooks.logger.interval': 1,
}
# By what the runner calls them.
COCO_METRICS = {
    'mask AP': 'coco/segm_mAP',
    'mask AP50': 'coco/segm_mAP_50',
    'box AP': 'coco/bbox_mAP',
    'box AP50': 'coco/bbox_mAP_50',
}


class Chain(Tasks):
    """A fine-tuning and its evaluation; nothing complete is repeated.

    Args:
        model: One of `segmentation_plan.MODELS`.
        start: `'pretrained'` or `'scratch'`.
        seed: Of the weights that are not pre-trained, and of the order and flips of the tiles.
        work: The study's folder.
        pretrained: Checkpoint to start from.
        smoke: Train next to nothing, from random weights.
    """

    def __init__(
        self,
        model: str,
        start: str,
        seed: int,
        work: Path,
        pretrained: Path,
        smoke: bool = False,
    ) -> None:
        self.model, self.seed, self.smoke = MODELS[model], seed, smoke
        self.path = find_config(self.model.config)
        self.pretrained = None if smoke or start == 'scratch' else pretrained
        name = chain_name(model, start, seed)
        data = DATA if self.model.semantic else INSTANCE_DATA
        inputs = digest_files(*INPUTS, self.path, f'{data}/manifest.json')
        folder = work / chain_folder(model, start, seed)
        super().__init__(name, folder, digest([inputs, name, str(self.pretrained), str(smoke)]))

    def run(self) -> None:
        """Run the tasks in their order."""
        self.once('train', self.train)
        self.once('evaluate', self.evaluate)

    def train(self) -> dict:
        """Fine-tune; the mean of the last losses."""
        return dict(train(self.config(), self.folder / 'train', f'{self.name}_train'))

    def evaluate(self) -> dict:
        """The model's metrics of the last checkpoint on the held-out region, in percent."""
        cfg, predictions = self.config(), str(self.folder / PREDICTIONS)
        if self.model.semantic:
            cfg.test_evaluator.output_dir = predictions
        else:
            cfg.test_evaluator.outfile_prefix = predictions
        tester = make_tester(
            cfg, self.folder / 'train', self.folder / 'evaluate', f'{self.name}_evaluate'
        )
        found = tester.test()
        if not self.model.semantic:
            return {name: 100 * found[key] for name, key in COCO_METRICS.items()}
        maps = read_maps(ROOT / DATA / TRUTH, Path(predictions)).values()
        ious = class_ious(maps, len(CLASSES))
        return {'mIoU': float(found['mIoU']), **dict(zip(CLASSES, ious))}

    def config(self) -> Config:
        """The shipped config with the start and the seed."""
        cfg = Config.fromfile(ROOT / self.path)
        if 'max_iters' in cfg.train_cfg:
            options = iteration_options(self.seed, 2 if self.smoke else cfg.train_cfg.max_iters)
        else:
            options = study_options(self.seed, 1 if self.smoke else cfg.train_cfg.max_epochs)
        options |= initial_weights(self.pretrained)
        cfg.merge_from_dict(options | (SMOKE if self.smoke else {}))
        return cfg
