import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import inference, throughput  # noqa: E402
from benchmarks.measure import peak_memory_cpu  # noqa: E402
from benchmarks.models import build_model, plain, randomise, shipped  # noqa: E402
from benchmarks.report import derived, report_name  # noqa: E402

# GFLOP of a Fast-iTPN at 224 x 224 by the closed form, and parameters of the released classifier
FAST_ITPN = {
    'fastitpn-tiny': (10.68, 24_219_976),
    'fastitpn-small': (17.86, 39_902_920),
    'fastitpn-base': (38.10, 84_825_192),
    'fastitpn-large': (131.48, 312_017_320),
}
CHANNELS = {'hivit-test': (256,) * 5, 'fastitpn-test': (16, 32, 64)}


def load_tool():
    spec = importlib.util.spec_from_file_location('benchmark_tool', ROOT / 'tools/benchmark.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module', params=sorted(CHANNELS))
def models(request):
    name = request.param
    return CHANNELS[name], build_model('plain', name), build_model('ours', name)


@torch.no_grad()
@pytest.mark.parametrize('size', [(64, 64), (64, 96), (224, 224), (240, 80)])
def test_plain_equals_ours(models, size):
    channels, *variants = models
    img = torch.randn(2, 3, *size)
    outputs, ours = (model(img) for model in variants)
    assert [x.shape for x in outputs] == [
        (2, c, size[0] // s, size[1] // s) for c, s in zip(channels, (4, 8, 16, 32, 64))
    ]
    assert inference.relative_error(ours, outputs) < 5e-6


@torch.no_grad()
@pytest.mark.parametrize('name', sorted(CHANNELS))
def test_every_weight_of_the_comparison_matters(name):
    """A weight that could be wrong unseen would make the comparison of outputs worthless."""
    model = plain(name)
    randomise(model)
    img = torch.randn(1, 3, 96, 64)
    reference = model(img)
    for name, parameter in model.named_parameters():
        saved = parameter.clone()
        parameter.mul_(1.1)
        change = inference.relative_error(model(img), reference)
        parameter.copy_(saved)
        if name.endswith('qkv.bias'):
            continue  # the part that belongs to keys cancels in the softmax
        assert change > inference.TOLERANCE['fp32'], name


def test_plain_refuses_partial_patches(models):
    with pytest.raises(ValueError, match='multiples of 16: 70x64'):
        models[1](torch.zeros(1, 3, 70, 64))


@pytest.mark.parametrize('name', sorted(FAST_ITPN))
def test_arithmetic_and_parameters_of_fast_itpn(name):
    gflop, parameters = FAST_ITPN[name]
    assert round(inference.gflop_per_image(name, (224, 224)), 2) == gflop
    with torch.device('meta'):
        assert throughput.classifier_parameters(shipped(name)) == parameters


@pytest.mark.parametrize('name', ['hivit-small', 'fastitpn-small'])
@pytest.mark.parametrize('size', [(224, 224), (512, 800)])
def test_both_variants_compute_the_same_products(name, size):
    with torch.device('meta'):
        model = plain(name)
    assert inference.count_gflop(model, (1, 3, *size)) == inference.gflop_per_image(name, size)


def test_relative_error():
    a, b = torch.tensor([1.0, -2.0]), torch.tensor([1.0, -2.2])
    assert inference.relative_error([a, a], [a, b]) == pytest.approx(0.2 / 2.2)
    with pytest.raises(ValueError, match='must hold 2 maps, but got 1'):
        inference.relative_error([a], [a, b])


def test_count_gflop():
    linear = torch.nn.Linear(32, 8, bias=False, device='meta')
    assert inference.count_gflop(linear, (5, 32)) == pytest.approx(2 * 5 * 32 * 8 / 1e9)


def test_rounds():
    assert [inference.rounds(cost, (2.0, 6.0, 25.0), 3) for cost in (2.0, 6.0, 25.0)] == [12, 12, 3]


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_peak_memory_counts_what_is_freed_within_the_call():
    peak = peak_memory_cpu(lambda: torch.ones(64, 2**18).sum())  # 64 MiB
    assert 60 * 2**20 < peak < 80 * 2**20


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_tool_writes_table_json_and_plot(tmp_path, capsys):
    out = tmp_path / 'report'
    arguments = ['--models', 'fastitpn-test', '--sizes', '64x64', '--repeats', '1']
    load_tool().main([*arguments, '--out', str(out)])
    assert 'ETA' in capsys.readouterr().out
    stem = out / 'fastitpn-test_inference_cpu-fp32'
    results = json.loads(stem.with_suffix('.json').read_text())
    base, ours = results['rows']
    assert [row['variant'] for row in results['rows']] == ['plain', 'ours']
    assert ours['relative_error'] < 1e-4
    assert ours['median_s'] >= ours['min_s'] > 0
    assert ours['speedup'] == base['median_s'] / ours['median_s']
    assert ours['peak_bytes'] > 0
    assert results['machine']['gemm_gflops'] > 0
    assert '| fastitpn-test | 64x64 | ours |' in stem.with_suffix('.md').read_text()
    assert stem.with_suffix('.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(('name', 'part'), [('hivit-test', 'backbone.'), ('fastitpn-test', '')])
def test_tool_measures_nothing_if_outputs_differ(tmp_path, monkeypatch, name, part):
    def wrong(variant, name):
        model = build_model(variant, name)
        if variant == 'ours':
            model.get_parameter(f'{part}pos_embed').data.zero_()
        return model

    monkeypatch.setattr(inference, 'build_model', wrong)
    with pytest.raises(RuntimeError, match=f'outputs of {name} 64x64 differ by'):
        load_tool().main(['--models', name, '--sizes', '64x64', '--out', str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_tool_times_a_pretraining_step(tmp_path):
    pytest.importorskip('mmpretrain')
    arguments = ['--mode', 'pretrain', '--models', 'hivit-test', '--sizes', '64x64', '--batch', '2']
    load_tool().main([*arguments, '--repeats', '1', '--out', str(tmp_path)])
    stem = tmp_path / 'hivit-test_pretrain_cpu-fp32'
    (row,) = json.loads(stem.with_suffix('.json').read_text())['rows']
    assert row['mode'] == 'pretrain'
    assert row['images_per_s'] == 2 / row['median_s']
    assert 'One optimiser step' in stem.with_suffix('.md').read_text()
    assert stem.with_suffix('.png').exists()


def run_throughput(tmp_path, *more):
    arguments = ['--mode', 'throughput', '--models', 'fastitpn-test', '--sizes', '64x64', '96x64']
    arguments += ['--dtype', 'bf16', '--batch', '2', '--repeats', '2', '--out', str(tmp_path)]
    load_tool().main([*arguments, *more])
    stem = tmp_path / 'fastitpn-test_throughput_cpu-bf16'
    assert stem.with_suffix('.png').exists()
    return json.loads(stem.with_suffix('.json').read_text()), stem.with_suffix('.md').read_text()


def test_tool_measures_throughput_in_bf16(tmp_path):
    results, table = run_throughput(tmp_path, '--peak-tflops', '0.5')
    assert [row['size'] for row in results['rows']] == ['64x64', '96x64']
    assert results['machine']['stated_peak_gflops'] == 500
    for row in results['rows']:
        assert 0.999 < row['cosine'] < 1  # bf16, so it cannot be 1
        assert row['images_per_s'] == 2 / row['median_s']
    one = inference.gflop_per_image('fastitpn-test', (64, 64))
    assert results['rows'][0]['gflop'] == 2 * one  # a batch of 2
    assert '| of GEMM rate | of stated peak | cosine |' in table


@pytest.mark.slow
def test_tool_measures_throughput_compiled(tmp_path):
    results, table = run_throughput(tmp_path, '--compile')
    assert [row['variant'] for row in results['rows']] == ['ours', 'ours, compiled'] * 2
    assert 'stated peak |' not in table


def test_throughput_measures_nothing_if_outputs_differ(monkeypatch):
    class Wrong(torch.nn.Linear):
        def forward(self, x):
            return [x if x.dtype == torch.float32 else x.flip(2)]

    monkeypatch.setattr(throughput, 'build_model', lambda variant, name: Wrong(1, 1))
    settings = dict(batch=1, repeats=1, device='cpu', dtype='bf16', compiled=False)
    with pytest.raises(RuntimeError, match=r'the least cosine with float32 is .* not measured'):
        throughput.run_throughput(models=['fastitpn-test'], sizes=[(64, 64)], **settings)


def test_derived_shares():
    row = dict(gflop=8.0, median_s=2.0, batch=4)
    shares = derived(row, dict(gemm_gflops=16, stated_peak_gflops=40))
    assert (shares['gflop_per_image'], shares['gemm_share'], shares['peak_share']) == (2, 0.25, 0.1)
    assert derived(dict(median_s=2.0), dict(gemm_gflops=16)) == dict(median_s=2.0)


def test_report_name():
    settings = dict(models=['fastitpn-tiny', 'fastitpn-base'], mode='throughput', device='cuda')
    assert report_name(dict(settings, dtype='bf16')) == 'fastitpn_throughput_cuda-bf16'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--sizes', '65x64'], "multiples of 16 of at least 64, but got '65x64'"),
        (['--sizes', '224'], "HEIGHTxWIDTH such as 800x1280, but got '224'"),
        (['--repeats', '0'], "whole number of at least 1, but got '0'"),
        (['--models', 'hivit-huge'], "invalid choice: 'hivit-huge'"),
        (['--peak-tflops', '-1'], "must be a number above 0, but got '-1'"),
        (['--peak-tflops', 'nan'], "must be a number above 0, but got 'nan'"),
        (['--mode', 'pretrain', '--models', 'fastitpn-base'], 'takes hivit-* as --models'),
        (['--mode', 'pretrain', '--dtype', 'bf16'], 'needs --device cuda'),
        (['--mode', 'pretrain', '--sizes', '64x128'], 'square'),
        (['--mode', 'pretrain', '--compile'], 'belongs to --mode inference'),
    ],
)
def test_tool_refuses_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        load_tool().parse_args(arguments)
    assert message in capsys.readouterr().err


def test_tool_refuses_a_gpu_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit):
        load_tool().parse_args(['--device', 'cuda'])
    assert 'finds no GPU here' in capsys.readouterr().err
