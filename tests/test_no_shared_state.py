"""Models share nothing with each other or with their configs, can be copied, and keep their names.

`python -m tests.test_no_shared_state` writes the names and shapes of the parameters anew, which
only a change that old files survive (by a renaming at loading) justifies.
"""

import copy
import inspect
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from itpn_mm.acceleration import SETTINGS
from itpn_mm.registry import HOOKS, MODELS

pytestmark = pytest.mark.checklist('no-shared-state')

NAMES = Path(__file__).parent / 'data' / 'names.json'
ARCH = dict(embed_dims=16, depths=(1, 1, 4), num_heads=2)
FAST = dict(type='itpn_mm.FastiTPN', arch=ARCH, img_size=64)


def accelerated(setting: str) -> dict:
    return dict(type='itpn_mm.TokenMigration', backbone=FAST, window_size=2, **SETTINGS[setting])


def pyramid(**options: object) -> dict:
    return dict(
        type='itpn_mm.TransformerPyramidNeck', in_channels=[4, 8, 16], out_channels=12, **options
    )


def pretraining() -> dict:
    from tests.test_pretraining.models import itpn_cfg

    return itpn_cfg()


def maskdino() -> dict:
    from tests.test_maskdino.heads import head_options

    return dict(type='itpn_mm.MaskDINOHead', num_things_classes=3, **head_options())


CONFIGS = {
    'hivit': lambda: dict(type='itpn_mm.HiViT', arch=ARCH, img_size=64, rel_pos_bias='block'),
    'hivit of detection': lambda: dict(
        type='itpn_mm.HiViT', arch=ARCH, rel_pos_bias='decomposed', layer_scale_init_value=0.1
    ),
    'fastitpn': lambda: dict(**FAST, cls_token=True, rel_pos_bias='decoupled'),
    'fastitpn, shared': lambda: dict(**FAST, rel_pos_bias='shared'),
    **{f'fastitpn, {name}': lambda name=name: accelerated(name) for name in SETTINGS},
    'pyramid': lambda: pyramid(out_strides=[4, 8, 16, 32]),
    'joined pyramid': lambda: pyramid(out_strides=[4, 8, 16], concat_inputs=True),
    'pooling': lambda: dict(type='itpn_mm.GlobalAveragePoolNorm', in_channels=16),
    'itpn': pretraining,
    'maskdino': maskdino,
}
HOSTS = dict(itpn='mmpretrain', maskdino='mmdet')


def make(name: str) -> nn.Module:
    if name in HOSTS:
        pytest.importorskip(HOSTS[name])
    torch.manual_seed(0)
    return MODELS.build(CONFIGS[name]())


def mutables(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Lists, dicts and sets that our modules hold as attributes of their own, not torch's."""
    for path, module in model.named_modules():
        ours = type(module).__module__.startswith('itpn_mm')
        for name, value in vars(module).items() if ours else ():
            if isinstance(value, (list, dict, set)) and name not in vars(nn.Module()):
                yield f'{path}.{name}', value


@pytest.mark.parametrize('name', CONFIGS)
def test_two_of_one_config_share_nothing(name):
    if name in HOSTS:
        pytest.importorskip(HOSTS[name])
    cfg = CONFIGS[name]()
    before = copy.deepcopy(cfg)
    first, second = MODELS.build(cfg), MODELS.build(cfg)
    assert cfg == before
    shared = {t.data_ptr() for t in first.state_dict().values()} & {
        t.data_ptr() for t in second.state_dict().values()
    }
    assert not shared
    others = dict(mutables(second))
    same = [path for path, value in mutables(first) if value is others[path]]
    assert not same


@pytest.mark.parametrize('name', CONFIGS)
def test_copies_are_equal_and_apart(name):
    model = make(name)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        found = twin.state_dict()
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], value) for key, value in state.items())
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1)
        assert all(torch.equal(t, state[key]) for key, t in model.state_dict().items())


def describe(name: str) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in make(name).state_dict().items()}


@pytest.mark.parametrize('name', CONFIGS)
def test_names_and_shapes_are_those_of_older_files(name):
    assert describe(name) == json.loads(NAMES.read_text())[name]


def test_no_model_of_older_files_is_left_out(record_figure):
    tables = json.loads(NAMES.read_text())
    assert tables.keys() == CONFIGS.keys()
    record_figure('names of parameters compared', sum(map(len, tables.values())))


def test_no_default_of_an_argument_can_be_changed():
    """A list or dict as a default would be one for all calls."""
    MODELS.import_from_location()
    classes = [*MODELS.module_dict.values(), *HOOKS.module_dict.values()]
    ours = [c for c in classes if inspect.isclass(c) and c.__module__.startswith('itpn_mm')]
    assert len(ours) >= 20
    found = [
        f'{c.__name__}({name})'
        for c in ours
        for name, parameter in inspect.signature(c.__init__).parameters.items()
        if isinstance(parameter.default, (list, dict, set))
    ]
    assert not found


if __name__ == '__main__':
    tables = {name: describe(name) for name in CONFIGS}
    rows = (f' {json.dumps(name)}: {json.dumps(table)}' for name, table in tables.items())
    NAMES.write_text('{\n' + ',\n'.join(rows) + '\n}\n')
