"""The dependencies between the parts of itpn_mm, read off its imports, and the core on its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from itpn_mm import hosts, optional
from itpn_mm.hosts import PARTS
from itpn_mm.registry import MODELS

pytestmark = pytest.mark.checklist('environments')

PACKAGE = Path(__file__).resolve().parents[1] / 'itpn_mm'
# part: (parts of ours it may import, packages of others it may import)
ARROWS = {
    '__init__': ({'version'}, set()),
    '__main__': ({'doctor'}, set()),
    'version': (set(), set()),
    'hosts': (set(), set()),
    'registry': (set(), {'mmengine'}),
    'optional': ({'hosts', 'registry'}, {'mmengine'}),
    'doctor': ({'hosts', 'version'}, {'torch', 'mmcv'}),  # inside functions only
    'launch': ({'engine', 'hosts'}, {'torch', 'mmengine'}),
    'layers': (set(), {'torch', 'scipy'}),  # SciPy inside a function only
    'checkpoint': ({'layers'}, {'torch', 'mmengine', 'safetensors'}),
    'backbones': ({'layers', 'checkpoint', 'registry'}, {'torch', 'mmengine'}),
    'necks': ({'layers', 'checkpoint', 'registry'}, {'torch', 'mmengine'}),
    'acceleration': ({'layers', 'backbones', 'registry'}, {'torch', 'mmengine'}),
    # NumPy for its generator, which is seeded.
    'engine': ({'layers', 'checkpoint', 'registry'}, {'torch', 'mmengine', 'numpy'}),
    'recipes': ({'acceleration', 'backbones'}, set()),
    # The ONNX packages inside functions only.
    'export': ({'backbones', 'necks', 'version'}, {'torch', 'onnx', 'onnxruntime'}),
    'maskdino': ({'layers'}, {'torch', 'mmengine', 'mmcv', 'mmdet', 'scipy'}),
    'detection': ({'registry', 'maskdino'}, {'torch', 'mmengine', 'mmdet'}),
    'segmentation': ({'registry', 'maskdino'}, {'torch', 'mmseg'}),
    'pretraining': (
        {'layers', 'checkpoint', 'backbones', 'necks', 'engine', 'registry'},
        {'torch', 'mmengine', 'mmpretrain', 'safetensors'},
    ),
}
# In front of a script: the other OpenMMLab packages cannot be imported, in two ways.
BLOCK = """
import sys
for name in ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mmrotate'):
    sys.modules[name] = None
"""
BLOCK_BY_HOOK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mmrotate'):
            raise ImportError(name)
sys.meta_path.insert(0, Blocker())
"""


def find_imports(path: Path, package: Path = PACKAGE) -> set[tuple[str, bool]]:
    """Return (part or package, whether it is ours) for every import in the file `path`."""
    found = set()
    folder = path.relative_to(package).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding='utf8'))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = folder[: len(folder) + 1 - node.level] if node.level else ()
            base = ['itpn_mm', *up] if node.level else []
            base += node.module.split('.') if node.module else []
            # `from . import x` names a module only at the very end.
            names = (
                ['.'.join([*base, alias.name]) for alias in node.names]
                if base == ['itpn_mm']
                else ['.'.join(base)]
            )
        else:
            continue
        for name in names:
            first, *rest = name.split('.')
            if first == 'itpn_mm' and rest:
                found.add((rest[0], True))
            elif first != 'itpn_mm' and first not in sys.stdlib_module_names:
                found.add((first, False))
    return found


def find_violations(path: Path, package: Path = PACKAGE) -> list[str]:
    """Return what the file `path` imports against `ARROWS`."""
    part = path.relative_to(package).with_suffix('').parts[0]
    ours, others = ARROWS[part]
    return [
        f'{path.relative_to(package)} imports {name}'
        for name, is_ours in sorted(find_imports(path, package))
        if name not in ((ours | {part}) if is_ours else others)
    ]


FILES = sorted(PACKAGE.rglob('*.py'))
assert len(FILES) > 20


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path):
    assert find_violations(path) == []


@pytest.mark.parametrize(
    ('part', 'source', 'wrong'),
    [
        ('layers', 'from itpn_mm.backbones import HiViT', 'backbones'),
        ('layers', 'from ..registry import MODELS', 'registry'),
        ('layers', 'from .. import registry', 'registry'),
        ('necks', 'def f():\n    from mmcv.cnn import ConvModule', 'mmcv'),
        ('engine', 'import torch, mmdet.models', 'mmdet'),
        ('backbones', 'from ..pretraining.itpn import iTPN', 'pretraining'),
    ],
)
def test_a_wrong_import_is_seen(tmp_path, part, source, wrong):
    path = tmp_path / part / 'module.py'
    path.parent.mkdir()
    path.write_text(f'from .sibling import x\nfrom collections import abc\n{source}\n')
    assert find_violations(path, tmp_path) == [f'{part}/module.py imports {wrong}']


def run(script: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)


@pytest.mark.parametrize('block', [BLOCK, BLOCK_BY_HOOK], ids=['absent', 'refused'])
def test_core_builds_and_runs_without_other_packages(block):
    script = (
        block
        + """
import torch
from mmengine.registry import MODELS
arch = dict(embed_dims=64, depths=(1, 1, 2), num_heads=2)
backbone = MODELS.build(dict(type='itpn_mm.HiViT', arch=arch, img_size=64))
neck = MODELS.build(dict(type='itpn_mm.TransformerPyramidNeck', in_channels=(16, 32, 64),
                         out_channels=32, out_strides=(4, 8, 16)))
print([tuple(x.shape) for x in neck(backbone(torch.rand(1, 3, 64, 96)))])
"""
    )
    result = run(script)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == '[(1, 32, 16, 24), (1, 32, 8, 12), (1, 32, 4, 6)]'


def test_stub_names_the_missing_package():
    script = (
        BLOCK
        + """
from mmengine.registry import MODELS
try:
    MODELS.build(dict(type='itpn_mm.MFMHead', anything=1))
except ImportError as error:
    print(error)
"""
    )
    message = run(script).stdout
    for word in ('itpn_mm.MFMHead', 'pre-training', 'onedl-mmpretrain', '`mmpretrain`', 'doctor'):
        assert word in message


def test_stub_of_a_part_to_come(monkeypatch):
    monkeypatch.setattr(hosts, 'is_installed', lambda name: name == 'mmcv')
    part = hosts.Part('trials', 'itpn_mm.trials', ('mmcv', 'mmdet'), ('Trial',))
    optional.load_parts((part, hosts.Part('configs only', None, ('mmdet',))))
    try:
        with pytest.raises(ImportError, match=r'`itpn_mm.Trial` belongs to trials and needs mmdet'):
            MODELS.build(dict(type='itpn_mm.Trial', width=3))
    finally:
        del MODELS.module_dict['Trial']


@pytest.mark.parametrize('part', [p for p in PARTS if p.module], ids=lambda p: p.name)
def test_optional_part_registers_what_it_promises(part):
    """A component missing from its row would have no stub; one too many would never be built."""
    if part.missing_hosts():
        pytest.skip(f'{part.hosts} not installed')
    MODELS.import_from_location()
    registered = {
        name for name, cls in MODELS.module_dict.items() if cls.__module__.startswith(part.module)
    }
    assert registered == set(part.components)
