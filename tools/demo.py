"""Pre-train on photographs, fine-tune Mask R-CNN on nuclei, look at the result.

    bash tools/demo.sh [nuclei] [--compare] [--fresh] [--smoke] [--work-dir DIR]

sets up the environment and runs this; see there.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from demo_run.command import write_status
from demo_run.results import STARTS, evaluate_folder, finetune_folder, step_name
from demo_run.steps import ROOT, StepError, Steps, digest, digest_files, find_config

# One config each; their names tell the schedule, which may change.
PRETRAIN_CONFIG = 'configs/pretraining/itpn-pixel_hivit-demo-*.py'
FINETUNE_CONFIG = 'configs/detection/mask-rcnn_hivit-demo-*.py'
DATA = ROOT / 'data/demo'
DATA_SETS = ('photographs', 'nuclei')
PRETRAINED = ROOT / 'work_dirs/demo'  # the pre-training in it is what other demos start from
# Pictures to reconstruct: held-out nuclei, and crops of photographs seen in the pre-training.
HELD_OUT = ('nuclei_y000_x384.png', 'nuclei_y256_x384.png')
PHOTOGRAPHS = ('astronaut', 'cat', 'flower', 'pagoda', 'coffee', 'aerial_yell')
CROP = 7  # of each photograph; shows what it is of

# --smoke: every step, hardly any training.
SMOKE_PRETRAIN = (
    'train_cfg.max_epochs=1',
    'train_dataloader.batch_size=16',
    'train_dataloader.dataset.indices=64',
    'default_hooks.logger.interval=1',
)
SMOKE_FINETUNE = (
    'train_cfg.max_epochs=1',
    'train_dataloader.dataset.indices=8',
    'default_hooks.logger.interval=1',
)


def pick_pictures() -> list[str]:
    """Paths of the pictures to reconstruct, relative to the repository."""
    picked = [DATA / 'nuclei/val' / name for name in HELD_OUT]
    for name in PHOTOGRAPHS:
        crops = sorted((DATA / 'photographs/train' / name).glob('*.png'))
        picked.append(crops[CROP])
    return [str(path.relative_to(ROOT)) for path in picked]


def initial_weights(start: str, checkpoint: str) -> list[str]:
    """Config options of a start of the fine-tuning."""
    options = []
    for part, pretrained in (
        ('backbone', start != 'scratch'),
        ('neck', start == 'pretrained'),
    ):
        key = f'model.{part}.init_cfg'
        options.append(f'{key}.checkpoint={checkpoint}' if pretrained else f'{key}=None')
    return options


def last_checkpoint() -> Path:
    """File that names the checkpoint of the demo's pre-training."""
    return PRETRAINED / 'pretrain' / 'last_checkpoint'


def prepare_study(data: str, smoke: bool) -> None:
    """Data of a study; and the demo's pre-training unless it was run, or is not needed.

    Raises:
        StepError: A step failed.
    """
    demo = Demo(PRETRAINED, compare=False, smoke=False, total=2)
    demo.prepare(data)
    if not smoke and not last_checkpoint().exists():
        demo.pretrain()


class Demo:
    """The steps in their order.

    Args:
        work: Folder for all results.
        compare: Also fine-tune from the two other starts.
        smoke: Train next to nothing.
        total: How many steps there will be, if not all of them.
    """

    def __init__(self, work: Path, compare: bool, smoke: bool, total: int | None = None) -> None:
        self.work, self.compare, self.smoke = work, compare, smoke
        self.steps = Steps(work, total=total or (10 if compare else 6))
        self.pretrain_config = find_config(PRETRAIN_CONFIG)
        self.finetune_config = find_config(FINETUNE_CONFIG)

    def run(self) -> None:
        """Run all steps that are not complete. Raises StepError."""
        self.prepare()
        self.pretrain()
        for start in STARTS if self.compare else ('pretrained',):
            self.finetune(start)
        self.reconstruct()
        self.report()

    def prepare(self, *others: str) -> None:
        """Its data, and other sets; and from here on, what the results depend on."""
        names = dict.fromkeys((*DATA_SETS, *others))
        command = self.python('tools/prepare_demo_data.py', '--only', *names)
        seconds = self.steps.run_always('data', command)
        data = digest_files(*(f'data/demo/{name}/manifest.json' for name in DATA_SETS))
        self.steps.keep_longest('data', data, seconds)
        self.inputs = [data, digest_files('itpn_mm/**/*.py', 'configs/_base_/**/*.py')]

    def pretrain(self) -> None:
        """Pre-training."""
        folder = self.work / 'pretrain'
        command = self.train(self.pretrain_config, folder, SMOKE_PRETRAIN if self.smoke else ())
        inputs = [*self.inputs, digest_files(self.pretrain_config)]
        self.steps.run('pretrain', command, [folder / 'last_checkpoint'], inputs, folder)

    def finetune(self, start: str) -> None:
        """Fine-tuning from a start, and its evaluation."""
        folder, evaluated = finetune_folder(self.work, start), evaluate_folder(self.work, start)
        options = initial_weights(start, self.checkpoint(self.work / 'pretrain'))
        command = self.train(
            self.finetune_config, folder, [*options, *(SMOKE_FINETUNE if self.smoke else ())]
        )
        inputs = [*self.inputs, digest_files(self.finetune_config), self.stamp('pretrain')]
        name = step_name('finetune', start)
        self.steps.run(name, command, [folder / 'last_checkpoint'], inputs, folder)

        prediction = evaluated / 'val'  # mmdet adds .bbox.json and .segm.json
        command = self.python(
            'tools/test.py',
            self.finetune_config,
            self.checkpoint(folder),
            '--work-dir',
            self.relative(evaluated),
            '--cfg-options',
            f'test_evaluator.outfile_prefix={self.relative(prediction)}',
        )
        self.steps.run(
            step_name('evaluate', start),
            command,
            [evaluated / 'val.segm.json'],
            [*inputs, self.stamp(name)],
            evaluated,
        )

    def reconstruct(self) -> None:
        """Picture of reconstructions."""
        out = self.work / 'reconstructions.png'
        command = self.python(
            'tools/visualize_reconstruction.py',
            self.pretrain_config,
            self.checkpoint(self.work / 'pretrain'),
            *pick_pictures(),
            '--out',
            self.relative(out),
        )
        inputs = [*self.inputs, self.stamp('pretrain')]
        inputs.append(digest_files('tools/visualize_reconstruction.py'))
        self.steps.run('reconstructions', command, [out], inputs)

    def report(self) -> None:
        """Summary, curves and detections."""
        command = self.python('tools/demo_report.py', '--work-dir', self.relative(self.work))
        flags = ['--compare'] if self.compare else []
        self.steps.run_always('report', [*command, *flags])  # stamps itself, before it sums up

    def train(self, config: str, folder: Path, options: Sequence[str]) -> list[str]:
        """Command of a training."""
        command = self.python('tools/train.py', config, '--work-dir', self.relative(folder))
        return [*command, '--cfg-options', *options] if options else command

    def stamp(self, name: str) -> str:
        """The stamp of an earlier step as an input of a later one."""
        return str(self.steps.read(name))

    @staticmethod
    def python(*words: str) -> list[str]:
        """Command of a script of this repository."""
        return [sys.executable, *words]

    @staticmethod
    def relative(path: Path) -> str:
        """A path as commands give it: relative to the repository if it lies there."""
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)

    def checkpoint(self, folder: Path) -> str:
        """The last checkpoint of a training."""
        path = ROOT / (folder / 'last_checkpoint').read_text().strip()
        return self.relative(path)


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--compare', action='store_true', help='fine-tune from three starts')
    parser.add_argument('--fresh', action='store_true', help='start again; data are kept')
    parser.add_argument('--smoke', action='store_true', help='all steps with next to no training')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo, or demo-smoke')
    parser.add_argument('--setup-seconds', type=float, help='that setting up took; for the summary')
    args = parser.parse_args(arguments)
    work = args.work_dir or ROOT / 'work_dirs' / ('demo-smoke' if args.smoke else 'demo')
    try:
        demo = Demo(work.absolute(), args.compare, args.smoke)
        if args.fresh:
            demo.steps.forget(keep=('setup', 'data'))
        if args.setup_seconds is not None:
            key = digest([sys.prefix, digest_files('requirements/*', 'tools/setup_env.sh')])
            demo.steps.keep_longest('setup', key, args.setup_seconds)
        demo.run()
    except StepError as error:
        write_status(work, str(error))
        print(f'demo: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\ndemo: interrupted; run it again to go on', file=sys.stderr)
        return 130
    write_status(work)
    print(f'\n== results in {Demo.relative(demo.work)}')
    for path in sorted(demo.work.glob('*.*')):
        print(f'   {path.name}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
