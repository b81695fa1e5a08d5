"""Write a model for deployment: ONNX or torch.export, by the suffix of the file.

    python tools/export_model.py CONFIG [CHECKPOINT] OUT.onnx [--size 224x224] [--part features]

Of a classifier everything up to the logits is written; of a detector, segmentor or pre-training
model the backbone with its pyramid, to which docs/export.md says more. The file takes any number of
pictures of one size, as RGB (or BGR, it is said at the end) from 0 to 255. In the end it is
compared with the model. Without CHECKPOINT the weights are random, to measure speed.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope

if find_spec('itpn_mm') is None:  # a clone that is not installed
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from itpn_mm.engine import check_model_fits, load_trained
from itpn_mm.export import export_model
from itpn_mm.export.files import check_path
from itpn_mm.export.ops import OPSET
from itpn_mm.export.parts import PARTS
from itpn_mm.hosts import describe_distributions, is_installed
from itpn_mm.launch import read_config

# What configs and checkpoints raise that are not there, or do not fit.
MISTAKES = (AssertionError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError)
LIMIT = 1e-4  # of the difference, for values of about 1


def parse_size(text: str) -> tuple[int, int]:
    """`800x1280` as (height, width), one number for both."""
    sides = text.split('x') if 'x' in text else [text, text]
    if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f'must be HEIGHTxWIDTH or one number, but got {text!r}')
    return int(sides[0]), int(sides[1])


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config')
    parser.add_argument('checkpoint', nargs='?')
    parser.add_argument('out', help='file to write, .onnx or .pt2')
    parser.add_argument(
        '--size', type=parse_size, help='HEIGHTxWIDTH (default: the `img_size` of the backbone)'
    )
    parser.add_argument('--part', choices=PARTS, help='what to write (default: all that can be)')
    return parser.parse_args(arguments)


def build_model(config: str, checkpoint: str | None):
    """The model of a config, with the weights of a checkpoint."""
    cfg = read_config([config])
    scope = cfg.get('default_scope') or 'mmengine'
    if 'model' not in cfg:
        raise ValueError(f'the config {config!r} has no `model`')
    if not is_installed(scope):
        raise ModuleNotFoundError(
            f'the config belongs to {scope}, which is not installed; install '
            f'{describe_distributions(scope)}'
        )
    init_default_scope(scope)
    model = dict(cfg.model)
    if 'data_preprocessor' in cfg:  # as the Runner does
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = revert_sync_batchnorm(MODELS.build(model))
    check_model_fits(model)
    if checkpoint is not None:
        load_trained(model, checkpoint)
    return model


def work(args: argparse.Namespace) -> int:
    """Write the file and compare; the exit status: 1 if it disagrees."""
    check_path(args.out)
    print(f'building {args.config}', flush=True)
    model = build_model(args.config, args.checkpoint)
    if args.checkpoint is None:
        print('no CHECKPOINT: the weights are random', flush=True)
    print('tracing and writing', flush=True)
    start = time.perf_counter()
    exported = export_model(model, args.out, args.size, args.part)
    seconds = time.perf_counter() - start
    height, width = exported.size
    kind = f'ONNX opset {OPSET}' if exported.path.suffix == '.onnx' else 'torch.export'
    megabytes = exported.path.stat().st_size / 1e6
    part = exported.part
    print(f'{exported.path}: {part.part}, {kind}, {megabytes:.1f} MB, in {seconds:.0f} s')
    shape = f'(batch, {part.in_channels}, {height}, {width})'
    print(f'  images {shape} float32, {part.color_order}, 0 to 255, not normalised')
    for name, sizes in exported.shapes.items():
        print(f'  -> {name} (batch, {", ".join(map(str, sizes))}) float32')
    if exported.path.suffix == '.onnx' and not is_installed('onnxruntime'):
        print('onnxruntime is not installed: not compared with the model')
        return 0
    differences = exported.compare()
    said = ', '.join(f'{value:.1e} with {batch}' for batch, value in differences.items())
    print(f'largest difference from the model, random pictures: {said}')
    if max(differences.values()) > LIMIT:
        print(f'error: more than {LIMIT}; do not use the file', file=sys.stderr)
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; mistakes are told in one line."""
    args = parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # of the packages, about their own code
        try:
            return work(args)
        except MISTAKES as error:
            sys.exit(f'export_model.py: {error}')


if __name__ == '__main__':
    sys.exit(main())
