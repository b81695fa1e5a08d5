"""Go through all data of a config before a long training, and list what is wrong with them.

    python tools/check_data.py CONFIG [--splits train val] [--jobs N] [--out FILE]
                               [--cfg-options KEY=VALUE ...]

Every sample is made as in training. Pictures that cannot be read or end too early, labels that do
not fit, pipelines that fail; in annotations of COCO's form also boxes outside, without area or of
negative size, polygons of two points, unknown categories, ids used twice and images without
objects. Prints how many of each kind there are, and the first of them; `--out` has all. Ends with 1
if there is a problem.
"""

import argparse
import multiprocessing
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if find_spec('itpn_mm') is None:  # a clone that is not installed
    sys.path.append(str(Path(__file__).resolve().parents[1]))

import mmengine
from data_checks.coco import Problem, check_coco
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import DATASETS, init_default_scope
from mmengine.utils import ProgressBar, import_modules_from_strings
from mmengine.utils.dl_utils import set_multi_processing
from PIL import Image

from itpn_mm.engine.bad_samples import describe_error, describe_files, files_of, make_sample
from itpn_mm.engine.seeded_data import seed_generators

SPLITS = ('train', 'val', 'test')
SHOWN = 5
dataset: Any = None  # that the processes, which are forked, look at


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config')
    parser.add_argument('--splits', nargs='+', choices=SPLITS, default=['train', 'val'])
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='processes')
    parser.add_argument('--out', help='file for the list of all problems')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f'--jobs must be at least 1, but got {args.jobs}')
    if not Path(args.config).is_file():
        sys.exit(f'error: {args.config}: no such config')
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    set_multi_processing('fork', opencv_num_threads=0)
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)
    lines = [line for name in args.splits for line in check_split(cfg, name, args.jobs)]
    if args.out:
        mmengine.mkdir_or_exist(Path(args.out).parent)
        Path(args.out).write_text(''.join(f'{line}\n' for line in lines))
    sys.exit(bool(lines))


def check_split(cfg: Config, name: str, jobs: int) -> list[str]:
    """Check the data of one loader, print a summary and return a line for each problem."""
    global dataset
    settings = (cfg.get(f'{name}_dataloader') or {}).get('dataset')
    if settings is None:
        print(f'{name}: no data in this config')
        return []
    problems = defaultdict(list)
    for kind, where in check_annotations(settings):
        problems[kind].append(where)
    try:
        dataset = DATASETS.build(settings)
    except Exception as error:
        problems['data set cannot be made'].append(describe_error(error))
    else:
        print(f'{name}: {len(dataset)} samples, {jobs} processes', flush=True)
        for kind, where in check_samples(jobs):
            problems[kind].append(where)
    print(f'{name}: {sum(map(len, problems.values()))} problems')
    for kind, places in sorted(problems.items()):
        print(f'  {kind}: {len(places)}')
        for where in places[:SHOWN]:
            print(f'    {where}')
        if len(places) > SHOWN:
            print(f'    and {len(places) - SHOWN} more')
    return [f'{name}: {kind}: {where}' for kind in sorted(problems) for where in problems[kind]]


def check_annotations(settings: ConfigDict) -> Iterator[Problem]:
    """Check the annotation files in COCO's form of a data set, or of those that it wraps."""
    for member in [settings.get('dataset'), *(settings.get('datasets') or [])]:
        if member is not None:
            yield from check_annotations(member)
    path = os.path.join(settings.get('data_root') or '', settings.get('ann_file') or '')
    with DATASETS.switch_scope_and_registry(None) as registry:  # of the config's default scope
        kind = registry.get(settings['type'])
    if kind and path.endswith('.json') and 'Panoptic' not in kind.__name__ and os.path.isfile(path):
        known = (settings.get('metainfo') or {}).get('classes')
        yield from check_coco(path, known or kind.METAINFO.get('classes', ()))


def check_samples(jobs: int) -> Iterator[Problem]:
    """Check all samples of the data set by several processes."""
    bar = ProgressBar(len(dataset), file=sys.stderr)
    with multiprocessing.get_context('fork').Pool(jobs) as pool:
        for found in pool.imap(check_sample, range(len(dataset)), chunksize=8):
            bar.update()
            yield from found
    print(file=sys.stderr)


def check_sample(index: int) -> list[Problem]:
    """Read the files of a sample strictly, then make it as in training."""
    sizes = {}
    for path in files_of(dataset, index):
        try:
            with Image.open(path) as picture:
                picture.load()
                sizes[path] = picture.size
        except Exception as error:
            return [('picture cannot be read', f'{path}: {describe_error(error)}')]
    if len(set(sizes.values())) > 1:
        said = ' and '.join(f'{path} {width} x {height}' for path, (width, height) in sizes.items())
        return [('labels of another size than the picture', said)]
    try:
        seed_generators(index, devices=False)  # the same crops each time, and the same answer
        make_sample(dataset, index)
    except Exception as error:
        return [
            (
                'sample cannot be made',
                f'{describe_files(dataset, index)}: {describe_error(error)}',
            )
        ]
    return []


if __name__ == '__main__':
    main()
