"""Nothing that comes from elsewhere is run: a scan of the source, and files that try."""

import ast
import json
import os
import pickle
import re
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader
from torch import nn

from itpn_mm.checkpoint import load_pretrained, read_checkpoint
from itpn_mm.engine import load_trained
from itpn_mm.engine.runner_load import SCHEME
from itpn_mm.registry import MODELS

pytestmark = pytest.mark.checklist('security')
ROOT = Path(__file__).resolve().parents[1]
SCANNED = ('itpn_mm', 'tools', 'benchmarks', 'configs')
FILES = sorted(path for name in SCANNED for path in (ROOT / name).rglob('*.py'))
FILES.append(ROOT / 'setup.py')

# What runs code, or a shell, or trusts what it should not; by the dotted name that is called.
REFUSED = {
    *('eval', 'exec', 'compile', '__import__', 'input'),
    *('os.system', 'os.popen', 'os.execv', 'subprocess.getoutput', 'subprocess.getstatusoutput'),
    *('pickle.load', 'pickle.loads', 'pickle.Unpickler', 'marshal.loads', 'shelve.open'),
    *('dill.load', 'joblib.load', 'torch.jit.load', 'torch.package.PackageImporter'),
    *('tempfile.mktemp', 'yaml.load', 'yaml.unsafe_load', 'yaml.full_load', 'mmengine.load'),
    *(
        'np.load',
        'numpy.load',
        'pandas.read_pickle',
        'torch.hub.load',
        'ssl._create_unverified_context',
    ),
}
NETWORK = {'urllib', 'requests', 'http', 'httpx', 'aiohttp', 'ftplib', 'socket', 'wget', 'gdown'}
ARCHIVES = {'extractall', 'extract', 'unpack_archive'}  # which may write outside the folder
TRUSTED_LOAD = 'itpn_mm/checkpoint/io.py'  # where `trust=` is, which says so in the log


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or an attribute."""
    if isinstance(node, ast.Attribute):
        return f'{dotted(node.value)}.{node.attr}'
    return node.id if isinstance(node, ast.Name) else '?'


def find_dangers(source: str, name: str) -> Iterator[str]:
    """Each dangerous call or import of a file, by line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ''] if not node.level else []
            for module in modules:
                if module.split('.')[0] in NETWORK:
                    yield f'{name}:{node.lineno} imports {module}'
        if not isinstance(node, ast.Call):
            continue
        called, options = dotted(node.func), {k.arg: k.value for k in node.keywords}
        if called in REFUSED:
            yield f'{name}:{node.lineno} calls {called}'
        if called.split('.')[-1] in ARCHIVES:
            yield f'{name}:{node.lineno} extracts an archive by {called}'
        if called == 'torch.load':
            only = options.get('weights_only')
            safe = isinstance(only, ast.Constant) and only.value is True
            behind_trust = name == TRUSTED_LOAD and ast.unparse(only or node) == 'not trust'
            if not safe and not behind_trust:
                yield f'{name}:{node.lineno} loads with more than weights'
        for key, wrong in (('shell', True), ('verify', False), ('trust_remote_code', True)):
            value = options.get(key)
            if isinstance(value, ast.Constant) and value.value is wrong:
                yield f'{name}:{node.lineno} passes {key}={wrong}'


def test_source_has_no_dangers(record_figure):
    found = [
        danger
        for path in FILES
        for danger in find_dangers(path.read_text(), str(path.relative_to(ROOT)))
    ]
    assert len(FILES) > 200
    assert found == []
    record_figure('source files scanned', len(FILES))
    record_figure('dangerous calls in them', len(found), '0')


@pytest.mark.parametrize(
    'source',
    [
        'import pickle\npickle.load(f)',
        'import torch\ntorch.load(p)',
        'import torch\ntorch.load(p, weights_only=False)',
        'import torch\ntorch.load(p, weights_only=not trust)',
        'import subprocess\nsubprocess.run(c, shell=True)',
        'import os\nos.system(c)',
        'eval(x)',
        'exec(x)',
        'import yaml\nyaml.load(f)',
        'import tempfile\ntempfile.mktemp()',
        'from urllib.request import urlopen',
        'def f():\n    import requests',
        'f(verify=False)',
        'archive.extractall(folder)',
        'AutoModel.from_pretrained(x, trust_remote_code=True)',
    ],
)
def test_a_danger_is_seen(source):
    assert len(list(find_dangers(source, 'a.py'))) == 1


def test_shell_scripts_fetch_nothing_but_packages():
    """No downloads that are piped into a shell, and no `eval`."""
    scripts = sorted((ROOT / 'tools').glob('*.sh'))
    assert len(scripts) > 5
    for path in scripts:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code = line.split(' #')[0]
            assert not re.search(r'^\s*(curl|wget|eval)\b|\|\s*(ba)?sh\b', code), f'{path}:{number}'


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        arch = dict(embed_dims=16, depths=(1, 1, 1), num_heads=2)
        self.backbone = MODELS.build(dict(type='itpn_mm.HiViT', arch=arch, img_size=32))


def convert_checkpoint(path: Path) -> None:
    """By the tool; its message becomes an error again."""
    sys.argv = ['convert_checkpoint.py', str(path), str(path.with_suffix('.safetensors'))]
    try:
        runpy.run_path(str(ROOT / 'tools' / 'convert_checkpoint.py'), run_name='__main__')
    except SystemExit as end:
        raise ValueError(end.code) from end


def resume(path: Path) -> None:
    from itpn_mm.checkpoint.resume import check_file

    check_file(path)


def read_clip(path: Path) -> None:
    pytest.importorskip('mmpretrain')
    from itpn_mm.pretraining.clip_weights import read_clip

    read_clip(path)


WAYS = {
    'init_cfg': lambda path: load_pretrained(Model().backbone, str(path)),
    'load_from': lambda path: CheckpointLoader.load_checkpoint(f'{SCHEME}{path}'),
    'predict': lambda path: load_trained(Model(), str(path)),
    'read': read_checkpoint,
    'resume': resume,
    'clip': read_clip,
    'convert': convert_checkpoint,
}


@pytest.mark.checklist('safe-loading')
@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('form', ['archive', 'legacy', 'bare', 'renamed'])
def test_malicious_file_does_not_run(tmp_path, monkeypatch, way, form):
    """However it is loaded and whatever it is called, it is refused with its name."""
    monkeypatch.setattr('sys.argv', list(sys.argv))
    trap = tmp_path / 'trap'
    path = tmp_path / ('a.safetensors' if form == 'renamed' else 'a.pth')
    content = dict(state_dict=Model().state_dict(), meta=Malicious(trap))
    if form == 'bare':
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != 'legacy')
    with pytest.raises(ValueError, match=re.escape(path.name)) as error:
        WAYS[way](path)
    assert not trap.exists()
    assert '\n' not in str(error.value)
    assert list(tmp_path.iterdir()) == [path]


def test_malicious_torchscript_does_not_run(tmp_path):
    """An archive whose attributes are a pickle that calls something."""
    from itpn_mm.pretraining.torchscript import is_torchscript, read_torchscript

    trap, path = tmp_path / 'trap', tmp_path / 'clip.pt'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('clip/data.pkl', pickle.dumps(Malicious(trap)))
        archive.writestr('clip/constants.pkl', pickle.dumps(()))
    assert is_torchscript(path)
    with pytest.raises(ValueError, match=r'clip\.pt: .*mkdir.* which is not read'):
        read_torchscript(path)
    assert not trap.exists()


def test_malicious_folder_of_transformers_does_not_run(tmp_path):
    pytest.importorskip('mmpretrain')
    pytest.importorskip('transformers')
    from itpn_mm.pretraining.feature_encoders import TransformersEncoder

    trap = tmp_path / 'trap'
    folder = tmp_path / 'encoder'
    folder.mkdir()
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config = dict(model_type='vit', architectures=['ViTModel'], image_size=32, **sizes)
    (folder / 'config.json').write_text(json.dumps(config))
    torch.save({'a': Malicious(trap)}, folder / 'pytorch_model.bin')
    with pytest.raises(ValueError, match='does not read this folder'):
        TransformersEncoder(folder, 32)
    assert not trap.exists()


def test_members_of_archives_are_read_not_written(tmp_path, monkeypatch):
    """Of the packages that the demo's pictures are in: a member's path leads nowhere."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    from demo_data.archives import ARCHIVES as PACKAGES
    from demo_data.archives import ArchiveReader

    assert all(re.fullmatch('[0-9a-f]{64}', archive.sha256) for archive in PACKAGES.values())
    path = tmp_path / 'package.whl'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('../escaped.txt', b'x')
    assert ArchiveReader({'package': path}).read('package', '../escaped.txt') == b'x'
    assert [member.name for member in tmp_path.iterdir()] == ['package.whl']
    assert not (tmp_path.parent / 'escaped.txt').exists()


def test_names_of_results_lead_nowhere_else(monkeypatch):
    """Of the pictures given to tools/predict.py, whatever their paths."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    from prediction.pictures import name_results

    files = [Path(name) for name in ('/etc/passwd', '../../up.png', 'a/b/../up.png')]
    names = name_results(files)
    assert names == ['passwd', 'up', 'up-2']


@pytest.mark.slow
def test_imports_do_not_reach_the_network():
    """Every socket is refused while the package is imported and a model is built."""
    script = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError('the network is asked')
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from mmengine.registry import MODELS
arch = dict(embed_dims=16, depths=(1, 1, 1), num_heads=2)
MODELS.build(dict(type='itpn_mm.HiViT', arch=arch, img_size=32))
print('built')
"""
    run = subprocess.run(
        [sys.executable, '-c', script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    assert run.stdout.strip().endswith('built'), run.stderr
