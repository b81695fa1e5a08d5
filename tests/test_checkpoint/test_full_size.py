"""Files of full size through the tool: there and back bit for bit, fast, and in little memory."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from itpn_mm.checkpoint import read_checkpoint
from itpn_mm.registry import MODELS

from .models import KEYS, read_table
from .test_model_config import read_config

TOOL = Path(__file__).parents[2] / 'tools' / 'convert_checkpoint.py'
LAYOUTS = sorted(path.stem for path in KEYS.glob('*.json'))
QUICK = ('fast_itpn_tiny_finetune_384', 'safetensors')


def joint_index(side: int, cls_token: bool) -> torch.Tensor:
    """As BEiT computes it."""
    coords = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing='ij'))
    coords = coords.flatten(1)
    relative = (coords[:, :, None] - coords[:, None, :]).permute(1, 2, 0) + side - 1
    index = relative[..., 0] * (2 * side - 1) + relative[..., 1]
    return with_cls(index, (2 * side - 1) ** 2 + 3) if cls_token else index


def with_cls(index: torch.Tensor, rows: int) -> torch.Tensor:
    out = torch.full((len(index) + 1, len(index) + 1), rows - 3)
    out[1:, 0], out[0, 0] = rows - 2, rows - 1
    out[1:, 1:] = index
    return out


def random_state(name: str) -> dict[str, torch.Tensor]:
    """Random weights of a released model, with the indices that it has."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, tensor in read_table(name).items():
        if not key.endswith('_index'):
            state[key] = torch.randn(tensor.shape, generator=generator)
            continue
        cls_token = 'cls' in name
        side = round((tensor.shape[0] - cls_token) ** 0.5)
        if key.endswith('position_index'):
            state[key] = joint_index(side, cls_token)
            continue
        cells = torch.arange(side**2)
        cells = cells // side if 'high' in key else cells % side
        state[key] = with_cls(cells[None] - cells[:, None] + side - 1, 2 * side + 2)
    return state


# VmHWM begins anew with a program, unlike what getrusage says of a child of a large parent.
MEASURED = """
import re, runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
print('peak', re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])
"""


def run(*args) -> tuple[str, float, int]:
    """Run the tool; what it printed, the seconds it took and its peak of memory in bytes."""
    env = dict(os.environ, OMP_NUM_THREADS='1')
    command = [sys.executable, '-c', MEASURED, str(TOOL), *map(str, args)]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, env=env, text=True, check=True)
    text, _, peak = done.stdout.rstrip().rpartition('peak ')
    return text, time.perf_counter() - start, int(peak) * 1024


@pytest.fixture
def folder(tmp_path) -> Iterator[Path]:
    """A folder that is gone after the test: pytest keeps its own, and these files are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.skipif(sys.platform != 'linux', reason='needs /proc')
@pytest.mark.parametrize(
    'name, suffix',
    [
        pytest.param(n, suffix, marks=[] if (n, suffix) == QUICK else pytest.mark.slow)
        for n in LAYOUTS
        for suffix in ('pth', 'safetensors')
    ],
)
def test_there_and_back(folder, name, suffix):
    pytest.importorskip('mmpretrain')
    state = random_state(name)
    src, ours, back = (folder / f'{stem}.{suffix}' for stem in ('src', 'ours', 'back'))
    src = src.with_suffix('.pth')
    torch.save(dict(model=state, args=argparse.Namespace(lr=1e-4)), src)

    text, seconds, memory = run(src, ours)
    _, seconds_back, memory_back = run(ours, back, '--to', 'authors')
    size = src.stat().st_size
    print(f'{name}: {size / 2**20:.0f} MiB, {seconds:.1f} and {seconds_back:.1f} s, '
          f'{memory / size:.2f}x and {memory_back / size:.2f}x in memory')  # fmt: skip
    assert seconds < 60 and seconds_back < 60
    if size > 2**30:  # below, what Python and torch take counts for more
        assert memory < 3 * size and memory_back < 3 * size

    found = read_checkpoint(back)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in state.items())

    config = read_config(re.search(r'^(model = |backbone=)(.|\n)*', text, re.MULTILINE)[0])
    converted = read_checkpoint(ours)
    with torch.device('meta'):
        if 'model' in config:
            model = MODELS.build(config['model'])
        else:
            model = torch.nn.ModuleDict({k: MODELS.build(part) for k, part in config.items()})
    model.load_state_dict(converted, strict=True, assign=True)
