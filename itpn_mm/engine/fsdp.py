"""Fully sharded training (FSDP) of our models on mmengine's FlexibleRunner."""

from __future__ import annotations

import re
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from mmengine._strategy import FSDPStrategy as MMEngineFSDPStrategy
from mmengine.device import get_device
from mmengine.dist import barrier, is_main_process
from mmengine.optim import BaseOptimWrapper
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

from itpn_mm.layers import MlpBlock
from itpn_mm.registry import STRATEGIES

# What FSDP, and activation checkpointing of torch, put into the names of parameters.
WRAPPERS = re.compile(r'_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.')


def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Shard each block of backbone, pyramid, decoder and EMA teacher by itself.

    All that is called, as FSDP needs it, and nearly all parameters, are in blocks. The rest
    (embeddings, merges, heads and other people's modules) is one unit, that of the whole model.
    The signature is that of FSDP's `auto_wrap_policy`.
    """
    return recurse or isinstance(module, MlpBlock)  # and with it AttentionBlock


def whole_root(model: nn.Module) -> AbstractContextManager:
    """A context in which the parameters outside of blocks are whole, and changes to them stay.

    Only a model in FSDP needs it; for any other nothing happens.

    The shards of a block lie alike in backbone and EMA teacher, so that these can be averaged as
    they are; those of the rest do not.
    """
    if isinstance(model, FSDP):
        return FSDP.summon_full_params(model, recurse=False, writeback=True)
    return nullcontext()


@STRATEGIES.register_module()
class FSDPStrategy(MMEngineFSDPStrategy):
    """mmengine's `FSDPStrategy`, made to fit our models and current versions of torch.

    * Blocks are the units (:func:`wrap_blocks`), unless `model_wrapper` has an `auto_wrap_policy`.
    * Frozen teachers, which are no submodules, follow the model to its device; each process has
      them whole.
    * The optimizer is built from whole parameters: rules that ask for the dimensions of a
      parameter, such as no weight decay for vectors, would take every shard for a vector.
    * Gradients are clipped by the norm of all shards, not of those of a process.
    * State of the optimizer is loaded; mmengine passes its arguments in an order that torch gave up
      in version 2.1.
    * With `state_dict_cfg='local'` each process saves tensors and nothing else, in files that can
      be read safely; where a checkpoint is read, the folder is put together.

    Args:
        model_wrapper: As in mmengine, with the defaults above; on a machine without a GPU also
            `device_id='cpu'`.
        state_dict_cfg: As in mmengine, but `'full'` by default: a file that any model loads.
        **kwargs: As in mmengine.

    Raises:
        ValueError: The model has a `TokenMigration`, which uses parts of blocks without calling
            these.
    """

    def __init__(
        self,
        *,
        model_wrapper: dict | None = None,
        state_dict_cfg: str | dict = 'full',
        **kwargs,
    ) -> None:
        wrapper = dict(type='MMFullyShardedDataParallel', auto_wrap_policy=wrap_blocks)
        on_cpu = not torch.cuda.is_available()
        if on_cpu:
            wrapper['device_id'] = 'cpu'  # or FSDP looks for a GPU
        wrapper.update(model_wrapper or {})
        super().__init__(model_wrapper=wrapper, state_dict_cfg=state_dict_cfg, **kwargs)
        if on_cpu:  # what is there already would be freed after the copy that is none
            for config in (self.state_dict_config, self.optim_state_dict_config):
                config.offload_to_cpu = False

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if any(getattr(module, 'acceleration', None) is not None for module in model.modules()):
            raise ValueError(
                '`strategy` is FSDP, but the backbone is a TokenMigration, which reads weights of '
                'blocks that are sharded: train it with DistributedDataParallel'
            )
        self.shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        return super()._wrap_model(model.to(get_device()))

    def build_optim_wrapper(
        self, optim_wrapper: dict | BaseOptimWrapper, model: nn.Module | None = None
    ) -> BaseOptimWrapper:
        """As in mmengine, see the class for what differs."""
        with FSDP.summon_full_params(model, writeback=False):
            optim_wrapper = super().build_optim_wrapper(optim_wrapper, model)
        if getattr(optim_wrapper, 'clip_func', None) is nn.utils.clip_grad_norm_:
            optim_wrapper.clip_func = lambda parameters, **kwargs: model.clip_grad_norm_(**kwargs)
        return optim_wrapper

    def save_checkpoint(self, filename: str, *, extra_ckpt: dict | None = None, **kwargs) -> None:
        """As in mmengine, but the checkpoint is in place once all processes have written it.

        `meta` also has the shapes of whole tensors.
        """
        extra_ckpt = extra_ckpt or {}
        extra_ckpt.setdefault('meta', {})['shapes'] = self.shapes
        path = Path(filename)
        unfinished = path.with_name(f'.{path.name}.unfinished')
        if is_main_process():
            _remove(unfinished)  # of a run that was killed here
        barrier()
        super().save_checkpoint(str(unfinished), extra_ckpt=extra_ckpt, **kwargs)
        barrier()
        if is_main_process():
            _remove(path)
            unfinished.replace(path)
        barrier()

    def model_state_dict(self) -> dict[str, Tensor]:
        """Tensors by the names of the plain model; a process's own parts, each flat, if local."""
        if self._is_full_state_dict():
            return super().model_state_dict()
        return {name: tensor.detach() for name, tensor in self._pieces().items()}

    def load_model_state_dict(self, state_dict: dict, **kwargs) -> None:
        """Load what :meth:`model_state_dict` gave; if local, with as many processes as then.

        Raises:
            ValueError: There were more or fewer processes, or it was another model.
        """
        if self._is_full_state_dict():
            super().load_model_state_dict(state_dict, **kwargs)
            return
        for name, piece in self._pieces().items():
            saved = state_dict.get(name)
            if saved is None or saved.shape != piece.shape:
                found = 'nothing' if saved is None else tuple(saved.shape)
                raise ValueError(
                    f'the checkpoint has {found} as part of `{name}`, but this process has '
                    f'{tuple(piece.shape)}: resume with the model and the number of processes '
                    'that saved it'
                )
            piece.data.copy_(saved)

    def _pieces(self) -> dict[str, Tensor]:
        named = (*self.model.named_parameters(), *self.model.named_buffers())
        pieces = {WRAPPERS.sub('', name): tensor for name, tensor in named}
        return {name: pieces[name] for name in self.shapes}

    def optim_state_dict(self) -> dict:
        """State of the optimizer as `state_dict_cfg` asks for it; a process's own part if local."""
        optimizer = self.optim_wrapper.optimizer
        if not self._is_full_state_dict():
            return optimizer.state_dict()
        return FSDP.optim_state_dict(self.model, optimizer)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load what :meth:`optim_state_dict` gave."""
        optimizer = self.optim_wrapper.optimizer
        if self._is_full_state_dict():
            state_dict = FSDP.optim_state_dict_to_load(
                model=self.model, optim=optimizer, optim_state_dict=state_dict
            )
        optimizer.load_state_dict(state_dict)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
