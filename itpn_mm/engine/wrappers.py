"""What hooks ask of the model of a run, whatever it is wrapped in."""

from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers for distributed training and test-time augmentation."""
    model = model.module if is_model_wrapper(model) else model
    return model.module if isinstance(model, BaseTTAModel) else model


def has_all_weights(model: nn.Module) -> bool:
    """Whether each process has all weights, and runs the model inside without the wrapper."""
    return not is_model_wrapper(model) or isinstance(model, DistributedDataParallel)


def has_stepped(runner: Runner) -> bool:
    """Whether the iteration that just ran ended with a step of the optimizer."""
    if hasattr(runner.optim_wrapper, 'should_update'):
        return runner.optim_wrapper.should_update()
    engine = runner.model  # DeepSpeed counts by itself
    return engine.micro_steps % engine.gradient_accumulation_steps() == 0
