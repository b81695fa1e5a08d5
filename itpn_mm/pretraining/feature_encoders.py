"""Vision encoders of other libraries as modules that give tokens; the libraries are optional."""

import difflib
import hashlib
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


def require(package: str, why: str) -> ModuleType:
    """Import an optional package.

    Raises:
        ImportError: It is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f'{why} needs `{package}`, which cannot be imported ({error}): '
            "`pip install 'itpn_mm[teachers]'`, or see requirements/teachers.txt"
        ) from error


def one_line(error: Exception) -> str:
    """The message of an error, short and without line breaks."""
    return ' '.join(str(error).split())[:300] or type(error).__name__


def as_tokens(features: Tensor) -> Tensor:
    """A map (B, C, h, w) -> tokens (B, h * w, C); anything else as it is."""
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features


class TransformersEncoder(nn.Module):
    """Last hidden state of a vision model in a local folder of `transformers`.

    Args:
        folder: Folder with config.json and weights. Code in it is not run.
        img_size: Side of the images; positions are interpolated where the model can do that.

    Raises:
        ImportError: `transformers` is not installed.
        ValueError: It does not read the folder, or finds no vision model in it.
    """

    def __init__(self, folder: Path, img_size: int) -> None:
        super().__init__()
        transformers = require('transformers', 'a folder as `source` of FeatureTeacher')
        try:
            model = transformers.AutoModel.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # of many kinds
            raise ValueError(
                f'{folder}: `transformers` does not read this folder: {one_line(error)}'
            ) from error
        model = getattr(model, 'vision_model', model)  # of CLIP, SigLIP and the like
        arguments = inspect.signature(model.forward).parameters
        if 'pixel_values' not in arguments:
            raise ValueError(f'{folder}: {type(model).__name__} is no model for images')
        self.model = model.float()
        self.patch_size = _as_int(getattr(model.config, 'patch_size', None))
        self.identity = type(model).__name__
        self.kwargs = {}
        if 'interpolate_pos_encoding' in arguments:
            native = _as_int(getattr(model.config, 'image_size', None))
            self.kwargs['interpolate_pos_encoding'] = native != img_size

    def forward(self, images: Tensor) -> Tensor:
        """Tokens (B, N, C) of images (B, 3, S, S)."""
        return as_tokens(self.model(pixel_values=images, **self.kwargs).last_hidden_state)


class OnnxEncoder(nn.Module):
    """A tensor of an ONNX graph, run by ONNX Runtime: on a GPU if its build can, else on the CPU.

    Args:
        file: The graph; it has one input, the images.
        img_size: Side of the images.
        output: Name of a tensor of the graph, one of its outputs or within it; ``None`` for its
            first output.

    Raises:
        ImportError: `onnxruntime`, or `onnx` for a tensor within the graph, is not installed.
        ValueError: It is no ONNX file, has no such tensor, or takes other images.
    """

    patch_size = None  # the file does not tell

    def __init__(self, file: Path, img_size: int, output: str | None = None) -> None:
        super().__init__()
        self._model, self._session = file.read_bytes(), None
        outputs = [found.name for found in self._open(file).get_outputs()]
        if output is not None and output not in outputs:
            self._model, self._session = _expose(file, output), None
            self._open(file)
        self.output = output or outputs[0]
        self.input = self._check_input(file, img_size)
        self.identity = f'{hashlib.sha256(self._model).hexdigest()} {self.output}'

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_session': None}  # a session cannot be copied

    def _open(self, source: object = 'the ONNX graph') -> Any:
        """The session; it is made when it is needed, also after a copy."""
        if self._session is None:
            onnxruntime = require('onnxruntime', 'an ONNX file as `source` of FeatureTeacher')
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3
            known = ('CUDAExecutionProvider', 'CPUExecutionProvider')
            available = onnxruntime.get_available_providers()
            providers = [name for name in known if name in available]
            try:
                self._session = onnxruntime.InferenceSession(
                    self._model, options, providers=providers
                )
            except Exception as error:  # its classes have no common base of their own
                raise ValueError(
                    f'{source}: ONNX Runtime does not read it: {one_line(error)}'
                ) from error
        return self._session

    def _check_input(self, file: Path, img_size: int) -> str:
        inputs = self._open().get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            taken = [(found.name, found.shape) for found in inputs]
            raise ValueError(f'{file}: must take images (B, 3, H, W) alone, but takes {taken}')
        batch, channels, *sides = inputs[0].shape
        fixed = [side for side in sides if isinstance(side, int) and side != img_size]
        if channels not in (3, None) and not isinstance(channels, str):
            raise ValueError(f'{file}: must take images of 3 channels, but takes {channels}')
        if fixed:
            raise ValueError(
                f'{file}: takes images of {fixed[0]} pixels, but `img_size` of FeatureTeacher is '
                f'{img_size}: set img_size={fixed[0]}'
            )
        if isinstance(batch, int) and batch != 1:
            raise ValueError(f'{file}: takes {batch} images at a time; any number, or 1, is needed')
        self._single = batch == 1
        self._dtype = torch.float16 if inputs[0].type == 'tensor(float16)' else torch.float32
        return inputs[0].name

    def forward(self, images: Tensor) -> Tensor:
        """Tokens (B, N, C) of images (B, 3, S, S)."""
        views = images.detach().to('cpu', self._dtype)
        session, found = self._open(), []
        for part in views.split(1) if self._single else [views]:
            [features] = session.run([self.output], {self.input: part.numpy()})
            found.append(torch.from_numpy(features))
        return as_tokens(torch.cat(found)).to(images.device)


def _expose(file: Path, output: str) -> bytes:
    """The graph with a tensor within it as its only output; what that does not need is not run."""
    onnx = require('onnx', f'`output={output!r}`, which is no output of {file},')
    model = onnx.load(str(file))
    names = [name for node in model.graph.node for name in node.output]
    if output not in names:
        near = difflib.get_close_matches(output, names, 3, 0.3) or names[-3:]
        raise ValueError(
            f'{file}: has no tensor {output!r} for `output` of FeatureTeacher; near ones are {near}'
        )
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name=output))
    return model.SerializeToString()


def _as_int(value: Any) -> int | None:
    """The side of a square: a number, or the first of two equal ones."""
    if isinstance(value, (list, tuple)) and len(set(value)) == 1:
        value = value[0]
    return value if isinstance(value, int) else None
