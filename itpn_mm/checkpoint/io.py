"""Reading checkpoint files without running anything in them."""

import logging
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .report import shorten
from .shards import merge_shards, shard_files
from .sums import check_sum

# Where training scripts put the weights: mmengine and the authors' mmdet, their own scripts,
# DeepSpeed. Beside the model, some keep an exponential moving average of it (timm, mmengine).
CONTAINERS = ('state_dict', 'model', 'module')
EMA_CONTAINERS = ('model_ema', 'ema_state_dict')

# How torch.save began before its files were archives: a pickle of this number.
_TORCH_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)[:13]

# Beside the weights, checkpoints hold objects that reading weights does not need: the authors'
# files their command line (argparse.Namespace), mmengine's its message hub (HistoryBuffer, whose
# pickle names `getattr`, and numpy values). Each of these names is read as an empty object: its
# class is not imported, nothing is called, and what the file says about it is thrown away. So
# unlike an allow-list of the real classes, this list cannot run anything.
_INERT_NAMES = (
    'argparse.Namespace',
    'builtins.getattr',
    'builtins.slice',
    'mmengine.logging.history_buffer.HistoryBuffer',
    'numpy._core.multiarray._reconstruct',
    'numpy._core.multiarray.scalar',
    'numpy.core.multiarray._reconstruct',
    'numpy.core.multiarray.scalar',
    'numpy.dtype',
    'numpy.ndarray',
    'pathlib.Path',
    'pathlib.PosixPath',
    'pathlib.WindowsPath',
)


class _Inert:
    """Accepts every way in which a pickle makes and fills an object, and keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> '_Inert':
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _inert(path: str) -> type[_Inert]:
    """A class that answers to a dotted path; torch finds it by module and name."""
    module, _, name = path.rpartition('.')
    return type(name, (_Inert,), dict(__module__=module, __qualname__=name))


_INERT = [_inert(path) for path in _INERT_NAMES]


class _StatisticOnly(_Inert):
    """`getattr` as the history buffers of mmengine need it; with more, it reaches everything."""

    def __new__(cls, *args: Any) -> '_Inert':
        owner, name = args
        if getattr(owner, '__name__', None) != 'HistoryBuffer' or name.startswith('_'):
            raise pickle.UnpicklingError(f'GLOBAL builtins.getattr with {name!r} is refused')
        return super().__new__(cls)


_StatisticOnly.__module__, _StatisticOnly.__qualname__ = 'builtins', 'getattr'
_StatisticOnly.__name__ = 'getattr'
_RESUMABLE = [c for c in _INERT if c.__qualname__ != 'getattr'] + [_StatisticOnly]


def read_checkpoint(
    path: str | Path, *, trust: bool = False, float32: bool = False, ema: bool = False
) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint: safetensors, or what ``torch.save`` wrote.

    Args:
        path: A local file, or a folder of files of the processes of FSDP.
        trust: Unpickle whatever the file holds, which lets it run any code. For files of people
            you trust.
        float32: Convert half-precision tensors to float32.
        ema: Take the moving average of the model that the file holds beside it.

    Returns:
        The state dict, on the CPU, taken out of its container (``state_dict``, ``model`` or
        ``module``).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The path is not a local file, or the file is damaged, unsafe, not a checkpoint,
            or without the moving average that is asked for.
    """
    if files := shard_files(path):
        checkpoint = merge_shards([read_file(file, trust=trust) for file in files], path)
    else:
        checkpoint = read_file(path, trust=trust)
    state = take_state(checkpoint, path, ema)
    if float32:
        state = {
            name: tensor.float() if is_half(tensor) else tensor for name, tensor in state.items()
        }
    return state


def read_file(path: str | Path, *, trust: bool = False, resumable: bool = False) -> Any:
    """Read a checkpoint with all that is beside the weights; see :func:`read_checkpoint`.

    What is neither a tensor nor a number, text or container of such is read as an empty object.
    Where a check sum `<file>.sha256` stands beside the file, the two have to agree.

    Args:
        path: A local file.
        trust: See :func:`read_checkpoint`.
        resumable: Refuse also what is harmless here but not to mmengine, which reads the file
            again, with the real objects, when a run is resumed.
    """
    path = _local_file(path)
    check_sum(path)
    with path.open('rb') as file:
        head = file.read(64)
    if not head:
        raise ValueError(f'{path}: the file is empty; fetch it again')
    if head.lstrip().startswith((b'<', b'version https://git-lfs')):
        kind = 'a web page' if head.lstrip().startswith(b'<') else 'a Git LFS pointer'
        raise ValueError(f'{path}: the file is {kind}, not weights; fetch the file itself')
    if path.suffix == '.safetensors' or head[8:10] == b'{"':
        return _read_safetensors(path)
    if head.startswith(b'\x80') and not head.startswith(_TORCH_LEGACY):
        raise ValueError(
            f'{path}: a bare pickle, as .pkl files of detectron2 are: reading it could run any '
            'code; if you trust its author, unpickle it yourself and `torch.save` its tensors'
        )
    return _read_torch(path, head, trust, _RESUMABLE if resumable else _INERT)


def take_state(checkpoint: Any, source: object, ema: bool = False) -> dict[str, Tensor]:
    """Take the state dict out of the containers that training scripts put around it.

    Args:
        checkpoint: What was read.
        source: Where from, for messages.
        ema: Take the moving average instead.

    Returns:
        Name to tensor; other values beside tensors are left out with a warning.

    Raises:
        ValueError: There is no tensor, or no moving average.
    """
    if not isinstance(checkpoint, Mapping):
        raise ValueError(
            f'{source}: holds a {type(checkpoint).__name__} instead of a dict of tensors'
        )
    average = next((k for k in EMA_CONTAINERS if isinstance(checkpoint.get(k), Mapping)), None)
    if ema:
        if average is None:
            raise ValueError(
                f'{source}: holds no moving average of the weights (a key {EMA_CONTAINERS})'
            )
        return take_state(checkpoint[average], source)
    for key in CONTAINERS:
        if isinstance(checkpoint.get(key), Mapping):
            if average:
                print_log(
                    f'{source}: the weights are those of `{key}`; it also holds a moving average, '
                    f'`{average}`, which `tools/convert_checkpoint.py --ema` takes',
                    'current',
                    logging.INFO,
                )
            return take_state(checkpoint[key], source)
    state = {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(
            f'{source}: no state dict found (neither tensors nor one of the keys {CONTAINERS}); '
            f'it has the keys {shorten([str(key) for key in checkpoint]) or "(none)"}'
        )
    if others := [str(name) for name in checkpoint if name not in state]:
        print_log(
            f'{source}: left out what is no tensor: {shorten(others)}', 'current', logging.WARNING
        )
    return state


def _local_file(path: str | Path) -> Path:
    if not isinstance(path, (str, Path)) or not str(path):
        raise ValueError(f'`checkpoint` must be the path of a file, but got {path!r}')
    if '://' in str(path):
        raise ValueError(
            f'{path}: only local files are read; download it and give the path of the file'
        )
    path = Path(path).expanduser()
    if path.is_dir():
        raise ValueError(f'{path}: is a directory; give the path of a file in it')
    if not path.exists():
        raise FileNotFoundError(f'{path}: no such checkpoint')
    return path


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f'{path}: not a whole safetensors file ({_first_line(error)}); fetch it again'
        ) from error


def _read_torch(path: Path, head: bytes, trust: bool, inert: list[type]) -> Any:
    is_zip = zipfile.is_zipfile(path)  # not if it is truncated: the directory is at the end
    if head.startswith(b'PK') and not is_zip:
        raise ValueError(f'{path}: the file is truncated; fetch it again')
    if is_zip:
        _check_archive(path)
    if trust:
        print_log(
            f'{path}: TRUSTED, this file may run any code on this machine',
            'current',
            logging.WARNING,
        )
    try:
        with torch.serialization.safe_globals([] if trust else inert), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about pickle protocols
            return torch.load(path, map_location='cpu', weights_only=not trust, mmap=is_zip)
    except Exception as error:  # of many kinds, from EOFError to KeyError, for a damaged file
        blocked = re.search(r'GLOBAL (\S+)', str(error))
        if isinstance(error, pickle.UnpicklingError) and blocked:
            raise ValueError(
                f'{path}: holds more than weights: it asks for `{blocked[1]}`, which could run '
                'any code; if you trust its author, convert it once with '
                '`tools/convert_checkpoint.py SRC DST --trust`'
            ) from error
        raise ValueError(
            f'{path}: damaged, truncated or not a checkpoint '
            f'({type(error).__name__}: {_first_line(error)})'
        ) from error


def _check_archive(path: Path) -> None:
    """Compare the archive with the check sums in it; torch, which maps the file, does not."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, NotImplementedError, ValueError) as error:
        damaged = _first_line(error)
    if damaged:
        raise ValueError(f'{path}: the file is damaged, at {damaged!r}; fetch it again')


def _first_line(error: Exception) -> str:
    return (str(error).strip() or 'no details').splitlines()[0][:200]


def is_half(tensor: Tensor) -> bool:
    """Whether a tensor is of half precision."""
    return tensor.dtype in (torch.float16, torch.bfloat16)
