"""The lines of docs/export.md run."""

import re
import subprocess
import sys

import pytest
from mmengine.registry import DefaultScope

from itpn_mm.registry import MODELS

from ..test_tools import CONFIG
from ..tiny_configs import ROOT, draw_picture

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('mmpretrain')


@pytest.mark.checklist('export-onnx')
def test_lines_of_the_document(tmp_path, monkeypatch, capsys):
    """The first block writes what the second one runs, in a process without torch."""
    text = (ROOT / 'docs/export.md').read_text()
    write, run = re.findall('^```python\n(.*?)^```', text, flags=re.MULTILINE | re.DOTALL)
    scope = {}
    exec(CONFIG.replace('num_classes=2', 'num_classes=7'), scope)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(scope['model'])
    monkeypatch.chdir(tmp_path)
    exec(write.replace('(224, 224)', '(32, 48)'), dict(model=model))
    assert "{'logits': (7,)}" in capsys.readouterr().out

    draw_picture(70, 50, seed=0).save('photograph.jpg')
    block = "import sys; sys.modules['torch'] = None\n"
    result = subprocess.run([sys.executable, '-c', block + run], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    best = [int(n) for n in result.stdout.strip('[]\n').split()]
    assert len(best) == 5 and set(best) <= set(range(7))
