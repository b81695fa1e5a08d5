"""Write one HTML page of what the demos have found: tables, pictures, times, licences.

    bash tools/demo.sh report [--work-dir DIR]

runs this; see there. Demos that were not run are listed as such.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import demo_acceleration
import demo_aerial
import demo_digits
import demo_segmentation
from demo import Demo
from demo_run.acceleration_plan import SEEDS as ACCELERATION_SEEDS
from demo_run.command import relative
from demo_run.digits_plan import SEEDS
from demo_run.page import PAGE, Licence, make_page
from demo_run.page_sections import SECTIONS
from demo_run.steps import ROOT
from prepare_demo_data import ARCHIVES, DATA_SETS

DATA = ROOT / 'data/demo'


def write_page(work: Path) -> Path:
    """Write the page into the folder of the demos; its path."""
    path = work / PAGE
    path.write_text(make_page(work, all_commands(work), licences()))
    return path


def all_commands(work: Path) -> dict[str, dict[str, str]]:
    """Commands of each demo by the names of its chains, as one would type them."""
    place = relative(work)
    return {
        'nuclei': dict(enumerate(map(typed, nuclei_commands(place)))),
        'digits': typed_all(demo_digits.commands(place / 'digits', SEEDS)),
        'detection': typed_all(demo_aerial.commands('detection', place / 'detection', True)),
        'rotated': typed_all(demo_aerial.commands('rotated', place / 'rotated', True)),
        'segmentation': typed_all(demo_segmentation.commands(place / 'segmentation', True)),
        'acceleration': typed_all(
            demo_acceleration.commands(place / 'acceleration', ACCELERATION_SEEDS)
        ),
    }


def nuclei_commands(place: Path) -> list[list[str]]:
    """Pre-training, fine-tuning and test by the stock scripts."""
    demo = Demo(ROOT / place, compare=False, smoke=False)
    pretrain, finetune = ROOT / place / 'pretrain', ROOT / place / 'finetune'
    return [
        [sys.executable, 'tools/prepare_demo_data.py'],
        demo.train(demo.pretrain_config, pretrain, ()),
        demo.train(demo.finetune_config, finetune, ()),
        [sys.executable, 'tools/test.py', demo.finetune_config, f'{place}/finetune/epoch_24.pth'],
    ]


def typed_all(commands: dict[str, list[str]]) -> dict[str, str]:
    return {name: typed(command) for name, command in commands.items()}


def typed(command: Sequence[str]) -> str:
    """A command with the Python of the environment."""
    return shlex.join(['python', *command[1:]])


def licences() -> list[Licence]:
    """The packages that the pictures are of, with the texts of their licences if they are there."""
    found = []
    for package, archive in ARCHIVES.items():
        text = DATA / 'licenses' / f'{package}.txt'
        made = tuple(name for name, data in DATA_SETS.items() if package in data.packages)
        found.append(
            Licence(
                package,
                archive.version,
                archive.licence,
                made,
                text.read_text() if text.exists() else '',
            )
        )
    return found


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--work-dir', type=Path, default=ROOT / 'work_dirs/demo', help='of the demos'
    )
    args = parser.parse_args(arguments)
    work = args.work_dir.absolute()
    if not any((work / section.folder / section.summary).exists() for section in SECTIONS.values()):
        sys.exit(f'demo: no results of any demo in {relative(work)}; bash tools/demo.sh all')
    print(f'== {relative(write_page(work))}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
