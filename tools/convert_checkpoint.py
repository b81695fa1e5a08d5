"""Convert a checkpoint between the authors' layout and ours, and print the config that fits it.

Converting is not needed to load a file: `init_cfg=dict(type='Pretrained', checkpoint=...)` and
`load_from` take either layout. It is useful to see what a file is (`--inspect`), to get a small
safetensors file out of a training checkpoint, to give a model to users of the authors' code, to
add the parameters of an acceleration, and the one way to load a file that needs unpickling.
Released MaskDINO weights (detectron2's names) are read, too.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec('itpn_mm') is None:  # a clone that is not installed
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from itpn_mm.acceleration.settings import SETTINGS
from itpn_mm.checkpoint.convert import (
    FORMATS,
    PARTS,
    accelerate,
    convert,
    open_checkpoint,
    select_part,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('src', help='checkpoint of the authors or of itpn_mm')
    parser.add_argument('dst', nargs='?', help='file to write')
    parser.add_argument('--part', choices=tuple(PARTS), default='all', help='what to write')
    parser.add_argument('--to', choices=('ours', 'authors'), default='ours', help='layout of DST')
    parser.add_argument('--format', choices=FORMATS, help='by default the suffix of DST decides')
    parser.add_argument(
        '--half', action='store_true', help='write half precision; else DST is in float32'
    )
    parser.add_argument(
        '--inspect', action='store_true', help='print what SRC is; nothing is written'
    )
    parser.add_argument(
        '--ema', action='store_true', help='take the moving average that SRC holds of its model'
    )
    parser.add_argument(
        '--trust',
        action='store_true',
        help='unpickle whatever SRC holds: it can run any code, so only if you trust it',
    )
    parser.add_argument(
        '--accelerate',
        choices=[name for name, arguments in SETTINGS.items() if arguments],
        metavar='SETTING',
        help='add the parameters of TokenMigration in their initial state: %(choices)s',
    )
    parser.add_argument(
        '--host',
        choices=('mmdet', 'mmseg'),
        help='for which package a MaskDINO is wanted (default: mmdet for two stages, else mmseg)',
    )
    parser.add_argument('--window-size', type=int, help='of the acceleration, in tokens')
    args = parser.parse_args()
    if args.inspect == (args.dst is not None):
        parser.error('give either DST or --inspect')
    if args.window_size is not None and args.accelerate is None:
        parser.error('--window-size needs --accelerate')
    if args.accelerate and args.to == 'authors':
        parser.error("--accelerate adds what the authors' models do not have; leave out --to")
    return args


def main() -> None:
    args = parse_args()
    try:
        checkpoint = open_checkpoint(args.src, trust=args.trust, ema=args.ema, host=args.host)
        checkpoint = select_part(checkpoint, args.part)
        if args.accelerate:
            size = {} if args.window_size is None else dict(window_size=args.window_size)
            checkpoint = accelerate(checkpoint, SETTINGS[args.accelerate] | size)
        print(checkpoint.summary())
        if not args.inspect:
            count, report = convert(
                checkpoint, args.dst, to=args.to, file_format=args.format, half=args.half
            )
            for old, new in report.renamed.items():
                print(f'  {old} -> {new}' if old != new else f'  {old}')
            for name, reason in report.dropped.items():
                print(f'  {name} left out: {reason}')
            for name in report.created:
                print(f'  {name} added')
            dropped = len(report.dropped)
            print(f'{args.dst}: {count} tensors written, {dropped} left out on purpose')
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print(checkpoint.config(args.dst))


if __name__ == '__main__':
    main()
