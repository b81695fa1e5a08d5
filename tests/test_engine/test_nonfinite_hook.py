"""NaN stops a training before it gets into the weights; the message says where it comes from."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner

from itpn_mm.engine import NonFiniteHook
from itpn_mm.engine.nonfinite import all_finite
from itpn_mm.engine.seed_hook import seed_iteration

from ..losses import ROOT, config, digest
from ..test_losses import host
from ..tiny_configs import plain_text
from .spoil import NanBackward, Spoil, build, nan_in, state_of

pytestmark = pytest.mark.checklist('nonfinite')

LAYER = 'backbone.stages.2.0.mlp.fc2'
# The last are those whose message comes from what the model fails of.
MODELS = (
    'pixel',
    'mask-rcnn',
    *(pytest.param(n, marks=pytest.mark.slow) for n in ('upernet', 'dino', 'maskdino')),
)


def train(runner: Runner) -> str:
    """Train until it stops by the guard; the message, which is one line."""
    with pytest.raises(FloatingPointError) as info:
        runner.train()
    message = str(info.value)
    assert '\n' not in message
    return message


def saved(message: str) -> dict:
    """The file that a message names, read without running any code in it."""
    path = re.search(r'saved to (\S+\.pth)', message).group(1)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize('name', MODELS)
def test_a_layer_in_forward(name, tmp_path, record_figure):
    pytest.importorskip(host(name))
    spoil = Spoil(LAYER, [2], nan_in)
    runner = build(name, tmp_path, spoil)
    message = train(runner)

    assert message.startswith('iteration 2 ')
    cause = f'first: the output of `{LAYER}` (Linear; 1 NaN and 0 infinite of '
    assert cause in message and 'values), from finite inputs, then ' in message
    assert runner.iter == 2 and state_of(runner) == spoil.states[2]
    file = saved(message)
    assert file['iteration'] == 2 and f'`{LAYER}`' in file['cause']
    assert len(file['images']) == 2
    assert all(Path(path).is_file() and path in message for path in file['images'])
    assert file['state_dict'].keys() == runner.model.state_dict().keys()
    for key, value in runner.model.named_parameters():
        assert torch.equal(file['state_dict'][key], value), key
    record_figure('models whose layer is named', name)


def test_losses_and_gradients_are_named(tmp_path):
    message = train(build('pixel', tmp_path, Spoil(LAYER, [1], nan_in)))
    assert 'gradients are not finite; first' in message
    assert 'then loss `loss`, `loss_pixel`, ' in message and ', then the gradient of `' in message
    assert (
        'lower the learning rate, clip gradients, repair the data, or raise `max_skips`' in message
    )


@pytest.mark.parametrize('name', ['pixel', pytest.param('mask-rcnn', marks=pytest.mark.slow)])
def test_a_layer_in_backward_alone(name, tmp_path):
    pytest.importorskip(host(name))
    message = train(build(name, tmp_path, Spoil(LAYER, [1], NanBackward.apply)))
    before = LAYER.replace('fc2', 'act')
    cause = rf'first: the gradient of the output of `{before}`, which goes to [^(]*`{LAYER}` \('
    assert re.search(cause, message)
    assert 'then the gradient of `' in message and 'loss `' not in message


def spoil_parameter(model: torch.nn.Module) -> None:
    model.get_parameter(f'{LAYER}.weight').data[0, 0] = float('inf')


def test_a_parameter(tmp_path):
    """No later batch would help, so nothing is skipped."""
    runner = build('pixel', tmp_path, Spoil(None, [1], spoil_parameter), max_skips=3)
    message = train(runner)
    assert message.startswith('iteration 1 (epoch 1), gradients are not finite; first: parameter ')
    assert f'first: parameter `{LAYER}.weight` (0 NaN and 1 infinite of ' in message
    assert runner.iter == 1


def overflow(model: torch.nn.Module) -> None:
    for name in ('fc1', 'fc2'):
        model.get_submodule(LAYER.replace('fc2', name)).weight.data.mul_(1e25)


def test_the_file_shows_it_again(tmp_path, record_figure):
    """Finite weights whose products are not; the file alone brings it back, in a new model."""
    message = train(build('pixel', tmp_path / 'first', Spoil(None, [1], overflow)))
    layer = re.search(r'first: the output of `(\S+)` ', message).group(1)
    assert LAYER.startswith(layer.rpartition('.')[0])
    file = saved(message)

    again = build('pixel', tmp_path / 'again')
    again._randomness_cfg, again._seed = dict(seed=file['seed']), file['seed']
    model = again.model.train()
    model.load_state_dict(file['state_dict'])
    outputs = {}
    model.get_submodule(layer).register_forward_hook(
        lambda module, inputs, output: outputs.update(output=output, input=inputs[0])
    )
    seed_iteration(again, file['iteration'])
    data = model.data_preprocessor(file['batch'], training=True)
    losses = model(data['inputs'], mode='loss')
    assert not losses['loss_pixel'].isfinite()
    assert not outputs['output'].isfinite().all() and outputs['input'].isfinite().all()


def test_one_of_several_batches(tmp_path):
    """The step comes later; the batch to blame is named."""
    runner, _ = accumulate(tmp_path, 6, max_skips=0)
    message = train(runner)
    assert runner.iter == 5 and message.startswith('iteration 4 ')
    assert f'`{LAYER}` (Linear; 1 NaN' in message
    assert saved(message)['iteration'] == 4
    assert (tmp_path / 'nonfinite_iter_4_rank0.pth').is_file()


def test_backward_of_one_of_several_batches(tmp_path):
    """Its loss tells nothing."""
    runner, _ = accumulate(tmp_path, 6, NanBackward.apply, max_skips=0)
    assert train(runner).startswith('iteration 4 ')


def accumulate(tmp_path: Path, steps: int, change=nan_in, **guard) -> tuple[Runner, Spoil]:
    spoil = Spoil(LAYER, [4], change)
    runner = build('classification', tmp_path, spoil, steps=steps, **guard)
    runner.optim_wrapper = dict(runner.cfg.optim_wrapper, accumulative_counts=3)
    return runner, spoil


def test_what_does_not_recur(tmp_path):
    message = train(build('classification', tmp_path, Spoil(LAYER, [1], nan_in, times=1)))
    assert (
        'first: finite when run again, so it depends on what was drawn at random; imag' in message
    )
    file = saved(message)
    assert file['cause'] is None and file['state_dict']


def test_steps_are_skipped(tmp_path, record_figure):
    """Two in a row at most; the total is named at the end. Weights and statistics stay."""
    spoil = Spoil(LAYER, [1, 2, 4], nan_in)
    runner = build(
        'upernet' if is_there('upernet') else 'classification',
        tmp_path,
        spoil,
        steps=6,
        max_skips=2,
    )
    runner.train()
    assert runner.iter == 6
    hook = next(hook for hook in runner.hooks if isinstance(hook, NonFiniteHook))
    assert hook.skipped == [1, 2, 4]
    assert spoil.states[1] == spoil.states[2] != spoil.states[4] != state_of(runner)
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())
    for name, buffer in spoil.buffers[1].items():
        if buffer.is_floating_point():  # running statistics; counts of batches go on
            assert torch.equal(buffer, spoil.buffers[2][name]), name
    log = next(tmp_path.rglob('*.log')).read_text()
    assert log.count('gradients are not finite, step skipped; first: the output of') == 3
    assert 'steps skipped: 3 with gradients that were not finite (iterations [1, 2, 4]), 0' in log
    assert len(list(tmp_path.glob('nonfinite_iter_*'))) == 3
    record_figure('steps skipped of 3 with NaN', len(hook.skipped), '>= 3')


def is_there(name: str) -> bool:
    try:
        pytest.importorskip(host(name))
    except pytest.skip.Exception:
        return False
    return True


def refuse_nan(output: torch.Tensor) -> None:
    if not output.isfinite().all():
        raise ValueError('it is not finite')


@pytest.mark.parametrize('skips', [0, 1])
def test_a_model_that_fails_of_it(skips, tmp_path):
    """Before there are gradients, as a matching does."""
    spoil = Spoil(LAYER, [1], nan_in)
    runner = build('classification', tmp_path, spoil, steps=3, max_skips=skips)
    runner.model.head.register_forward_pre_hook(lambda head, inputs: refuse_nan(inputs[0][-1]))
    if skips:
        runner.train()
        assert runner.iter == 3
        message = next(tmp_path.rglob('*.log')).read_text()
        assert spoil.states[1] != state_of(runner)
    else:
        message = train(runner)
        assert spoil.states[1] == state_of(runner)
    assert 'the model fails (ValueError: it is not finite)' in message
    assert f'first: the output of `{LAYER}` (' in message
    assert 'from finite inputs, then ValueError: it is not finite; images' in message


def test_too_many_in_a_row(tmp_path):
    spoil = Spoil(LAYER, [0, 2, 3, 4], nan_in)
    runner = build('classification', tmp_path, spoil, steps=6, max_skips=2)
    assert train(runner).startswith('iteration 4 ')
    assert spoil.states[2] == spoil.states[3] == spoil.states[4] == state_of(runner)


def test_files_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr('itpn_mm.engine.nonfinite_hook.MOST_FILES', 2)
    runner = build('classification', tmp_path, Spoil(LAYER, range(4), nan_in), max_skips=4)
    runner.train()
    assert len(list(tmp_path.glob('nonfinite_iter_*'))) == 2
    assert next(tmp_path.rglob('*.log')).read_text().count('not saved, as there are 2 files') == 2


def test_a_full_disk_hides_nothing(tmp_path, monkeypatch):
    def save(*args):
        raise OSError(28, 'No space left on device')

    runner = build('classification', tmp_path, Spoil(LAYER, [1], nan_in))
    monkeypatch.setattr(torch, 'save', save)
    message = train(runner)
    assert f'first: the output of `{LAYER}`' in message
    assert 'not saved: OSError: [Errno 28] No space left on device' in message


def test_images_that_hold_nan(tmp_path):
    """Another hook speaks first, as it knows which image."""
    runner = build('classification', tmp_path)
    loader = runner.train_dataloader
    dataset, collate = loader.dataset, loader.collate_fn
    loader.collate_fn = lambda samples: collate(
        [
            dict(s, inputs=nan_in(s['inputs'].float())) if i == 1 else s
            for i, s in enumerate(samples)
        ]
    )
    with pytest.raises(ValueError, match=r'image 1 of training batch 0 \(.+\.png\) holds NaN'):
        runner.train()
    assert not list(tmp_path.glob('nonfinite_iter_*')) and len(dataset)


def test_an_error_of_another_kind_stays(tmp_path):
    def fail(output):
        raise ValueError('of another kind')

    with pytest.raises(ValueError, match=r'^of another kind$'):
        build('classification', tmp_path, Spoil(LAYER, [1], fail)).train()


@pytest.mark.parametrize('name', ['classification', pytest.param('pixel', marks=pytest.mark.slow)])
def test_a_clean_run_is_the_same_without(name, tmp_path, record_figure):
    states = []
    for guarded in (True, False):
        cfg = config(name, tmp_path / str(guarded), steps=5)
        if not guarded:
            cfg.default_hooks.pop('nonfinite')
        with plain_text():
            runner = Runner.from_cfg(cfg)
            assert any(isinstance(hook, NonFiniteHook) for hook in runner.hooks) == guarded
            runner.train()
        assert 'train_step' not in vars(runner.model)
        states.append(digest(runner.model.state_dict(), runner.optim_wrapper.state_dict()))
    assert states[0] == states[1]
    record_figure('a clean run with and without the hook', 'bit-equal')


@pytest.mark.slow
def test_compiled(tmp_path):
    """Within a compiled graph no hook of a module is called; it is run again without."""
    runner = build('pixel', tmp_path, steps=3, max_skips=0)
    from itpn_mm.engine import CompileHook

    runner.register_hook(CompileHook(parts=('backbone',)))
    runner.register_hook(Spoil(None, [1], overflow))
    message = train(runner)
    stance = hasattr(torch.compiler, 'set_stance')
    assert message.startswith('iteration 1 ')
    if stance:
        assert re.search(rf'first: the output of `{LAYER[:-4]}\S+` ', message)


@pytest.mark.slow
def test_one_of_two_processes(tmp_path):
    """Both stop, and say which rank it was; its batch is saved, that of the other is not."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2']
    command += ['--rdzv_backend=c10d', '--rdzv_endpoint=localhost:0']
    command += ['-m', 'tests.test_engine.spoilt_rank', str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-4000:]
    first, second = (torch.load(tmp_path / f'rank{rank}.pt') for rank in range(2))
    assert first == second
    assert first['message'].startswith('iteration 2 ') and first['skipped'] == [1, 2]
    assert f'first: rank 1: the output of `{LAYER}` (' in first['message']
    assert 'rank 0: ' not in first['message']
    files = {path.name for path in tmp_path.rglob('nonfinite_iter_*')}
    assert files == {'nonfinite_iter_1_rank1.pth', 'nonfinite_iter_2_rank1.pth'}


def test_what_is_finite():
    """The largest numbers are, though their squares are not; shards may be empty."""
    tensors = [torch.full((3,), 3e38), torch.zeros(0), torch.ones(2, dtype=torch.bfloat16)]
    tensors.append(torch.full((3,), 6e4, dtype=torch.float16))
    assert all_finite(tensors)
    for value in ('nan', 'inf', '-inf'):
        for tensor in (tensors[0], tensors[2], tensors[3]):
            spoilt = [t.clone() for t in tensors]
            spoilt[[t is tensor for t in tensors].index(True)][1] = float(value)
            assert not all_finite(spoilt)


@pytest.mark.parametrize(
    'arguments', [dict(max_skips=-1), dict(max_overflows=1.5), dict(max_skips=True)]
)
def test_arguments(arguments):
    [(name, value)] = arguments.items()
    with pytest.raises(ValueError, match=f'`{name}` of NonFiniteHook must be 0 .* got {value!r}'):
        NonFiniteHook(**arguments)
