"""Released files as `load_from` of a real Runner, and runs that are resumed."""

import argparse
import logging
import os
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.model import BaseModel
from mmengine.runner import Runner
from safetensors.torch import save_file
from torch import Tensor, nn

from itpn_mm.acceleration import SETTINGS, TokenMigration
from itpn_mm.backbones import FastiTPN, HiViT
from itpn_mm.checkpoint import remap
from itpn_mm.necks import GlobalAveragePoolNorm, TransformerPyramidNeck
from tests.golden import load, under

from .models import detector, segmentor

# that of the golden fixtures
ARCH = dict(embed_dims=32, depths=(1, 1, 2), num_heads=2)
PIXEL_ARCH = dict(ARCH, depths=(2, 2, 2))  # of fixture b2
CLASSES = 10


class Classifier(BaseModel):
    """Names as mmpretrain's ImageClassifier has them."""

    def __init__(self, backbone: nn.Module, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, GlobalAveragePoolNorm(32)
        self.head = nn.ModuleDict(dict(fc=nn.Linear(32, num_classes)))

    def forward(self, inputs: Tensor, data_samples=None, mode: str = 'tensor'):
        scores = self.head['fc'](self.neck(self.backbone(inputs))[0])
        return {'loss': scores.square().mean()} if mode == 'loss' else [scores]


class Scores(BaseMetric):
    """Keeps what the model gave."""

    def process(self, data_batch, data_samples) -> None:
        self.results += [scores.tolist() for scores in data_samples]

    def compute_metrics(self, results: list) -> dict:
        return dict(first=results[0][0][0])


class Images(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        return dict(inputs=torch.randn(3, 64, 64, generator=generator))


def authors_state(name: str) -> dict[str, Tensor]:
    return under(load(name), 'sd/')


def save(path: Path, state: dict[str, Tensor], container: str = 'model') -> Path:
    torch.save({container: state, 'args': argparse.Namespace(lr=1e-4)}, path)
    return path


def make_runner(model: nn.Module, folder: Path, hook: dict | None = None, **kwargs) -> Runner:
    dataloader = dict(
        dataset=Images(),
        batch_size=2,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    cfg = dict(
        train_dataloader=dataloader,
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        test_dataloader=dataloader,
        test_cfg=dict(),
        test_evaluator=[Scores()],
        custom_hooks=[hook or dict(type='itpn_mm.PreflightHook')],
        log_level='ERROR',
        experiment_name=f'{folder.name}{id(model)}',
        work_dir=str(folder / 'run'),
    )
    return Runner(model=model, **{**cfg, **kwargs})


def load_into(model: nn.Module, path: Path, folder: Path, **kwargs) -> nn.Module:
    """Load as a run that trains does, without training."""
    runner = make_runner(model, folder, load_from=str(path), **kwargs)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.call_hook('before_run')
    runner.load_or_resume()
    return model


@pytest.fixture
def log():
    """What is logged, as (level, text)."""
    records = []

    class Handler(logging.Handler):
        def emit(self, record):
            records.append((record.levelno, record.getMessage()))

    root = logging.getLogger('mmengine')
    handler = Handler()
    loggers = [root]
    original = MMLogger.__init__

    def register(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.addHandler(handler)
        self.setLevel('INFO')
        loggers.append(self)

    MMLogger.__init__ = register
    yield records
    MMLogger.__init__ = original
    for logger in loggers:
        logger.removeHandler(handler)


def by_hand(model: Classifier, name: str) -> Classifier:
    model.load_state_dict(remap(authors_state(name))[0], strict=True)
    return model.eval()


@pytest.mark.parametrize(
    'name, make',
    [
        ('b2_pixel_cls', lambda: HiViT(PIXEL_ARCH, img_size=64)),
        ('g03_fast_ls_meanpool', lambda: FastiTPN(ARCH, img_size=64)),
        ('g05_fast_cls_meanpool', lambda: FastiTPN(ARCH, img_size=64, cls_token=True)),
    ],
)
@pytest.mark.parametrize('kind', ['model', 'module', 'state_dict', 'raw', 'safetensors', 'ours'])
def test_evaluates_a_released_classifier(tmp_path, name, make, kind):
    """Nothing but config and file: the numbers of a model loaded by hand."""
    state = authors_state(name)
    num_classes = state['head.bias'].shape[0]
    if kind == 'safetensors':
        save_file(state, path := tmp_path / 'a.safetensors')
    elif kind == 'raw':
        torch.save(state, path := tmp_path / 'a.pth')
    elif kind == 'ours':
        path = save(tmp_path / 'a.pth', remap(state)[0], 'state_dict')
    else:
        path = save(tmp_path / 'a.pth', state, kind)
    runner = make_runner(Classifier(make(), num_classes), tmp_path, load_from=str(path))
    found = runner.test()['first']
    expected = by_hand(Classifier(make(), num_classes), name)
    with torch.no_grad():
        image = torch.stack([Images()[0]['inputs'], Images()[1]['inputs']])
        assert found == pytest.approx(expected(image)[0][0, 0].item(), rel=1e-5)


def test_head_of_other_classes(tmp_path, log):
    """Training starts with a new head and says so; an evaluation of it would be meaningless."""
    path = save(tmp_path / 'a.pth', authors_state('b2_pixel_cls'))
    model = Classifier(HiViT(PIXEL_ARCH, img_size=96), num_classes=3)
    head = model.head['fc'].weight.clone()
    load_into(model, path, tmp_path)
    state = remap(authors_state('b2_pixel_cls'))[0]
    assert torch.equal(model.head['fc'].weight, head)
    assert torch.equal(model.neck.norm.weight, state['neck.norm.weight'])
    assert torch.equal(model.backbone.merges[0].norm.bias, state['backbone.merges.0.norm.bias'])
    level, text = next((level, text) for level, text in log if 'Classifier loaded from' in text)
    assert level == logging.WARNING
    assert 'resized:    1: backbone.pos_embed (1, 16, 32) -> (1, 36, 32)' in text
    classes = state['head.fc.bias'].shape[0]
    assert f'shape ({classes}, 32), in the model (3, 32): head.fc.weight' in text
    assert 'missing:    2 (keep their initial values): head.fc.weight, head.fc.bias' in text

    runner = make_runner(model, tmp_path, load_from=str(path))
    with pytest.raises(ValueError, match=r'a\.pth: Classifier cannot be evaluated .* 2 of its'):
        runner.test()


@pytest.mark.parametrize('num_classes', [CLASSES, 3])
@pytest.mark.parametrize('hook', ['EMAHook', 'mmpretrain.EMAHook'])
def test_with_a_moving_average(tmp_path, hook, num_classes):
    """Hooks of the hosts take the averaged weights from the file, or start from what was fitted."""
    pytest.importorskip(hook.split('.')[0] if '.' in hook else 'mmengine')
    hooks = [dict(type='itpn_mm.PreflightHook'), dict(type=hook, momentum=0.5)]
    runner = make_runner(
        Classifier(HiViT(ARCH, img_size=64)), tmp_path, custom_hooks=hooks, load_from=None
    )
    runner.train()
    path = tmp_path / 'run' / 'epoch_2.pth'
    saved = torch.load(path, weights_only=False)
    assert 'ema_state_dict' in saved
    model = Classifier(HiViT(ARCH, img_size=64), num_classes)
    runner = make_runner(model, tmp_path, custom_hooks=hooks, load_from=str(path))
    if num_classes == CLASSES:
        scores = runner.test()['first']
        expected = Classifier(HiViT(ARCH, img_size=64)).eval()
        expected.load_state_dict(saved['state_dict'])  # where mmengine saves the average
        with torch.no_grad():
            image = torch.stack([Images()[i]['inputs'] for i in range(2)])
            assert scores == pytest.approx(expected(image)[0][0, 0].item(), rel=1e-5)
        return
    runner.train()
    (average,) = (h.ema_model for h in runner.hooks if 'EMA' in type(h).__name__)
    assert average.module.head['fc'].weight.shape == (3, 32)


def accelerated(setting: str = 'gathering-rpe', size: int = 3, seed: int = 1) -> nn.Module:
    """An accelerated backbone whose new parameters have values of their own."""
    model = TokenMigration(HiViT(ARCH, img_size=64), **{**SETTINGS[setting], 'window_size': size})
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.acceleration.parameters():
        nn.init.normal_(parameter, generator=generator)
    return model


@pytest.mark.parametrize('setting', ['migration-40', 'windows', 'gathering-rpe', 'all'])
def test_evaluates_a_dense_checkpoint_in_an_accelerated_model(tmp_path, log, setting):
    """A trained backbone is wrapped and gives what plain windows and migration make of it."""
    dense = Classifier(HiViT(ARCH, img_size=64))
    path = save(tmp_path / 'a.pth', dense.state_dict(), 'state_dict')
    options = {**SETTINGS[setting], 'window_size': 3}
    model = Classifier(TokenMigration(HiViT(ARCH, img_size=64), **options))
    new = [key for key in model.state_dict() if '.acceleration.' in key]
    found = make_runner(model, tmp_path, load_from=str(path)).test()['first']
    TokenMigration(dense.backbone, **{**options, 'gathering': False, 'rel_pos_bias': None})
    with torch.no_grad():
        image = torch.stack([Images()[0]['inputs'], Images()[1]['inputs']])
        assert found == pytest.approx(dense.eval()(image)[0][0, 0].item(), rel=1e-5)
    level, text = next((level, text) for level, text in log if 'Classifier loaded from' in text)
    assert level == (logging.WARNING if new else logging.INFO)
    assert f'missing:    {len(new)}' in text and '100.00% of the values' in text
    assert ('(keep their initial values): backbone.acceleration.' in text) == bool(new)


def test_accelerated_checkpoint_in_a_dense_model(tmp_path, log):
    source = Classifier(accelerated())
    path = save(tmp_path / 'a.pth', source.state_dict(), 'state_dict')
    model = Classifier(HiViT(ARCH, img_size=64))
    found = make_runner(model, tmp_path, load_from=str(path)).test()['first']
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())
    source.backbone.acceleration = None
    with torch.no_grad():
        image = torch.stack([Images()[0]['inputs'], Images()[1]['inputs']])
        assert found == pytest.approx(source.eval()(image)[0][0, 0].item(), rel=1e-5)
    level, text = next((level, text) for level, text in log if 'Classifier loaded from' in text)
    assert 'acceleration that the model does not have: backbone.acceleration.gath' in text
    assert level == logging.INFO


@pytest.mark.parametrize('train', [True, False])
def test_another_acceleration(tmp_path, log, train):
    """What both have is taken, at another size of windows too; the rest starts anew."""
    source = Classifier(accelerated('gathering-hrpe'))
    path = save(tmp_path / 'a.pth', source.state_dict(), 'state_dict')
    model = Classifier(accelerated('gathering-rpe', 5, seed=2))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    if train:
        load_into(model, path, tmp_path)
    else:
        make_runner(model, tmp_path, load_from=str(path)).test()
    state, expected = model.state_dict(), source.state_dict()
    table = 'backbone.acceleration.rel_pos.table'
    assert state[table].shape == (81, 2) and not torch.equal(state[table], before[table])
    for key, tensor in state.items():
        assert key == table or torch.equal(tensor, expected.get(key, before[key])), key
    text = next(text for _, text in log if 'Classifier loaded from' in text)
    assert f'resized:    1: {table} (25, 2) -> (81, 2)' in text
    assert 'missing:    1 (keep their initial values): backbone.acceleration.cross_rel_pos' in text


def test_pretraining_file_into_a_classifier(tmp_path, log):
    path = save(tmp_path / 'a.pth', authors_state('a1_pixel_pretrain'))
    model = load_into(Classifier(HiViT(ARCH, img_size=64)), path, tmp_path)
    state = remap(authors_state('a1_pixel_pretrain'))[0]
    assert torch.equal(model.backbone.pos_embed, state['backbone.pos_embed'])
    text = next(text for _, text in log if 'Classifier loaded from' in text)
    for line in ('part `decoder` that the model', 'not in GlobalAveragePoolNorm: neck.laterals'):
        assert line in text


def test_shared_table_for_every_block(tmp_path, log):
    path = save(tmp_path / 'a.pth', authors_state('g08_fast_cls_sharedrelpos'))
    backbone = FastiTPN(ARCH, img_size=96, cls_token=True, rel_pos_bias='block')
    load_into(Classifier(backbone), path, tmp_path)
    first, second = (block.attn.rel_pos.table for block in backbone.stages[2])
    table = authors_state('g08_fast_cls_sharedrelpos')['rel_pos_bias.relative_position_bias_table']
    assert torch.equal(first, second) and torch.equal(first[-3:], table[-3:])
    assert first.shape == (11 * 11 + 3, 2)
    text = next(text for _, text in log if 'Classifier loaded from' in text)
    assert 'copied:     backbone.rel_pos.table to 2 blocks' in text


@pytest.mark.parametrize('kind', ['detector', 'segmentor'])
def test_detectors_and_segmentors(tmp_path, kind):
    """Backbone and pyramid of a pre-training file; the heads start anew."""
    make, host = dict(detector=(detector, 'mmdet'), segmentor=(segmentor, 'mmseg'))[kind]
    pytest.importorskip(host)
    backbone = dict(type='itpn_mm.HiViT', arch=ARCH, img_size=64)
    strides = (4, 8, 16, 32) if kind == 'segmentor' else (4, 8, 16, 32, 64)
    neck = dict(type='itpn_mm.TransformerPyramidNeck', in_channels=(8, 16, 32), out_channels=8)
    model = make(backbone, dict(neck, out_strides=strides))
    weights = {
        f'{part}.{key}': torch.randn_like(tensor)
        for part in ('backbone', 'neck')
        for key, tensor in getattr(model, part).state_dict().items()
    }
    path = save(tmp_path / 'a.pth', remap(weights, to='authors')[0])
    load_into(model, path, tmp_path)
    state = model.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in weights.items())


@pytest.mark.parametrize(
    'state, message',
    [
        (
            authors_state('g03_fast_ls_meanpool'),
            r"is of a FastiTPN .* set backbone\.type='itpn_mm\.F",
        ),
        ({'conv1.weight': torch.zeros(3)}, r'holds only 0\.0% of the values of the backbone'),
        (
            {**authors_state('b2_pixel_cls'), 'x.y': torch.zeros(1)},
            '1 of its names are unknown: x.y',
        ),
        (
            {**authors_state('b2_pixel_cls'), 'fc_norm.weight': torch.zeros(7)},
            r'does not fit GlobalAveragePoolNorm: neck\.norm\.weight \(7,\) instead of \(32,\)',
        ),
    ],
)
def test_wrong_files_are_refused(tmp_path, state, message):
    path = save(tmp_path / 'a.pth', state)
    model = Classifier(HiViT(PIXEL_ARCH, img_size=64))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        load_into(model, path, tmp_path)
    assert '\n' not in str(error.value) and 'a.pth: ' in str(error.value)
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)


def test_wrong_pyramid_is_refused(tmp_path):
    class Pyramid(BaseModel):
        def __init__(self):
            super().__init__()
            self.backbone = HiViT(ARCH, img_size=64)
            self.neck = TransformerPyramidNeck((8, 16, 32), 24)

        def forward(self, inputs, data_samples=None, mode='tensor'): ...

    path = save(tmp_path / 'a.pth', authors_state('a1_pixel_pretrain'))
    with pytest.raises(ValueError, match=r'out_channels=16 .* set neck\.out_channels=16'):
        load_into(Pyramid(), path, tmp_path)


class Other(BaseModel):
    """A model without a part of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, inputs, data_samples=None, mode='tensor'): ...


def test_other_models_load_as_ever(tmp_path):
    state = {'fc.weight': torch.ones(2, 2), 'fc.bias': torch.ones(2)}
    for i, container in enumerate(('state_dict', None)):
        torch.save({container: state} if container else state, path := tmp_path / f'{i}.pth')
        assert (load_into(Other(), path, tmp_path).fc.weight == 1).all()


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


class Attribute:
    """The first step from names that checkpoints may hold to any function there is."""

    def __init__(self, owner: type) -> None:
        self.owner = owner

    def __reduce__(self):
        return getattr, (self.owner, '__init__')


@pytest.mark.checklist('safe-loading')
@pytest.mark.parametrize('resume', [False, True])
def test_hostile_file_does_not_run(tmp_path, resume):
    trap = tmp_path / 'trap'
    state = remap(authors_state('b2_pixel_cls'))[0]
    torch.save(dict(state_dict=state, meta=Malicious(trap)), path := tmp_path / 'a.pth')
    model = Classifier(HiViT(ARCH, img_size=64))
    with pytest.raises(ValueError, match=r'a\.pth: .* asks for `posix\.mkdir`'):
        load_into(model, path, tmp_path, resume=resume)
    assert not trap.exists()


@pytest.mark.checklist('safe-loading')
@pytest.mark.parametrize('owner', [argparse.Namespace, HistoryBuffer])
def test_resuming_refuses_getattr_on_anything(tmp_path, owner):
    torch.save(dict(state_dict={}, meta=Attribute(owner)), path := tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'a\.pth: .* asks for `builtins\.getattr`'):
        load_into(Classifier(HiViT(ARCH, img_size=64)), path, tmp_path, resume=True)


@pytest.mark.checklist('safe-loading')
def test_trust_is_explicit(tmp_path):
    trap = tmp_path / 'trap'
    state = remap(authors_state('b2_pixel_cls'))[0]
    torch.save(dict(state_dict=state, meta=Malicious(trap)), path := tmp_path / 'a.pth')
    classes = state['head.fc.bias'].shape[0]
    model = Classifier(HiViT(PIXEL_ARCH, img_size=64), classes)
    hook = dict(type='itpn_mm.PreflightHook', trust=True)
    env = pytest.MonkeyPatch()
    env.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')  # as mmengine's fallback does
    load_into(model, path, tmp_path, hook=hook)
    env.undo()
    assert trap.exists()


def test_resumes_our_own_run(tmp_path):
    """With its message hub, optimizer and epoch."""

    def train(epochs: int, seed: int, **kwargs) -> Runner:
        torch.manual_seed(seed)
        model = Classifier(HiViT(ARCH, img_size=64))
        cfg = dict(by_epoch=True, max_epochs=epochs)
        runner = make_runner(model, tmp_path, train_cfg=cfg, **kwargs)
        runner.train()
        return runner

    whole = train(3, 0)
    train(2, 0, work_dir=str(tmp_path / 'two'))
    path = tmp_path / 'two' / 'epoch_2.pth'
    resumed = train(3, 1, load_from=str(path), resume=True, work_dir=str(tmp_path / 'three'))
    automatic = train(3, 1, resume=True, work_dir=str(tmp_path / 'two'))
    for runner in (resumed, automatic):
        assert runner.epoch == 3
        losses = runner.message_hub.get_scalar('train/loss').data[0]
        assert len(losses) == 3
        for key, tensor in whole.model.state_dict().items():
            assert torch.equal(runner.model.state_dict()[key], tensor)


def test_begins_where_there_is_nothing_to_resume(tmp_path):
    """From `start_from`, as tools/train.py calls the `load_from` of a run with `--resume`."""
    start, model = (Classifier(HiViT(ARCH, img_size=64)) for _ in range(2))
    path = save(tmp_path / 'start.pth', start.state_dict(), 'state_dict')
    runner = make_runner(model, tmp_path, resume=True, cfg=dict(start_from=str(path)))
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.call_hook('before_run')
    runner.load_or_resume()
    assert runner.epoch == 0
    for key, tensor in start.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key


def test_damaged_file_to_resume_from(tmp_path):
    torch.save(dict(state_dict={'a': torch.zeros(9)}), path := tmp_path / 'a.pth')
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r'a\.pth: the file is truncated'):
        load_into(Classifier(HiViT(ARCH, img_size=64)), path, tmp_path, resume=True)


def test_a_released_file_is_not_resumed_from(tmp_path):
    path = save(tmp_path / 'a.pth', authors_state('b2_pixel_cls'))
    with pytest.raises(ValueError, match='cannot be resumed from a file of the authors'):
        load_into(Classifier(HiViT(ARCH, img_size=64)), path, tmp_path, resume=True)
