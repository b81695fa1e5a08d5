"""The benchmark of mask heads: what is compared, and one run of the tool."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')

from benchmarks import mask_heads
from benchmarks.mask_heads import HEADS, PARTS, PEER, Case, Step, compare

ROOT = Path(__file__).resolve().parents[1]
CASE = Case((64, 64), batch=1, queries=20, objects=3)


def test_both_heads_have_the_same_encoder():
    """Levels, layers, points and widths; MaskDINO has no map for queries of Mask2Former."""
    ours, peer = (Step(head, CASE, small=True).head for head in ('maskdino', PEER))
    assert ours.predictor.num_queries == peer.num_queries == 20
    assert ours.criterion.num_points == peer.num_points == 12544
    layers = [
        sum(p.numel() for p in layers.parameters())
        for layers in (ours.pixel_decoder.layers, peer.pixel_decoder.encoder.layers)
    ]
    assert layers[0] == layers[1] > 0


def test_relative():
    rows = [
        dict(head=head, median_s=seconds, peak_bytes=peak)
        for head, seconds, peak in ((PEER, 2.0, 100), ('maskdino', 3.0, 50))
    ]
    compared = compare(rows)
    assert [row['time_to_peer'] for row in compared] == [1, 1.5]
    assert [row['memory_to_peer'] for row in compared] == [1, 0.5]


@pytest.mark.slow
def test_tool(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    specs = []
    monkeypatch.setattr(
        mask_heads, 'run_fresh', lambda given, module: specs.append(*given) or '1048576'
    )
    path = ROOT / 'tools' / 'benchmark_mask_heads.py'
    spec = importlib.util.spec_from_file_location('benchmark_mask_heads', path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    arguments = '--small --sizes 64x64 --batch 1 --queries 20 --objects 3 --repeats 1'
    tool.main([*arguments.split(), '--out', str(tmp_path)])
    stem = tmp_path / 'mask-heads_train_cpu-fp32'
    rows = json.loads(stem.with_suffix('.json').read_text())['rows']
    assert [row['head'] for row in rows] == list(HEADS)
    assert len(specs) == len(HEADS)
    for row in rows:
        assert set(row['parts']) == set(PARTS)
        assert all(seconds > 0 for seconds in row['parts'].values())
        assert sum(row['parts'].values()) == pytest.approx(row['median_s'], rel=1e-6)
    assert stem.with_suffix('.png').read_bytes().startswith(b'\x89PNG')
    assert 'maskdino-no-denoising' in stem.with_suffix('.md').read_text()


def test_memory_of_a_process_of_its_own(capsys):
    spec = dict(head='maskdino', small=True)
    spec['case'] = dict(size=(64, 64), batch=1, queries=20, objects=3)
    mask_heads.main(json.dumps(spec))
    assert int(capsys.readouterr().out.split()[-1]) > 0
