"""Any damage to a checkpoint: the very tensors, or one message; never half of them.

An archive of torch has check sums of its parts. A file of the old form of torch, or safetensors,
has none: there it takes the `.sha256` that stands beside the files of a run to tell a number that
has changed.
"""

import hashlib
import random
import resource
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file
from torch import Tensor, nn

from itpn_mm.checkpoint import load_pretrained, read_checkpoint
from itpn_mm.engine import load_trained
from itpn_mm.engine.runner_load import SCHEME
from itpn_mm.registry import MODELS

pytestmark = pytest.mark.checklist('fuzz-checkpoints')
KINDS = ('archive.pth', 'legacy.pth', 'tensors.safetensors')
CASES = 200
ARCH = dict(embed_dims=16, depths=(1, 1, 1), num_heads=2)


class Model(nn.Module):
    """A backbone within something, as in a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = MODELS.build(dict(type='itpn_mm.HiViT', arch=ARCH, img_size=32))


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> tuple[dict[str, bytes], dict[str, Tensor]]:
    """The same weights in three forms."""
    folder = tmp_path_factory.mktemp('checkpoints')
    torch.manual_seed(1)
    state = {k: torch.randn_like(v) for k, v in Model().state_dict().items()}
    torch.save(dict(state_dict=state, meta=dict(epoch=3)), folder / KINDS[0])
    torch.save(dict(state_dict=state), folder / KINDS[1], _use_new_zipfile_serialization=False)
    save_file(state, folder / KINDS[2])
    return {kind: (folder / kind).read_bytes() for kind in KINDS}, state


def damage(data: bytes, draw: random.Random, others: list[bytes]) -> tuple[str, bytes]:
    """One way to spoil a file; ends and beginnings, where the structure is, more often."""
    kind = draw.choice(('flip', 'flip', 'cut', 'insert', 'zeros', 'swap'))
    place = draw.randrange(len(data))
    if draw.random() < 0.5:
        place = min(draw.choice((place % 600, len(data) - 1 - place % 600)), len(data) - 1)
    size = draw.randint(1, 400)
    changed = bytearray(data)
    if kind == 'flip':
        for _ in range(draw.randint(1, 3)):
            changed[place] ^= 1 << draw.randrange(8)
            place = draw.randrange(len(data))
    elif kind == 'cut':
        del changed[place:]
    elif kind == 'insert':
        changed[place:place] = draw.randbytes(size)
    elif kind == 'zeros':
        changed[place : place + size] = bytes(len(changed[place : place + size]))
    else:
        other = draw.choice(others)
        changed[place : place + size] = other[place : place + size]
    return f'{kind} at {place} of {len(data)}', bytes(changed)


def is_equal(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return state.keys() == wanted.keys() and all(
        torch.equal(state[name], tensor) and state[name].dtype == tensor.dtype
        for name, tensor in wanted.items()
    )


def load_from(model: nn.Module, path: Path) -> None:
    """As a Runner reads it."""
    state = CheckpointLoader.load_checkpoint(f'{SCHEME}{path}', map_location='cpu')
    assert isinstance(state.get('state_dict', state), dict)


LOADERS = {
    'load_trained': lambda model, path: load_trained(model, str(path)),
    'init_cfg': lambda model, path: load_pretrained(model.backbone, str(path), prefix='backbone.'),
    'load_from': load_from,
}


def test_random_damage(files, tmp_path, record_figure):
    contents, wanted = files
    model = Model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    exact = refused = silent = 0
    for seed in range(CASES):
        draw = random.Random(seed)
        kind = KINDS[seed % len(KINDS)]
        others = [contents[other] for other in KINDS if other != kind]
        what, data = damage(contents[kind], draw, others)
        path = tmp_path / kind
        path.write_bytes(data)
        sums = tmp_path / f'{kind}.sha256'
        has_sum = seed % 2 == 0
        if has_sum:
            sums.write_text(f'{hashlib.sha256(contents[kind]).hexdigest()}  {kind}\n')
        else:
            sums.unlink(missing_ok=True)
        case = f'case {seed}: {kind}, {what}, {"with" if has_sum else "without"} a check sum'
        try:
            state = read_checkpoint(path)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f'{path}: ') and '\n' not in str(error), (case, error)
            for name, load in LOADERS.items():
                with pytest.raises(
                    ValueError, match=r'damaged|truncated|not a whole|empty|page|no '
                ):
                    load(model, path)
                assert is_equal(model.state_dict(), before), f'{case}: {name} loaded a part'
            continue
        if is_equal(state, wanted):
            exact += 1
            continue
        # Another number than was saved, which nothing in the file can tell.
        assert not has_sum and kind != KINDS[0], f'{case}: other tensors without a message'
        silent += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    assert grown < 500, f'{grown} MB'
    assert refused > CASES / 2
    record_figure('damaged files with a message', refused)
    record_figure('damaged files whose tensors are exact', exact)
    record_figure('files without a check sum of any kind: numbers that changed unseen', silent)
    record_figure('damaged files with a check sum, or archives, that are loaded', 0, '0')


def test_swapped_files(files, tmp_path):
    """A file of another form under the name is read for what it is."""
    contents, wanted = files
    for name in KINDS[:2]:
        for kind in KINDS:
            (tmp_path / name).write_bytes(contents[kind])
            assert is_equal(read_checkpoint(tmp_path / name), wanted)
    for kind in KINDS[:2]:
        (tmp_path / KINDS[2]).write_bytes(contents[kind])
        with pytest.raises(ValueError, match=r'tensors\.safetensors: not a whole safetensors file'):
            read_checkpoint(tmp_path / KINDS[2])


def test_check_sum_beside(files, tmp_path):
    """As `sha256sum` writes it; the file itself may be of any form."""
    contents, wanted = files
    for kind, data in contents.items():
        path = tmp_path / kind
        path.write_bytes(data)
        sums = tmp_path / f'{kind}.sha256'
        sums.write_text(f'{hashlib.sha256(data).hexdigest()}  {kind}\n')
        assert is_equal(read_checkpoint(path), wanted)
        sums.write_text(f'{hashlib.sha256(b"other").hexdigest()}  {kind}\n')
        with pytest.raises(ValueError, match=f'{kind}: the file is damaged: its SHA-256 is'):
            read_checkpoint(path)
