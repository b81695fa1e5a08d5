"""Pre-train a backbone and its pyramid on a folder of pictures of your own.

    python tools/pretrain_folder.py FOLDER [--model hivit-tiny] [--hours 8] [--work-dir DIR]

Pictures of any size, JPEG and other formats, also in folders below FOLDER; no labels. Writes a
config that says what was chosen, trains it with the stock runner, draws reconstructions, and prints
the lines that put the result into a detector. Run again, it goes on where it was.
"""

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if find_spec('itpn_mm') is None:  # a clone that is not installed
    sys.path.append(str(Path(__file__).resolve().parents[1]))

import visualize_reconstruction
from demo_run.steps import ROOT, StepError, Steps
from mmengine.config import Config
from mmengine.device import get_device
from pretrain_run.models import MODELS, PATCH, base_config, read_teacher
from pretrain_run.pictures import (
    data_set,
    find_pictures,
    hold_out,
    read_names,
    sort_out,
    write_names,
)
from pretrain_run.plan import EPOCHS, Plan, describe, epochs_within, make_plan
from pretrain_run.recipe import read_options, swap_in_line, write_config
from pretrain_run.trial import try_out

DRAWN, SHOWN = 8, 10
SMALLEST = 4 * PATCH  # 16 patches, 4 of which are visible


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    args = parse(arguments)
    try:
        run(args)
    except (FileNotFoundError, StepError, ValueError) as error:
        print(f'pretrain_folder.py: error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\npretrain_folder.py: interrupted; run it again to go on', file=sys.stderr)
        return 130
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('folder', type=Path, metavar='FOLDER')
    add('--model', default='hivit-tiny', metavar='NAME', help=f'one of {", ".join(MODELS)}')
    add('--init', type=Path, metavar='FILE', help='start from a checkpoint, ours or the authors')
    add(
        '--teacher',
        type=Path,
        metavar='FILE',
        help='learn from this CLIP image encoder, a file of OpenAI or a folder of transformers; '
        'by default from the pixels',
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument('--epochs', type=int, help=f'length; default: {EPOCHS}')
    length.add_argument('--hours', type=float, help='as many epochs as fit into this time')
    add('--batch-size', type=int, help='default: 64, on a CPU 32; less if there are few pictures')
    add('--image-size', type=int, help='side of the crops; default: that of the model, 224')
    add('--jobs', type=int, default=os.cpu_count(), help='processes that read the pictures')
    add('--work-dir', type=Path, help='default: work_dirs/pretrain/<FOLDER>_<MODEL>')
    add('--no-train', action='store_true', help='only write the config, and say what it would do')
    args = parser.parse_args(arguments)
    for name in ('epochs', 'hours', 'batch_size', 'jobs'):
        value = getattr(args, name)
        if value is not None and value <= 0:
            parser.error(f'--{name.replace("_", "-")} must be above 0, but got {value}')
    size = args.image_size
    if size is not None and (size < SMALLEST or size % PATCH):
        parser.error(
            f'--image-size must be a multiple of {PATCH} of at least {SMALLEST}, but got {size}'
        )
    return args


def run(args: argparse.Namespace) -> None:
    """Write the config, train, draw, and tell how to use the result."""
    folder = args.folder.expanduser().absolute()
    teacher = None if args.teacher is None else read_teacher(args.teacher.expanduser().absolute())
    base = base_config(args.model, teacher)
    init = None if args.init is None else args.init.expanduser().absolute()
    if init is not None and not init.is_file():
        raise FileNotFoundError(f'--init must be a checkpoint, but {str(init)!r} is no file')
    work = args.work_dir or Path('work_dirs', 'pretrain', f'{folder.name}_{args.model}')
    work = work.expanduser().absolute()
    path = work / 'pretrain.py'
    options = dict(
        folder=str(folder),
        model=args.model,
        init=init and str(init),
        teacher=teacher and str(teacher.path),
        epochs=args.epochs,
        hours=args.hours,
        batch_size=args.batch_size,
        image_size=args.image_size,
    )
    if path.exists():
        check_same(path, options)
        print(f'goes on with {path}, written before')
    else:
        prepare(args, folder, base, work, options, teacher=teacher, init=init)
    cfg, train_dir = Config.fromfile(path), work / 'run'  # the Runner writes its config there, too
    if args.no_train:
        print(
            f'not trained (--no-train). In one process, or in several:\n'
            f'    python tools/train.py {path} --work-dir {train_dir} --resume\n'
            f'    bash tools/dist_train.sh {path} PROCESSES --work-dir {train_dir} --resume'
        )
        return
    checkpoint = train_dir / f'epoch_{cfg.train_cfg.max_epochs}.pth'
    steps = Steps(work, 1)
    command = [sys.executable, str(ROOT / 'tools' / 'train.py'), str(path)]
    command += ['--work-dir', str(train_dir), '--resume']
    steps.run('train', command, [checkpoint], [path.read_text(encoding='utf-8')])
    if teacher is None:
        draw(path, checkpoint, work)
    print(
        f'\n{checkpoint} holds the backbone and its pyramid. In the config of a detector, after '
        f'`_base_`:\n\n'
        f'    from itpn_mm.recipes import swap_in\n'
        f'    {swap_in_line(cfg, args.model, checkpoint)}\n'
    )


def check_same(path: Path, options: dict[str, Any]) -> None:
    """See to it that a config was written by the same command.

    Raises:
        ValueError: It was not.
    """
    before = read_options(path)
    if before is None:
        raise ValueError(f'{path} was not written by this tool: take another --work-dir')
    changed = [
        f'--{key.replace("_", "-")} {value}, now {options.get(key)}'
        for key, value in before.items()
        if options.get(key) != value
    ]
    if changed:
        raise ValueError(
            f'{path} is of a run with {"; ".join(changed)}: take another --work-dir, or remove it'
        )


def prepare(
    args: argparse.Namespace,
    folder: Path,
    base: Path,
    work: Path,
    options: dict[str, Any],
    **start: Any,
) -> None:
    """Look at the pictures, choose the settings, try them out and write the config."""
    names = find_pictures(folder)
    cfg, device = Config.fromfile(base), get_device()
    work.mkdir(parents=True, exist_ok=True)
    print(f'{folder}: {len(names)} pictures; reading all of them', flush=True)
    good, bad = sort_out(folder, names, work / 'pictures.txt', args.jobs)
    report_bad(bad, work / 'bad_pictures.txt')
    if not good:
        raise ValueError(f'FOLDER must hold pictures, but none of {str(folder)!r} can be read')
    trained, held_out = hold_out(good)
    write_names(work / 'pictures.txt', trained)
    write_names(work / 'held_out.txt', held_out)
    if held_out:
        print(f'kept out of the training, to be reconstructed at the end: {len(held_out)}')
    plan = make_plan(cfg, len(trained), device, args.batch_size, args.epochs or EPOCHS)
    image_size = args.image_size or cfg.model.backbone.img_size

    def write(plan: Plan, to: Path) -> None:
        text = write_config(
            base,
            plan,
            model=args.model,
            image_size=image_size,
            device=device,
            workers=min(8, os.cpu_count() or 1) if device == 'cuda' else 1,
            data_set=data_set(folder, work / 'pictures.txt'),
            options=options,
            **start,
        )
        to.write_text(text, encoding='utf-8')

    print(f'{args.model}, {image_size} pixels; trying a few steps', flush=True)
    tried = work / 'trial.py'
    write(plan, tried)
    try:
        trial = try_out(str(tried))
        if args.hours is not None:
            epochs = epochs_within(args.hours, plan, trial.seconds)
            plan = make_plan(cfg, len(trained), device, args.batch_size, epochs)
            write(plan, tried)
        for line in describe(plan, trial, device):
            print(f'  {line}')
        tried.replace(work / 'pretrain.py')  # only what was tried counts as written
    finally:
        tried.unlink(missing_ok=True)
    print(f'wrote {work / "pretrain.py"}', flush=True)


def report_bad(lines: list[str], path: Path) -> None:
    """Tell which pictures cannot be read."""
    path.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8', errors='replace')
    if not lines:
        print('all of them can be read')
        return
    print(f'cannot be read and left out: {len(lines)}, listed in {path}')
    for line in lines[:SHOWN]:
        print(f'  {line}')
    if len(lines) > SHOWN:
        print(f'  and {len(lines) - SHOWN} more')


def draw(path: Path, checkpoint: Path, work: Path) -> None:
    """Draw reconstructions of pictures that were not trained on, where there are some."""
    folder = Path(Config.fromfile(path).train_dataloader.dataset.dataset.data_root)
    names = read_names(work / 'held_out.txt') or read_names(work / 'pictures.txt')[:DRAWN]
    shown = [str(folder / name) for name in names if (folder / name).is_file()]
    if shown:
        out = str(work / 'reconstructions.png')
        visualize_reconstruction.main([str(path), str(checkpoint), *shown, '--out', out])


if __name__ == '__main__':
    sys.exit(main())
