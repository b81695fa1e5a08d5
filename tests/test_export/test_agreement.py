"""Backbones with their pyramid as ONNX files and programs: all kinds of models, tiny ones."""

import pytest
import torch
from torch import nn

from itpn_mm.acceleration.settings import SETTINGS
from itpn_mm.export import Exported, ExportPart, export_model, graph
from itpn_mm.export.onnx_file import save_onnx
from itpn_mm.export.program import save_program, trace
from itpn_mm.necks import TransformerPyramidNeck

from ..test_acceleration.models import PATCH, FastiTPN, HiViT, accelerated, plain, randomise

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

LIMIT = 1e-4
BATCHES = (1, 3)  # traced is one of 2
SIZE = (40, 32)  # 10 x 8 patches: positions of 4 x 4 are resampled, windows are of two shapes


class Model(nn.Module):
    """A backbone and its pyramid with two levels more, as in a detector."""

    def __init__(self, backbone: HiViT) -> None:
        super().__init__()
        self.backbone = backbone
        channels, strides = backbone.out_channels, (PATCH // 4, PATCH // 2, PATCH)
        self.neck = randomise(
            TransformerPyramidNeck(
                channels, 8, in_strides=strides, out_strides=(1, 2, 4, 8, 16), depth=1
            )
        )


def make(kind: type[HiViT] = HiViT, setting: str | dict | None = None, **kwargs) -> Model:
    backbone = plain(kind, depth=2, **kwargs)
    if setting is not None:
        options = SETTINGS[setting] if isinstance(setting, str) else setting
        backbone = accelerated(backbone, window_size=4, schedule=dict(first=1), **options)
    return Model(backbone)


FAST = dict(kind=FastiTPN, cls_token=True)
RATIO = dict(ratio=0.3, window_attention=True, gathering=True)
CASES = {
    'hivit, relative positions alone': dict(use_abs_pos_emb=False, rel_pos_bias='block'),
    'fast': FAST,
    'windows': dict(setting='windows'),
    'migration, gathering, relative positions': dict(**FAST, setting='all'),
}
MORE_CASES = {
    'hivit': dict(),
    'hivit, shared table': dict(rel_pos_bias='shared'),
    'hivit, decomposed': dict(rel_pos_bias='decomposed'),
    'fast, table a block': dict(**FAST, rel_pos_bias='block'),
    'fast, decoupled': dict(**FAST, rel_pos_bias='decoupled'),
    'migration': dict(setting='migration-20'),
    'fast, gathering and relative positions': dict(**FAST, setting='gathering-rpe'),
    'migration, gathering, table a block': dict(setting=RATIO, rel_pos_bias='block'),
}


@pytest.mark.checklist('export-onnx')
@pytest.mark.checklist('export-torch')
@pytest.mark.parametrize(
    ('name', 'arguments'),
    [*CASES.items(), *(pytest.param(*c, marks=pytest.mark.slow) for c in MORE_CASES.items())],
)
def test_files_agree_with_the_model(name, arguments, tmp_path, record_figure):
    part = ExportPart(make(**arguments))
    program = trace(part, part.example(SIZE))
    save_onnx(program, tmp_path / 'model.onnx', part.output_names)
    save_program(program, tmp_path / 'model.pt2')
    for suffix, limit in (('.onnx', LIMIT), ('.pt2', 1e-5)):
        exported = Exported(tmp_path / f'model{suffix}', part, SIZE, {})
        differences = exported.compare(BATCHES)
        assert differences.keys() == set(BATCHES) and max(differences.values()) <= limit
        record_figure(f'{suffix}, {name}', max(differences.values()), limit=f'<= {limit}')


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """The file of a dense model."""
    return export_model(make(), tmp_path_factory.mktemp('dense') / 'model.onnx', SIZE)


def test_what_the_file_says_of_itself(exported):
    model = onnx.load(exported.path)
    assert [opset.version for opset in model.opset_import] == [17]

    def describe(values) -> dict[str, list[str | int]]:
        return {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in values
        }

    assert describe(model.graph.input) == {'images': ['batch', 3, *SIZE]}
    shapes = {f'p{s}': (8, 40 // s, 32 // s) for s in (1, 2, 4, 8, 16)}
    assert exported.shapes == shapes
    assert describe(model.graph.output) == {k: ['batch', *shape] for k, shape in shapes.items()}
    kinds = {node.op_type for node in model.graph.node}
    assert 'Shape' not in kinds and 'Resize' not in kinds  # all sizes and positions are known
    names = {tensor.name for tensor in model.graph.initializer}
    assert 'model.0.stages.2.1.norm1.weight' in names  # a weight can be found again


def test_a_wrong_file_is_seen(exported):
    """The comparison would not pass if a file held other weights."""
    with torch.no_grad():
        next(exported.part.model[0].stages[2].parameters()).add_(0.1)
    try:
        assert max(exported.compare().values()) > LIMIT
    finally:
        with torch.no_grad():
            next(exported.part.model[0].stages[2].parameters()).sub_(0.1)


@pytest.mark.checklist('export-onnx')
@pytest.mark.parametrize(
    'arguments',
    [
        CASES['hivit, relative positions alone'],
        pytest.param(MORE_CASES['fast, table a block'], marks=pytest.mark.slow),
        pytest.param(MORE_CASES['fast, decoupled'], marks=pytest.mark.slow),
    ],
)
def test_large_constants_are_made_at_run_time(arguments, tmp_path, monkeypatch):
    """A bias of each pair of tokens is not stored, but looked up: as with large images."""
    part = ExportPart(make(**arguments))
    program, sizes = trace(part, part.example(SIZE)), []
    for most in (graph.MAX_MADE_BYTES, 0):
        monkeypatch.setattr(graph, 'MAX_MADE_BYTES', most)
        exported = Exported(tmp_path / f'{most}.onnx', part, SIZE, {})
        save_onnx(program, exported.path, part.output_names)
        assert max(exported.compare(BATCHES).values()) <= LIMIT
        sizes.append(exported.path.stat().st_size)
    assert sizes[1] < sizes[0]
