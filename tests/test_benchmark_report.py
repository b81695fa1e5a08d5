import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.plot import plot  # noqa: E402
from benchmarks.report import derived, markdown, report_name  # noqa: E402


def make_row(**more):
    row = dict(mode='inference', model='fastitpn-base', variant='windows', compiled=False)
    row.update(pyramid=True, size='800x1280', batch=4, dtype='amp', gflop=8.0, median_s=2.0)
    return row | dict(min_s=1.0, max_s=3.0, images_per_s=2.0, to_dense=1.8) | more


def test_derived_figures():
    machine = dict(gemm_gflops=dict(bf16=16), stated_peak_gflops=40)
    row = derived(make_row(), machine)
    assert (row['gflop_per_image'], row['gemm_share'], row['peak_share']) == (2, 0.25, 0.1)
    assert (row['figure_5'], round(row['table_7'], 2)) == (1.9, 1.64)
    assert 'figure_5' not in derived(make_row(variant='dense', gflop=None), machine)


def test_table_leaves_out_empty_columns():
    table = markdown([make_row()], {}, dict(gemm_gflops=dict(bf16=16)))
    assert '| median s | range | images/s | x dense | paper Fig. 5 |' in table
    assert '| 2 | 1..3 | 2 | 1.80 | 1.90 |' in table
    assert '| selection |' not in table


def test_plot_of_compiled_rows_and_of_peers(tmp_path):
    rows = [make_row(variant=v, compiled=c) for v in ('dense', 'windows') for c in (False, True)]
    plot(rows, tmp_path / 'relative.png')
    plot([*rows, make_row(variant='peer', model='Swin-B', to_dense=None)], tmp_path / 'peers.png')
    assert len(list(tmp_path.glob('*.png'))) == 2


def test_report_name():
    settings = dict(models=['fastitpn-tiny', 'fastitpn-base'], mode='inference', device='cuda')
    settings.update(settings=['dense'], dtypes=['fp32', 'bf16'], pyramid=True, peers=False)
    assert report_name(settings) == 'fastitpn_inference_cuda-fp32-bf16'
    settings.update(settings=['dense', 'all'], models=['hivit-base'], pyramid=False, peers=True)
    assert report_name(settings) == 'hivit-base-backbone-peers_acceleration_cuda-fp32-bf16'
