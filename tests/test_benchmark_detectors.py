"""Whole detectors in the benchmark: what is built, and one run of the tool."""

import pytest
import torch

pytest.importorskip('mmdet')

from benchmarks.detectors import PEER, Detector, build_detector, compare, list_detectors

from .test_benchmark import load_tool, quick, run_tool  # noqa: F401


def test_list_has_the_peer_for_each_detector():
    labels = [one.label for one in list_detectors(['dino'], ['hivit-base'], ['dense', 'all'])]
    assert labels == ['dino swin-base', 'dino hivit-base dense', 'dino hivit-base all']


@pytest.mark.parametrize('heads', ['mask-rcnn', 'dino'])
def test_only_backbone_and_neck_differ(heads):
    """The same stock heads on both."""
    ours, peer = (
        {
            key: value.shape
            for key, value in build_detector(Detector(heads, *rest)).state_dict().items()
            if not key.startswith(('backbone.', 'neck.'))
        }
        for rest in (('fastitpn-test', 'dense'), (PEER, 'peer'))
    )
    assert ours == peer and len(ours) > 10


def test_relative_speed():
    rows = [
        dict(detector='dino', model=model, variant=variant, median_s=seconds)
        for model, variant, seconds in (
            (PEER, 'peer', 6.0),
            ('hivit-base', 'dense', 4.0),
            ('hivit-base', 'all', 2.0),
        )
    ]
    compared = compare(rows)
    assert [row['to_peer'] for row in compared] == [1, 1.5, 3]
    assert [row['to_dense'] for row in compared] == [1, 1, 2]


@pytest.mark.slow
def test_tool(tmp_path, quick):  # noqa: F811
    torch.set_num_threads(1)
    arguments = ['--detector', 'mask-rcnn', '--models', 'fastitpn-test', '--settings', 'windows']
    content, table = run_tool(tmp_path, *arguments, '--sizes', '64x128')
    rows = content['rows']
    assert [row['variant'] for row in rows] == ['peer', 'dense', 'windows']
    for row in rows:
        assert row['detections'] > 50  # of at most 100, in so small an image
        shares = [row[f'{part}_share'] for part in ('backbone', 'neck', 'head')]
        assert all(0 < share < 1 for share in shares) and sum(shares) == pytest.approx(1)
    assert 'x Swin-B' in table and 'x plain' not in table


@pytest.mark.parametrize(
    'arguments', [['--peers'], ['--no-pyramid'], ['--compile'], ['--dtype', 'bf16']]
)
def test_what_the_tool_refuses(arguments, capsys):
    with pytest.raises(SystemExit):
        load_tool().parse_args(['--detector', 'dino', *arguments])
    assert '--detector takes' in capsys.readouterr().err
