import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import memory, passes, peers  # noqa: E402
from benchmarks.arithmetic import counted  # noqa: E402
from benchmarks.measure import gemm_rates, peak_memory_cpu  # noqa: E402
from benchmarks.models import Candidate, build  # noqa: E402
from benchmarks.selection import selection_share  # noqa: E402

CHANNELS = {
    ('hivit-test', True): (256,) * 5,
    ('fastitpn-test', True): (256,) * 5,
    ('hivit-test', False): (16, 32, 64),
    ('fastitpn-test', False): (16, 32, 64),
}


def load_tool():
    spec = importlib.util.spec_from_file_location('benchmark_tool', ROOT / 'tools/benchmark.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_tool(out, *arguments):
    """The files `<stem>` of one run: rows and settings, and the text of the table."""
    load_tool().main([*arguments, '--repeats', '1', '--out', str(out)])
    (results,) = out.glob('*.json')
    assert results.with_suffix('.png').read_bytes().startswith(b'\x89PNG')
    return json.loads(results.read_text()), results.with_suffix('.md').read_text()


@pytest.fixture
def quick(monkeypatch):
    """No process of its own for each peak, and no long product of matrices."""
    specs = []
    monkeypatch.setattr(
        passes, 'run_fresh', lambda arguments: specs.append(*arguments) or '1048576'
    )
    monkeypatch.setattr('benchmarks.measure.gemm_gflops', lambda device, dtype: 50.0)
    return specs


@pytest.fixture(scope='module', params=sorted(CHANNELS), ids=str)
def models(request):
    name, pyramid = request.param
    candidates = (Candidate(name, variant, pyramid) for variant in ('plain', 'dense'))
    return CHANNELS[request.param], *(build(candidate, (64, 64)) for candidate in candidates)


@torch.no_grad()
@pytest.mark.parametrize('size', [(64, 64), (64, 96), (224, 224), (240, 80)])
def test_plain_equals_ours(models, size):
    channels, *variants = models
    img = torch.randn(2, 3, *size)
    outputs, ours = (model(img) for model in variants)
    assert [x.shape for x in outputs] == [
        (2, c, size[0] // s, size[1] // s) for c, s in zip(channels, (4, 8, 16, 32, 64))
    ]
    assert passes.relative_error(ours, outputs) < 5e-6


@torch.no_grad()
@pytest.mark.parametrize(
    ('candidate', 'size'),
    [
        (Candidate('hivit-test', 'plain'), (96, 64)),
        (Candidate('fastitpn-test', 'plain'), (96, 64)),
        (Candidate('fastitpn-test', 'gathering-rpe', pyramid=False), (32, 288)),  # two windows
    ],
    ids=lambda value: getattr(value, 'model', None),
)
def test_every_weight_matters(candidate, size):
    """A weight that could be wrong unseen would make the comparison of outputs worthless."""
    model = build(candidate, size)
    img = torch.randn(1, 3, *size)
    reference = model(img)
    for key, parameter in model.named_parameters():
        saved = parameter.clone()
        parameter.mul_(1.1)
        change = passes.relative_error(model(img), reference)
        parameter.copy_(saved)
        if key.endswith('qkv.bias'):
            continue  # the part that belongs to keys cancels in the softmax
        assert change > passes.TOLERANCE['fp32'] / 2, key


def test_accelerated_models_have_the_weights_of_the_dense_one():
    dense = build(Candidate('fastitpn-test', 'dense'), (64, 64))
    alone = build(Candidate('fastitpn-test', 'all'), (64, 64))
    sharing = build(Candidate('fastitpn-test', 'all'), (64, 64), dense)
    for key, value in alone.state_dict().items():
        assert sharing.state_dict()[key].equal(value)
    common = dict(dense.named_parameters())
    new = {key: p for key, p in sharing.named_parameters() if key not in common}
    assert all(key.startswith('backbone.acceleration.') and p.all() for key, p in new.items())
    assert len(new) == 7  # the token, a scale for each of 5 layers, a table
    for key, parameter in sharing.named_parameters():
        assert key in new or parameter.data_ptr() == common[key].data_ptr()


def test_plain_refuses_partial_patches(models):
    with pytest.raises(ValueError, match='multiples of 16: 70x64'):
        models[1](torch.zeros(1, 3, 70, 64))


def test_relative_error():
    a, b = torch.tensor([[3.0, -4.0]]), torch.tensor([[3.0, -4.5]])
    assert passes.relative_error([a, a], [a, b]) == pytest.approx(0.5 / b.norm().item())
    with pytest.raises(ValueError, match='must hold 2 maps, but got 1'):
        passes.relative_error([a], [a, b])


def test_rounds():
    assert [passes.rounds(cost, (2.0, 6.0, 25.0), 3) for cost in (2.0, 6.0, 25.0)] == [12, 12, 3]


def test_gemm_rates_keep_the_better_of_two(quick):
    assert gemm_rates('cpu', ['amp', 'fp32', 'bf16'], dict(fp32=60)) == dict(bf16=50, fp32=60)


def test_share_of_selection(monkeypatch):
    model = build(Candidate('fastitpn-test', 'migration-40', pyramid=False), (64, 64))
    img, backbone = torch.randn(1, 3, 160, 160), model.backbone

    def share_with_a_slow(module, name):
        call = getattr(module, name)
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *args: time.sleep(0.3) or call(*args))
            return selection_share(model, img, 'cpu')

    assert share_with_a_slow(backbone.acceleration, 'run') > 0.5
    assert 0 < share_with_a_slow(backbone.stages[2][1], 'forward') < 0.3
    assert 0 < share_with_a_slow(backbone.stages[1][0], 'forward') < 0.3
    assert 'forward' not in vars(backbone.acceleration) and 'run_block' not in vars(backbone)


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_peak_memory_counts_what_is_freed_within_the_call():
    peak = peak_memory_cpu(lambda: torch.ones(64, 2**18).sum())  # 64 MiB
    assert 60 * 2**20 < peak < 80 * 2**20


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_tool_compares_dense_with_plain(tmp_path, capsys):
    arguments = ['--models', 'fastitpn-test', '--sizes', '64x64']
    results, table = run_tool(tmp_path, *arguments)
    assert 'ETA' in capsys.readouterr().out
    assert (tmp_path / 'fastitpn-test_inference_cpu-fp32.md').exists()
    base, ours = results['rows']
    assert [row['variant'] for row in results['rows']] == ['plain', 'dense']
    assert base['relative_error'] < 1e-4 and ours['relative_error'] == 0
    assert ours['max_s'] >= ours['median_s'] >= ours['min_s'] > 0
    assert ours['to_plain'] == base['median_s'] / ours['median_s']
    assert base['to_dense'] == ours['median_s'] / base['median_s']
    assert ours['peak_bytes'] > 0
    assert base['memory_to_dense'] == ours['peak_bytes'] / base['peak_bytes']
    assert results['machine']['gemm_gflops']['fp32'] > 0
    assert '| fastitpn-test | 64x64 | 1 | fp32 | dense |' in table


@pytest.mark.slow
def test_tool_measures_all_settings_types_and_batches(tmp_path, quick):
    arguments = ['--models', 'fastitpn-test', '--sizes', '64x64', '64x96', '--batch', '1', '2']
    arguments += ['--dtype', 'fp32', 'bf16', '--no-plain', '--peak-tflops', '0.5', '--settings']
    results, table = run_tool(tmp_path, *arguments, 'migration-40', 'all')
    rows = results['rows']
    assert len(rows) == 2 * 2 * 2 * 3
    cases = [(row['dtype'], row['batch'], row['size'], row['variant']) for row in rows]
    assert len(set(cases)) == len(cases)
    assert {row['variant'] for row in rows} == {'dense', 'migration-40', 'all'}
    for row in rows:
        candidate = Candidate('fastitpn-test', row['variant'])
        one = counted(candidate, tuple(map(int, row['size'].split('x'))))
        assert row['gflop'] == row['batch'] * one == pytest.approx(row['gflop_closed_form'])
        assert row['images_per_s'] == row['batch'] / row['median_s']
        assert (row['selection_to_dense'] is None) == (row['variant'] == 'dense')
        assert row['to_plain'] is None and row['peak_bytes'] == 2**20
    errors = {row['dtype']: row['relative_error'] for row in rows if row['variant'] == 'dense'}
    assert errors['fp32'] == 0 and errors['bf16'] > 1e-4
    assert results['machine']['stated_peak_gflops'] == 500
    assert '| of GEMM rate | of stated peak |' in table and 'paper Fig. 5' in table
    assert (tmp_path / 'fastitpn-test_acceleration_cpu-fp32-bf16.png').exists()
    memory.main(quick[-1])  # what a process of its own would be told


def test_tool_times_training_passes(tmp_path, quick):
    arguments = ['--train', '--models', 'hivit-test', '--sizes', '64x64', '--settings', 'all']
    results, table = run_tool(tmp_path, *arguments, '--dtype', 'amp')
    assert (tmp_path / 'hivit-test_train_cpu-amp.json').exists()
    assert [row['variant'] for row in results['rows']] == ['dense', 'all']
    assert {row['mode'] for row in results['rows']} == {'train'}
    assert results['rows'][0]['gflop'] > 2 * counted(Candidate('hivit-test', 'dense'), (64, 64))
    assert 'A forward and a backward pass' in table and 'x plain' not in table.split('---')[0]
    memory.main(quick[-1])


def test_a_training_pass_reaches_every_parameter():
    candidate = Candidate('fastitpn-test', 'gathering-rpe')
    model = build(candidate, (64, 320)).train()
    case = passes.Case((64, 320), 1, 'fp32', 'cpu', train=True)
    case.run(model, case.images())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


class Peer(torch.nn.Module):
    """One map, and an error for batches of two."""

    def __init__(self):
        super().__init__()
        self.proj = torch.nn.Conv2d(3, 8, 16, 16)

    def forward(self, img):
        if len(img) > 1:
            raise ValueError('one image only')
        return [self.proj(img)]


def missing(size):
    raise ImportError('No module named itpn_peer')


def test_peers_are_measured_or_named(tmp_path, quick, monkeypatch, capsys):
    monkeypatch.setattr(peers, 'PEERS', peers.PEERS)
    for name in list(peers.PEERS):
        monkeypatch.delitem(peers.PEERS, name)
    monkeypatch.setitem(peers.PEERS, 'there', lambda size: Peer())
    monkeypatch.setitem(peers.PEERS, 'elsewhere', missing)
    arguments = ['--models', 'fastitpn-test', '--sizes', '64x64', '--batch', '1', '2']
    results, _ = run_tool(tmp_path, *arguments, '--peers', '--no-pyramid', '--no-plain')
    found = [(row['model'], row['batch']) for row in results['rows']]
    assert found == [('fastitpn-test', 1), ('there', 1), ('fastitpn-test', 2)]
    printed = capsys.readouterr().out
    assert 'elsewhere is left out at 64x64: No module named itpn_peer' in printed
    assert 'there is left out at 64x64, 2 image(s), fp32: one image only' in printed
    peer = results['rows'][1]
    assert peer['to_dense'] is None and peer['gflop'] == pytest.approx(16 * 2 * 768 * 8 / 1e9)
    assert (tmp_path / 'fastitpn-test-backbone-peers_inference_cpu-fp32.json').exists()


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(peers.PEERS))
def test_peers_that_are_installed_run(name):
    pytest.importorskip(name.split('(')[1].rstrip(')'))
    candidate = Candidate(name, 'peer', pyramid=False)
    model = build(candidate, (64, 128))
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 64, 128))
    assert any(x.shape[2:] == (4, 8) for x in maps)
    assert 2 < counted(candidate, (64, 128)) < 20


@pytest.mark.parametrize('name', ['hivit-test', 'fastitpn-test'])
def test_tool_measures_nothing_if_outputs_differ(tmp_path, monkeypatch, quick, name):
    def wrong(candidate, size, share=None):
        model = build(candidate, size, share)
        if candidate.variant == 'plain':
            model.get_parameter('backbone.pos_embed').data.zero_()
        return model

    monkeypatch.setattr(passes, 'build', wrong)
    with pytest.raises(RuntimeError, match=r'plain: outputs at 64x64, .* not measured'):
        load_tool().main(['--models', name, '--sizes', '64x64', '--out', str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda maps: tuple(x * float('nan') for x in maps), 'outputs are not finite'),
        (lambda maps: maps[:2], r'maps are \[.*\], not \[.*\]; not measured'),
    ],
)
def test_accelerated_outputs_must_be_finite_and_of_equal_shapes(monkeypatch, quick, spoil, message):
    def wrong(candidate, size, share=None):
        model = build(candidate, size, share)
        if candidate.accelerated:
            model.register_forward_hook(lambda module, inputs, maps: spoil(maps))
        return model

    monkeypatch.setattr(passes, 'build', wrong)
    candidates = [Candidate('fastitpn-test', variant) for variant in ('dense', 'windows')]
    settings = dict(sizes=[(64, 64)], batches=[1], dtypes=['fp32'], repeats=1, device='cpu')
    with pytest.raises(RuntimeError, match=f'fastitpn-test, windows: {message}'):
        passes.run_passes(candidates, **settings)


def test_each_round_begins_with_another_candidate(monkeypatch, quick):
    order = []
    run = passes.Group._pass
    monkeypatch.setattr(
        passes.Group, '_pass', lambda self, c: order.append(c.variant) or run(self, c)
    )
    candidates = [Candidate('fastitpn-test', v) for v in ('dense', 'windows', 'all')]
    settings = dict(sizes=[(64, 64)], batches=[1], dtypes=['fp32'], repeats=2, device='cpu')
    passes.run_passes(candidates, **settings)
    assert order == ['dense', 'windows', 'all', 'windows', 'all', 'dense']


@pytest.mark.slow
def test_tool_measures_compiled(tmp_path, quick):
    arguments = ['--models', 'fastitpn-test', '--sizes', '64x64', '--compile', '--no-plain']
    results, _ = run_tool(tmp_path, *arguments, '--settings', 'all', '--no-pyramid')
    rows = {(row['variant'], row['compiled']): row for row in results['rows']}
    assert len(rows) == 4
    dense, fast = rows['dense', True], rows['all', True]
    assert fast['to_dense'] == dense['median_s'] / fast['median_s']
    assert dense['to_dense'] == 1 and dense['peak_bytes'] is None


def test_tool_times_a_pretraining_step(tmp_path, quick):
    pytest.importorskip('mmpretrain')
    arguments = ['--pretrain', '--models', 'hivit-test', '--sizes', '64x64', '--batch', '2']
    results, table = run_tool(tmp_path, *arguments)
    (row,) = results['rows']
    assert row['mode'] == 'pretrain'
    assert row['images_per_s'] == 2 / row['median_s']
    assert 'An optimiser step' in table
    assert (tmp_path / 'hivit-test_pretrain_cpu-fp32.png').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--sizes', '65x64'], "multiples of 16 of at least 64, but got '65x64'"),
        (['--sizes', '224'], "HEIGHTxWIDTH such as 800x1280, but got '224'"),
        (['--repeats', '0'], "whole number of at least 1, but got '0'"),
        (['--models', 'hivit-huge'], "invalid choice: 'hivit-huge'"),
        (['--settings', 'migration-90'], "there is no setting 'migration-90'"),
        (['--settings', 'windows@2'], "'windows@2': `@` and a number of at least 1 tell"),
        (['--settings', 'all@0'], "'all@0': `@` and a number of at least 1 tell"),
        (['--peak-tflops', '-1'], "must be a number above 0, but got '-1'"),
        (['--peak-tflops', 'nan'], "must be a number above 0, but got 'nan'"),
        (['--peers'], 'add --no-pyramid'),
        (['--train', '--pretrain'], 'not allowed with argument'),
        (['--pretrain', '--models', 'fastitpn-base'], 'takes hivit-* as --models'),
        (['--pretrain', '--dtype', 'bf16'], 'takes --dtype fp32'),
        (['--pretrain', '--dtype', 'amp'], 'with --device cuda also amp'),
        (['--pretrain', '--sizes', '64x128'], 'square'),
        (['--pretrain', '--compile'], 'takes no --settings'),
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
