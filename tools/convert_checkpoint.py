"""Convert a checkpoint of the authors' iTPN to the names of itpn_mm, and say which config fits it.

Converting is not needed to load a file: `init_cfg=dict(type='Pretrained', checkpoint=...)` takes
either. It is useful to get a small safetensors file out of a training checkpoint, and the one way
to load a file that needs unpickling.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from itpn_mm.checkpoint import config_lines, inspect, read_checkpoint, remap


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('src', help='checkpoint of the authors or of itpn_mm')
    parser.add_argument('dst', help='file to write')
    parser.add_argument(
        '--to', choices=('safetensors', 'pth'), help='format; by default the suffix of DST decides'
    )
    parser.add_argument(
        '--unsafe',
        action='store_true',
        help='unpickle whatever SRC holds: it can run any code, so only if you trust it',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    dst = Path(args.dst)
    kind = args.to or ('safetensors' if dst.suffix == '.safetensors' else 'pth')
    try:
        state, report = remap(read_checkpoint(args.src, unsafe=args.unsafe, float32=True))
        report.raise_if_unexplained(args.src)
        if report.layout == 'unknown':
            raise ValueError(
                f'{args.src}: neither a file of the authors nor of itpn_mm; '
                f'it starts with {next(iter(state))}'
            )
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    # tensors of a training checkpoint may be views of one storage, which safetensors refuses
    state = {name: tensor.clone().contiguous() for name, tensor in state.items()}
    part = dst.with_name(f'{dst.name}.part')  # so that an interrupted run leaves no half a file
    if kind == 'safetensors':
        save_file(state, part, metadata={'format': 'pt'})
    else:
        torch.save({'state_dict': state}, part)
    os.replace(part, dst)

    print(
        f'{args.src}: {"the layout of the authors" if report.layout == "authors" else "our layout"}'
    )
    for old, new in report.renamed.items():
        print(f'  {old} -> {new}' if old != new else f'  {old}')
    for name, reason in report.dropped.items():
        print(f'  {name} left out: {reason}')
    print(f'{dst}: {len(state)} tensors written, {len(report.dropped)} left out on purpose')
    print(config_lines(inspect(state), dst))


if __name__ == '__main__':
    main()
