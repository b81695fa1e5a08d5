"""Compilation of backbone and neck in a real Runner: how often, and with which results."""

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from mmengine.model import BaseModel, BaseTTAModel, MMDistributedDataParallel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch._dynamo.utils import counters

from itpn_mm.acceleration import SETTINGS, TokenMigration
from itpn_mm.engine import CompileHook
from itpn_mm.engine.compile_hook import set_recompile_limit
from itpn_mm.registry import MODELS
from tests.checklist import note_difference, note_figure

SHAPES = ((64, 64), (64, 96), (96, 80))
PARTS = ('backbone', 'neck')


class Detector(BaseModel):
    """A backbone, accelerated unless `setting` is 'dense', with its pyramid and a head."""

    def __init__(self, setting: str = 'dense') -> None:
        super().__init__()
        arch = dict(embed_dims=16, depths=(1, 1, 1), num_heads=2)
        self.backbone = MODELS.build(dict(type='itpn_mm.FastiTPN', arch=arch, img_size=64))
        if setting != 'dense':
            options = dict(window_size=3, schedule=dict(every=1), **SETTINGS[setting])
            TokenMigration(self.backbone, **options)
            for parameter in self.backbone.acceleration.parameters():
                nn.init.normal_(parameter)  # 0 would hide what gathering does
        neck = dict(in_channels=(4, 8, 16), out_channels=8, out_strides=(4, 8, 16), depth=1)
        self.neck = MODELS.build(dict(type='itpn_mm.TransformerPyramidNeck', **neck))
        self.head = nn.Linear(8, 1)

    def forward(self, inputs: Tensor, mode: str) -> dict[str, Tensor] | list[float]:
        maps = self.neck(self.backbone(inputs))
        scores = torch.cat([self.head(x.flatten(2).mean(dim=2)) for x in maps])
        if scores.max().item() > 100:  # a head branches on what it finds
            scores = scores / 2
        return {'loss': (scores - 1).square().mean()} if mode == 'loss' else scores.tolist()


class Images(torch.utils.data.Dataset):
    """Each of the shapes twice."""

    def __init__(self, shapes: tuple = SHAPES) -> None:
        self.shapes = 2 * shapes

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {'inputs': torch.randn(3, *self.shapes[index], generator=generator)}


def make_runner(work_dir: Path, model: nn.Module, hook: dict | None, shapes=SHAPES) -> Runner:
    loader = dict(
        dataset=Images(shapes),
        batch_size=1,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    return Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=1, val_begin=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.02)),
        val_dataloader=loader,
        val_cfg=dict(),
        val_evaluator=[],
        custom_hooks=[] if hook is None else [dict(type='itpn_mm.CompileHook', **hook)],
        default_hooks=dict(checkpoint=None),
        log_level='ERROR',
        experiment_name=f'compile_{work_dir.name}_{hook is None}',
    )


@pytest.fixture(autouse=True)
def own_compilations() -> Iterator[None]:
    """Nothing compiled before or left behind, limits included."""
    config = torch._dynamo.config
    torch._dynamo.reset()
    counters.clear()
    limits = config.cache_size_limit, config.accumulated_cache_size_limit
    yield
    config.cache_size_limit, config.accumulated_cache_size_limit = limits
    torch._dynamo.reset()


@pytest.fixture
def no_inductor(monkeypatch) -> None:
    """Trace and guard as ever but run the graphs as they are: to generate code takes minutes."""
    compile = nn.Module.compile
    monkeypatch.setattr(nn.Module, 'compile', lambda *a, **k: compile(*a, backend='eager', **k))


def count_graphs() -> int:
    assert not counters['graph_break'], dict(counters['graph_break'])
    return counters['stats']['unique_graphs']


@pytest.mark.checklist('leak')
@pytest.mark.usefixtures('no_inductor')
@pytest.mark.parametrize('setting', ['dense', 'all'])
def test_each_shape_is_compiled_once(setting, tmp_path):
    """Six batches of three shapes; the same trained parameters as without the hook."""
    model = Detector(setting)
    other = copy.deepcopy(model)
    runner = make_runner(tmp_path, model, {})
    runner.train()
    note_figure('graphs of 2 parts and 3 shapes, each met twice', count_graphs(), '<= 6')
    assert count_graphs() == len(PARTS) * len(SHAPES)
    assert all(getattr(model, part)._compiled_call_impl is not None for part in PARTS)
    assert model._compiled_call_impl is None and model.head._compiled_call_impl is None

    make_runner(tmp_path, other, None).train()
    assert count_graphs() == len(PARTS) * len(SHAPES)
    state, expected = model.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for key, value in state.items():
        assert torch.allclose(value, expected[key], atol=1e-4), key


@pytest.mark.usefixtures('no_inductor')
def test_validation_compiles_for_itself_once(tmp_path):
    runner = make_runner(tmp_path, Detector(), dict(parts=('neck',)), SHAPES[:1])
    runner.train()
    assert count_graphs() == 1
    for _ in range(2):
        runner.val()
        assert count_graphs() == 2


@pytest.mark.usefixtures('no_inductor')
def test_more_shapes_than_allowed_run_uncompiled(tmp_path):
    shapes = tuple((64, 16 * n) for n in range(4, 8))
    model = Detector()
    runner = make_runner(tmp_path, model, dict(parts=('neck',), max_shapes=1), shapes)
    runner.train()
    assert runner.iter == 2 * len(shapes)
    assert count_graphs() == 2  # validation could have had one
    assert model.backbone._compiled_call_impl is None


@pytest.mark.parametrize('mode, marks', [(None, 0), ('reduce-overhead', 3), ('max-autotune', 3)])
def test_mode_reaches_torch_and_graphs_get_a_new_step(mode, marks, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    hook, runner = CompileHook(mode=mode), SimpleNamespace(model=Detector())
    with mock.patch.object(nn.Module, 'compile') as compile:
        hook.before_run(runner)
    assert compile.call_args_list == [mock.call(dynamic=False, mode=mode)] * len(PARTS)
    with mock.patch.object(torch.compiler, 'cudagraph_mark_step_begin') as mark:
        hook.before_train_iter(runner, 0)
        hook.before_val_iter(runner, 0)
        hook.before_test_iter(runner, 0)
    assert mark.call_count == marks


@pytest.mark.usefixtures('no_inductor')
def test_distributed_and_test_time_augmented(tmp_path):
    model = Detector()
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        wrapped = MMDistributedDataParallel(model)
        CompileHook().before_run(SimpleNamespace(model=wrapped))
        wrapped(Images()[0]['inputs'][None], mode='loss')['loss'].backward()
    finally:
        dist.destroy_process_group()
    assert count_graphs() == len(PARTS)

    class Augmented(BaseTTAModel):
        def merge_preds(self, data_samples_list):
            return data_samples_list

    model = Detector()
    CompileHook().before_run(SimpleNamespace(model=Augmented(module=model)))
    assert model.neck._compiled_call_impl is not None


@pytest.mark.parametrize('name', ['recompile_limit', 'cache_size_limit'])
def test_limit_has_a_name_in_every_torch(name, monkeypatch):
    total = f'accumulated_{name}'
    config = SimpleNamespace(**{name: 8, total: 256})
    monkeypatch.setattr(torch._dynamo, 'config', config)
    set_recompile_limit(20)
    assert vars(config) == {name: 20, total: 256}
    set_recompile_limit(300)
    assert vars(config) == {name: 300, total: 300}


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(parts='neck'), r"`parts` must be names of parts of the model, but got 'neck'"),
        (dict(parts=()), r'`parts` must be names of parts of the model, but got \(\)'),
        (dict(mode='fast'), r"`mode` must be one of \(None, 'default', .*\), but got 'fast'"),
        (dict(max_shapes=0), r'`max_shapes` must be a whole number of at least 1, but got 0'),
        (dict(max_shapes=True), r'`max_shapes` must be a whole number .* but got True'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CompileHook(**arguments)


def test_a_part_that_is_not_there(tmp_path):
    runner = make_runner(tmp_path, Detector(), dict(parts=('backbone', 'roi_head')))
    message = r"names 'roi_head', but Detector has no such part; name some of \['data_prep"
    with pytest.raises(ValueError, match=message):
        runner.train()


@pytest.mark.checklist('equivalences')
@pytest.mark.slow
def test_generated_code_gives_the_same():
    """The real compiler, which takes minutes on a CPU: maps and gradients to 1e-4."""
    model, images = Detector('all'), Images()[2]['inputs'][None]
    parameters = [p for part in PARTS for p in getattr(model, part).parameters()]

    def run() -> tuple[list[Tensor], list[Tensor]]:
        maps = model.neck(model.backbone(images))
        loss = sum(x.square().mean() for x in maps)
        return list(maps), list(torch.autograd.grad(loss, parameters))

    expected = run()
    CompileHook().before_run(SimpleNamespace(model=model))
    compiled = run()
    for found, wanted in zip(compiled, expected, strict=True):
        note_difference('generated code, with gradients', found, wanted, '<= 1e-4')
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert count_graphs() == len(PARTS)
