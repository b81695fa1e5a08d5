"""What docs/migrate_*.md say is true: arguments exist, parameters are renamed as they say."""

import inspect
import json
import re
from itertools import zip_longest
from pathlib import Path

import pytest
import torch

from itpn_mm.backbones import FastiTPN, HiViT
from itpn_mm.checkpoint import remap
from itpn_mm.necks import GlobalAveragePoolNorm, TransformerPyramidNeck

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / 'tests' / 'data'
AUTHORS = (ROOT / 'docs' / 'migrate_authors.md').read_text()
MMPRETRAIN = (ROOT / 'docs' / 'migrate_mmpretrain.md').read_text()
Row = list[list[str]]  # of a table: what stands in backticks, by column


def table(text: str, section: str, title: str) -> list[Row]:
    """The rows of the table below `## section` whose first column is called `title`."""
    [part] = re.findall(rf'^## {section}\n(.*?)(?=^## |\Z)', text, re.MULTILINE | re.DOTALL)
    [body] = re.findall(
        rf'^\| {re.escape(title)} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)', part, re.MULTILINE
    )
    return [
        [re.findall(r'`([^`]+)`', cell) for cell in line.strip('| \n').split(' | ')]
        for line in body.splitlines()
    ]


def parameters(*owners: type) -> set[str]:
    return {name for owner in owners for name in inspect.signature(owner).parameters}


def of_pretraining() -> dict[str, set[str]]:
    """Arguments of the parts of a pre-training config, and those of a model."""
    pytest.importorskip('mmpretrain')
    from itpn_mm import pretraining as parts

    return dict(
        backbone=parameters(HiViT, FastiTPN),
        neck=parameters(TransformerPyramidNeck),
        decoder=parameters(parts.MIMDecoder, parts.LevelSum),
        head=parameters(parts.PixelReconstructionHead, parts.CLIPDistillHead),
        aux_head=parameters(parts.AuxiliaryHead, parts.CLIPDistillHead),
        masking=parameters(parts.RandomMasking),
        teacher=parameters(parts.CLIPTeacher),
    )


def check_arguments(codes: list[str], known: dict[str, set[str]]) -> int:
    """Look up `part.argument` and `part.argument=value`; how many there were."""
    matches = map(re.compile(r'(\w+)\.(\w+)(?:=(.+))?').fullmatch, codes)
    found = [match.groups() for match in matches if match and match[1] in known]
    for part, name, value in found:
        assert name in known[part], f'{part}.{name}'
        if name == 'rel_pos_bias':
            assert value.strip("'") in {*HiViT.rel_pos_kinds, *FastiTPN.rel_pos_kinds}
    return len(found)


def test_arguments_of_the_authors():
    """Theirs are those that the fixtures were made with."""
    fixtures = json.loads((DATA / 'golden' / 'index.json').read_text())
    theirs = {key for f in fixtures.values() for key in f.get('kwargs', {})}
    classes = {f['cls'] for f in fixtures.values() if 'cls' in f} | {'det', 'seg'}
    known = of_pretraining()
    rows = table(AUTHORS, 'Arguments', 'theirs')
    named = [code for left, _ in rows for code in left if code not in classes]
    assert set(named) <= theirs | {'use_abs_pos_emb'}
    left_out = {'image_resolution', 'patch', 'width', 'layers', 'heads', 'output_dim'}  # of CLIP
    assert theirs - left_out <= set(named)
    assert sum(check_arguments(right, known) for _, right in rows) >= 25
    assert 'gap_before_norm' in parameters(GlobalAveragePoolNorm)


def test_sizes_of_the_authors():
    """Names of factories are those of the tables of keys where these have them."""
    rows = table(AUTHORS, 'Classes and sizes', 'factory of theirs')
    named = {name: (kind, arch) for names, [kind], [arch] in rows for name in names}
    keys = [path.stem for path in (DATA / 'keys').glob('*.json')]
    for name, (kind, arch) in named.items():
        assert arch in globals()[kind].arch_zoo and f'_{arch}' in name
        assert ('fast' in name) == (kind == 'FastiTPN')
        if name.startswith('clip_tpn'):
            assert any(key.startswith(name) for key in keys)
        # digits tell the depths of stages: 3324 are 3, 3 and 24
        if digits := re.search(r'_(\d)(\d)(\d\d)_', name):
            assert tuple(map(int, digits.groups())) == globals()[kind].arch_zoo[arch]['depths']


def test_settings_of_the_authors():
    known = of_pretraining()
    rows = table(AUTHORS, 'Settings of a training', 'theirs')
    assert sum(check_arguments(right, known) for _, right in rows) >= 9
    settings = [code for _, right in rows for code in right]
    configs = '\n'.join(path.read_text() for path in (ROOT / 'configs' / '_base_').rglob('*.py'))
    for name in ('second_size', 'num_masking_patches', 'BEiTMaskGenerator'):
        assert name in settings and name in configs


@pytest.fixture(scope='module')
def renamed() -> dict[bool, dict[str, set[str]]]:
    """Whether it is Fast-iTPN -> name of the authors -> names here, and '' for one left out."""
    found: dict[bool, dict[str, set[str]]] = {False: {}, True: {}}
    for path in sorted((DATA / 'keys').glob('*.json')):
        shapes = json.loads(path.read_text())
        state = {name: torch.empty(shape, device='meta') for name, shape in shapes.items()}
        _, report = remap(state)
        names = found[path.stem.startswith('fast')]
        for old, new in [*report.renamed.items(), *((name, '') for name in report.dropped)]:
            names.setdefault(old, set()).add(new)
    return found


@pytest.mark.parametrize('title', ['iTPN of theirs', 'Fast-iTPN of theirs'])
def test_parameters_of_the_authors(title, renamed):
    names = renamed[title.startswith('Fast')]
    rows = table(AUTHORS, 'Parameter names', title)
    assert len(rows) >= 7
    for left, right in rows:
        right = right or ['']
        for old, new in zip_longest(left, right):  # several names of one side may stand for one
            old, new = (
                re.escape(n).replace('<i>', r'\d+') for n in (old or left[-1], new or right[-1])
            )
            hits = [hit for name in names if re.fullmatch(old, name) for hit in names[name]]
            assert any(re.fullmatch(new, hit) for hit in hits), (old, new)


def test_arguments_of_mmpretrain():
    """All that its backbone takes is named, and what is named here exists."""
    theirs = pytest.importorskip('mmpretrain.models').HiViT
    rows = table(MMPRETRAIN, 'Arguments of the backbone', '`HiViT` of mmpretrain')
    named = [re.match(r'\w+', code)[0] for left, _ in rows for code in left]
    assert sorted(named) == sorted(parameters(theirs))
    ours = [re.match(r'\w+', code)[0] for _, right in rows for code in right if code != 'None']
    assert set(ours) <= parameters(HiViT) and len(ours) >= 7
    [same] = [left for left, right in rows if right == ['frozen_stages']]
    assert set(same) <= parameters(HiViT)


def test_pretraining_of_mmpretrain():
    models = pytest.importorskip('mmpretrain.models')
    theirs = dict(
        backbone=parameters(models.selfsup.iTPNHiViT),
        neck=parameters(models.iTPNPretrainDecoder),
        head=parameters(models.MAEPretrainHead, models.iTPNClipHead),
        target_generator=parameters(models.CLIPGenerator),
    )
    rows = table(MMPRETRAIN, 'Arguments of the pre-training', 'mmpretrain')
    assert sum(check_arguments(left, theirs) for left, _ in rows) >= 14
    assert sum(check_arguments(right, of_pretraining()) for _, right in rows) >= 13
    parts = [code for left, _ in table(MMPRETRAIN, 'Parts', 'mmpretrain') for code in left]
    assert len(parts) >= 7
    assert all(hasattr(models, part) or hasattr(models.selfsup, part) for part in parts)


def test_what_differs_from_mmpretrain():
    kind = pytest.importorskip('mmpretrain.models').HiViT
    assert kind.arch_zoo['base']['depths'] == [2, 2, 24]
    assert HiViT.arch_zoo['base']['depths'] == (3, 3, 24)
    theirs = kind(arch=dict(embed_dims=64, depths=[2, 2, 3], num_heads=2))
    blocks = [child for child in theirs.blocks if not hasattr(child, 'reduction')]
    assert len(blocks) == 4 + 4 + 3
    depth, count = theirs.get_layer_depth('blocks.0.norm2.weight')
    assert depth == count - 1  # no rate falls with depth


@pytest.mark.parametrize('pretrained', [False, True])
def test_checkpoint_of_mmpretrain(pretrained, tmp_path, monkeypatch):
    """The lines of the document give a file that loads, and the same features."""
    models = pytest.importorskip('mmpretrain.models')
    from mmpretrain.models.selfsup import iTPNHiViT

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    arch = dict(embed_dims=64, depths=[1, 2, 10], num_heads=2)
    kind, eps = (iTPNHiViT, 1e-6) if pretrained else (models.HiViT, 1e-5)
    theirs = kind(arch=arch, img_size=64, out_indices=[9], rpe=not pretrained)
    theirs.eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    state = {f'backbone.{name}': tensor for name, tensor in theirs.state_dict().items()}
    if pretrained:
        neck = models.iTPNPretrainDecoder(
            num_patches=16, embed_dim=64, fpn_dim=32, decoder_embed_dim=64, decoder_depth=1,
        )  # fmt: skip
        state |= {f'neck.{name}': tensor for name, tensor in neck.state_dict().items()}
    else:
        state['head.fc.weight'] = torch.zeros(2, 64)
    torch.save({'state_dict': state}, 'mmpretrain.pth')
    [script] = re.findall(r'^```python\n(.*?)^```', MMPRETRAIN, re.MULTILINE | re.DOTALL)
    exec(compile(script, 'docs/migrate_mmpretrain.md', 'exec'), {})

    init_cfg = dict(type='Pretrained', checkpoint='authors.pth')
    arch = dict(embed_dims=64, depths=(2, 4, 10), num_heads=2)
    rel_pos_bias = None if pretrained else 'block'
    ours = HiViT(arch, img_size=64, norm_eps=eps, rel_pos_bias=rel_pos_bias, init_cfg=init_cfg)
    ours.init_weights()
    ours.eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        [expected] = theirs(images, mask=None) if pretrained else theirs(images)
        torch.testing.assert_close(ours(images)[-1], expected, atol=1e-4, rtol=1e-4)
    if pretrained:
        pyramid = TransformerPyramidNeck((16, 32, 64), 32, out_strides=(4, 8, 16), depth=2)
        pyramid.init_cfg = init_cfg
        pyramid.init_weights()
        weight = neck.split_16to8.reduction.weight
        torch.testing.assert_close(pyramid.splits['p8'].expand.weight, weight, atol=0, rtol=0)
