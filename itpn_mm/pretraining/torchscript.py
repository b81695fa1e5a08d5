"""Reading the tensors of a TorchScript archive without running the program in it."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    'BFloat16Storage': torch.bfloat16,
    'BoolStorage': torch.bool,
    'ByteStorage': torch.uint8,
    'CharStorage': torch.int8,
    'DoubleStorage': torch.float64,
    'FloatStorage': torch.float32,
    'HalfStorage': torch.float16,
    'IntStorage': torch.int32,
    'LongStorage': torch.int64,
    'ShortStorage': torch.int16,
}


def is_torchscript(path: Path) -> bool:
    """Whether ``torch.jit.save`` wrote this file; it has a program beside the tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith('/constants.pkl') for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of a TorchScript archive by their names in its module.

    ``torch.jit.load`` would compile the code that the archive brings. Here only the pickle with the
    module's attributes is read, and it can make tensors and empty objects, nothing else.

    Raises:
        ValueError: The archive is damaged or asks for more than that.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.count('/') == 1]
            [entry] = [name for name in names if name.endswith('/data.pkl')]
            with archive.open(entry) as file:
                module = _Unpickler(file, archive, entry.removesuffix('data.pkl')).load()
        return dict(_tensors(module, ''))
    except Exception as error:  # a damaged pickle may raise anything
        text = (str(error).strip() or 'no details').splitlines()[0]
        raise ValueError(
            f'{path}: damaged or no TorchScript archive of a model ({type(error).__name__}: '
            f'{text[:200]})'
        ) from error


class _ScriptObject:
    """Stands for an object of any class of the archive; holds its attributes."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = dict(state)


class _Unpickler(pickle.Unpickler):
    """Knows tensors, their storages, and objects without behaviour."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self._archive, self._folder = archive, folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split('.')[0] == '__torch__':
            return type('ScriptObject', (_ScriptObject,), {})  # its own, should it be altered
        if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
            return _rebuild_tensor
        if module == 'torch' and name in DTYPES:
            return DTYPES[name]
        if module == 'torch.jit._pickle':
            return lambda value, *_: value  # lists and dicts, with their types
        if (module, name) == ('torch', 'device'):
            return str
        if (module, name) == ('collections', 'OrderedDict'):
            return OrderedDict
        raise pickle.UnpicklingError(f'asks for `{module}.{name}`, which is not read')

    def persistent_load(self, pid: Any) -> Tensor:
        """A storage, as a flat tensor."""
        kind, dtype, key, _, _ = pid
        if kind != 'storage' or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f'asks for an unknown {kind!r}')
        if key not in self._storages:
            data = bytearray(self._archive.read(f'{self._folder}data/{key}'))
            self._storages[key] = torch.frombuffer(data, dtype=dtype)
        return self._storages[key]


def _rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    return storage.as_strided(size, stride, offset)  # checks that it stays within the storage


def _tensors(value: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield prefix, value
    elif isinstance(value, _ScriptObject):
        for name, member in getattr(value, 'attributes', {}).items():
            yield from _tensors(member, f'{prefix}.{name}' if prefix else name)
