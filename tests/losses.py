"""Short trainings whose numbers are compared: with committed ones, and with each other.

    python -m tests.losses --update [NAME ...]   # after a change of numerics that is meant

trains each of `RUNS` for 20 steps, on a CPU in one thread and through the stock Runner, writes all
losses of each step and the norm of the gradients to `data/losses/<name>.json`, and prints what
changed. With `--out FILE` it writes what it found there, and leaves the committed files alone.
"""

import argparse
import copy
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from .tiny_configs import ROOT, parse, plain_text, shrink

DATA = ROOT / 'tests' / 'data' / 'losses'
STEPS = 20
RUNS = {
    'pixel': 'pretraining/itpn-pixel_hivit-base-p16_8xb512-amp-coslr-300e_in1k',
    'clip': 'pretraining/itpn-clip-b_hivit-base-p16_8xb256-amp-coslr-300e_in1k',
    'fast-itpn': 'pretraining/itpn-clip-l_fastitpn-base-p16_8xb256-amp-coslr-1600e_in1k',
    'classification': 'classification/'
    'hivit-base-p16_itpn-pixel-300e-pre_32xb32-amp-coslr-100e_in1k',
    'mask-rcnn': 'detection/mask-rcnn_hivit-base-itpn-pixel_tpn_32xb2-amp-ms-crop-1x_coco',
    'dino': 'detection/dino-4scale_hivit-base-itpn-clip-l_tpn_8xb2-amp-12e_coco',
    'rotated-faster-rcnn': 'rotated_detection/'
    'rotated-faster-rcnn-le90_fastitpn-base-itpn-clip-l_tpn_8xb1-1x_dota',
    'upernet': 'segmentation/upernet_hivit-base-itpn-pixel_tpn_8xb2-amp-160k_ade20k-512x512',
    'maskdino': 'detection/maskdino_fastitpn-base-itpn-clip-l_tpn_8xb2-amp-lsj-50e_coco',
}
# Instructions that all x86 machines of the last ten years have, whatever this one could do: a wider
# vector changes the order of additions. MKL takes another path on each kind of processor unless
# told to be compatible; oneDNN, whose blocks depend on the caches, is switched off below. The
# libraries read this when they are imported.
PINNED = dict(
    ATEN_CPU_CAPABILITY='avx2',
    MKL_CBWR='COMPATIBLE',
    MKL_NUM_THREADS='1',
    NPY_DISABLE_CPU_FEATURES='AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL',
    OMP_NUM_THREADS='1',
    OPENCV_CPU_DISABLE='AVX512-SKX',
)
# What decides about the last bits. Each line names one package under its names on the two stacks.
PACKAGES = (
    *(('torch',), ('torchvision',), ('numpy',), ('scipy',), ('pillow',)),
    ('opencv-python-headless', 'opencv-python'),
    *(('onedl-mmengine', 'mmengine'), ('onedl-mmcv', 'mmcv'), ('onedl-mmpretrain', 'mmpretrain')),
    *(('onedl-mmdetection', 'mmdet'), ('onedl-mmsegmentation', 'mmsegmentation')),
    ('onedl-mmrotate', 'mmrotate'),
)


class Recorder(Hook):
    """Notes what each step of training logs, and the norm of its gradients before clipping."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def before_train(self, runner: Runner) -> None:
        """Look at the gradients before the optimizer's wrapper clips them."""
        step = runner.optim_wrapper.step
        parameters = list(runner.model.parameters())

        def recorded_step(**kwargs: Any) -> None:
            gradients = [p.grad for p in parameters if p.grad is not None]
            self._note('grad_norm', torch.stack(torch._foreach_norm(gradients)).norm())
            step(**kwargs)

        runner.optim_wrapper.step = recorded_step

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Note the losses."""
        for name, value in outputs.items():
            self._note(name, value)

    def _note(self, name: str, value: Any) -> None:
        # The shortest text that reads as the same number of 32 bits.
        self.values.setdefault(name, []).append(float(str(np.float32(float(value)))))


def config(name: str, work_dir: Path, steps: int = STEPS, workers: int = 0) -> Config:
    """The shrunk config of a run, from random weights, without validation and checkpoints."""
    torch.manual_seed(0)  # of a teacher's weights
    path = ROOT / 'configs' / f'{RUNS[name]}.py'
    cfg = shrink(copy.deepcopy(parse(path)), path.stem, work_dir)
    for part in ('backbone', 'neck'):
        if part in cfg.model:
            cfg.model[part]['init_cfg'] = None
    # An epoch is a batch.
    cfg.train_cfg['max_iters' if 'max_iters' in cfg.train_cfg else 'max_epochs'] = steps
    cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
    # A long warm-up would leave the weights where they are.
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=0.1, end=5, by_epoch=False)]
    cfg.default_hooks.checkpoint.update(interval=-1, save_last=False)
    cfg.train_dataloader.num_workers = workers
    return cfg


def run(name: str, work_dir: Path, **kwargs: Any) -> dict[str, Any]:
    """Train; what was logged, by name, and a digest of all weights and states in the end."""
    torch.set_num_threads(1)
    recorder = Recorder()
    with plain_text():
        runner = Runner.from_cfg(config(name, work_dir, **kwargs))
        runner.register_hook(recorder)
        runner.train()
    states = (runner.model.state_dict(), runner.optim_wrapper.state_dict())
    DefaultScope._instance_dict.clear()
    return dict(values=recorder.values, digest=digest(states))


def digest(*values: Any) -> str:
    """SHA-256 of nested containers of tensors, bit by bit, in order."""
    hashed = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            hashed.update(value.detach().cpu().contiguous().view(-1).numpy().tobytes())
        elif isinstance(value, dict):
            for key, member in value.items():
                add(key)
                add(member)
        elif isinstance(value, (list, tuple)):
            for member in value:
                add(member)
        else:
            hashed.update(repr(value).encode())

    add(values)
    return hashed.hexdigest()


def environment() -> dict[str, str]:
    """What the last bits of the numbers depend on."""
    found = dict(instructions=torch.backends.cpu.get_cpu_capability())
    for names in PACKAGES:
        for name in names:
            try:
                found[names[0]] = version(name)
            except PackageNotFoundError:
                continue
    return found | PINNED


def read(name: str) -> dict[str, Any]:
    """The committed file of a run: `config`, `environment` and `values`."""
    return json.loads((DATA / f'{name}.json').read_text())


def write(name: str, values: dict[str, list[float]]) -> None:
    """Commit what a run gave; a line for each quantity."""
    head = dict(config=RUNS[name], environment=environment())
    lines = [f'{json.dumps(key)}: {json.dumps(value)}' for key, value in head.items()]
    rows = [f'{json.dumps(key)}: {json.dumps(row)}' for key, row in values.items()]
    DATA.mkdir(parents=True, exist_ok=True)
    text = ',\n'.join([*lines, '"values": {\n' + ',\n'.join(rows) + '\n}'])
    (DATA / f'{name}.json').write_text('{\n' + text + '\n}\n')


def difference(found: dict, expected: dict, steps: int = STEPS) -> tuple[float, str]:
    """Largest relative difference within the first steps, and where it is.

    A quantity that only one of the two has is infinitely far off.
    """
    if names := found.keys() ^ expected.keys():
        return float('inf'), f'only one of the two has {", ".join(sorted(names))}'
    worst = (0.0, 'all equal')
    for name, row in expected.items():
        if len(found[name]) != len(row):
            return float('inf'), f'{name} has {len(found[name])} values instead of {len(row)}'
        for step, (a, b) in enumerate(zip(found[name][:steps], row[:steps])):
            off = 0.0 if a == b else abs(a - b) / max(abs(a), abs(b))
            off = off if off == off else float('inf')  # NaN
            if off > worst[0]:
                worst = (off, f'{name} at step {step}: {a!r} instead of {b!r}')
    return worst


def update(found: dict[str, dict]) -> None:
    """Write the committed files, and say what changed."""
    for name, result in found.items():
        old = read(name)['values'] if (DATA / f'{name}.json').exists() else {}
        off, where = difference(result['values'], old)
        write(name, result['values'])
        print(f'{name}: differs by up to {off:.2g} ({where})' if off else f'{name}: as it was')
    print('Say in CHANGELOG.md why the numbers changed.')


def main(arguments: Sequence[str]) -> None:
    if os.environ | PINNED != os.environ:  # begin anew
        command = [sys.executable, '-m', 'tests.losses', *arguments]
        os.execve(sys.executable, command, os.environ | PINNED)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'of {", ".join(RUNS)}')
    parser.add_argument('--update', action='store_true', help='write the committed files anew')
    parser.add_argument('--out', type=Path, help='write what was found there')
    parser.add_argument('--steps', type=int, default=STEPS)
    parser.add_argument('--workers', type=int, default=0)
    args = parser.parse_args(arguments)
    if unknown := set(args.names) - set(RUNS):
        parser.error(f'no such run: {", ".join(sorted(unknown))}; there are {", ".join(RUNS)}')
    if args.update and args.steps != STEPS:
        parser.error(f'committed files hold {STEPS} steps')
    torch.backends.mkldnn.enabled = False
    settings = dict(steps=args.steps, workers=args.workers)
    with tempfile.TemporaryDirectory() as folder:  # one, as mmengine's visualizer stays in it
        found = {name: run(name, Path(folder) / name, **settings) for name in args.names or RUNS}
    if args.update:
        update(found)
    if args.out:
        args.out.write_text(json.dumps(dict(environment=environment(), runs=found)))


if __name__ == '__main__':
    main(sys.argv[1:])
