"""tools/plot_logs.py on logs written here as mmengine writes them."""

import json
import math
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import plot_logs as tool  # noqa: E402
from inspection.logs import FILE, read_run, smooth  # noqa: E402


def write(folder: Path, *records: dict) -> Path:
    path = folder / FILE
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return folder


def trained(iteration: int, epoch: int | None = None, **values) -> dict:
    values = dict(loss=1 / iteration, lr=0.1, time=0.5) | values
    epochs = {} if epoch is None else dict(epoch=epoch)
    return values | epochs | dict(iter=iteration, step=iteration)


def scored(step: int, **values) -> dict:
    return dict(values, data_time=9.0, time=9.0, step=step)


@pytest.fixture
def epochs(tmp_path) -> Path:
    """A run of 27 iterations an epoch, logged every 15, that was killed and resumed twice."""
    work = tmp_path / 'detector'
    write(
        work / '20260101_000000',
        *(trained(27 * e + 15, e + 1, loss=e) for e in range(2)),
        scored(2, **{'coco/bbox_mAP': 0.2}),
        *(trained(27 * e + 15, e + 1, loss=e) for e in range(2, 4)),
        scored(4, **{'coco/bbox_mAP': 0.4}),
        *(trained(27 * e + 15, e + 1, loss=e) for e in (4, 5)),  # the last one is not come to again
    )
    with (work / '20260101_000000' / FILE).open('a') as file:
        file.write('{"loss": 3.0, "it')  # killed here
    write(work / '20260102_000000', trained(3 * 27 + 15, 4, loss=30))
    write(
        work / '20260103_000000',
        trained(3 * 27 + 15, 4, loss=31),
        scored(4, **{'coco/bbox_mAP': 0.5}),
        trained(4 * 27 + 15, 5, loss=41, acc=math.nan),
    )
    return work


def test_resumed_runs_are_joined(epochs):
    """Later folders count where they have been; validations lie at the end of their epoch."""
    run = read_run(epochs)
    assert (run.name, run.folders, run.epoch_length, run.last) == ('detector', 3, 25, 123)
    loss = run.curves['loss']
    assert loss.iterations == [15, 42, 69, 96, 123] and loss.values == [0, 1, 2, 31, 41]
    score = run.curves['coco/bbox_mAP']
    assert score.is_score and not loss.is_score
    assert score.values == [0.2, 0.5] and run.positions(score, 'epoch') == [2, 4]
    assert run.positions(score, 'iter') == score.iterations == [50, 100]
    assert set(run.curves['time'].values) == {0.5}  # not those of validations
    assert run.curves.keys() == {'loss', 'lr', 'time', 'acc', 'coco/bbox_mAP'}


def test_the_log_of_one_folder(epochs):
    for path in (epochs / '20260102_000000', epochs / '20260102_000000' / FILE):
        run = read_run(path)
        assert run.folders == 1 and run.curves['loss'].values == [30]


def test_iterations_and_validations_by_epoch(tmp_path):
    """mmseg counts iterations; others count them for the training and validate by epoch."""
    run = read_run(write(tmp_path / 'a', trained(50), trained(90), scored(100, mIoU=70.0)))
    assert run.curves['mIoU'].iterations == [100] and run.epoch_length is None
    run = read_run(write(tmp_path / 'b', trained(50), trained(90), scored(2, mIoU=70.0)))
    assert run.curves['mIoU'].iterations == [90]
    with pytest.raises(ValueError, match='b: counts no epochs; plot it by `--x iter`'):
        run.positions(run.curves['loss'], 'epoch')
    by_iteration = [trained(50, 1), trained(90, 2), scored(100, mIoU=70.0)]
    assert read_run(write(tmp_path / 'c', *by_iteration)).curves['mIoU'].iterations == [100]


def test_smoothing():
    assert smooth([2.0, 2.0, 2.0], 0.9) == pytest.approx([2, 2, 2])
    assert smooth([1.0, 3.0], 0.5) == pytest.approx([1, (0.25 * 1 + 0.5 * 3) / 0.75])
    values = smooth([1.0, math.nan, 3.0], 0.5)
    assert math.isnan(values[1]) and values[2] == pytest.approx(7 / 3)


def test_figure(epochs, tmp_path):
    """A panel for each key with a line for each run that has it, and faint values if smoothed."""
    other = read_run(write(tmp_path / 'o', trained(10, 1), trained(20, 2), scored(2, mIoU=3.0)))
    runs = dict(a=read_run(epochs), b=other)
    keys = tool.choose_keys(list(runs.values()), None)
    assert keys == ['loss', 'lr', 'coco/bbox_mAP', 'mIoU']
    figure = tool.draw(runs, keys, 'epoch', 0.5)
    loss, lr, score, iou = figure.axes[:4]
    assert [axes.get_title() for axes in figure.axes[:4]] == keys
    faint, line, *of_b = loss.get_lines()
    assert len(of_b) == 2
    assert list(faint.get_ydata()) == [0, 1, 2, 31, 41] and faint.get_alpha() == tool.FAINT
    assert list(line.get_ydata()) == pytest.approx(smooth([0, 1, 2, 31, 41], 0.5))
    assert len(lr.get_lines()) == 2 and len(score.get_lines()) == len(iou.get_lines()) == 1
    assert list(score.get_lines()[0].get_xdata()) == [2, 4]
    assert score.get_xlabel() == 'epoch'
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ['a', 'b']
    colours = [line.get_color() for line in (iou.get_lines()[0], score.get_lines()[0], line)]
    assert colours[0] != colours[1] == colours[2]


def test_command_line(epochs, tmp_path, capsys):
    write(tmp_path / 'pretrain' / 'x', trained(10, 1, loss_mfm_p4=1.0, loss_mfm_p8=1.0))
    out = tmp_path / 'new' / 'logs.png'
    runs = [str(tmp_path / 'pretrain'), str(epochs)]
    assert tool.main([*runs, '--keys', 'loss*', '*mAP', '--out', str(out)]) == 0
    printed = capsys.readouterr().out
    assert 'pretrain: one folder, to iteration 10, without coco/bbox_mAP' in printed
    assert 'detector: 3 folders, to iteration 123, without loss_mfm_p4, loss_mfm_p8' in printed
    with Image.open(out) as picture:
        assert picture.size[0] > 1000
    assert tool.main([*runs, '--labels', 'x', 'y', '--out', str(out)]) == 0
    assert 'y: 3 folders' in capsys.readouterr().out


def test_labels():
    """What tells the runs apart."""

    def label(*paths: str) -> list[str]:
        return tool.make_labels([Path(path) for path in paths])

    assert label('w/a/train', 'w/b/c/train') == ['a', 'b/c']
    assert label('w/a/train') == ['train']
    assert label('w', 'w/a') == ['w', 'a']
    assert label('a', 'b') == ['a', 'b']


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['detector', '--keys', 'mIoU'], r'mIoU is in no run; there are: acc, coco/bbox_mAP, lo'),
        (['other'], r'none of the usual keys is there; give `--keys` of: speed'),
        (['nothing'], r'nothing: no vis_data/scalars\.json in it'),
        (['empty'], r'empty: its logs hold no values'),
        (['iterations', '--x', 'epoch'], 'iterations: counts no epochs'),
    ],
)
def test_errors_are_one_line(epochs, monkeypatch, arguments, message):
    monkeypatch.chdir(epochs.parent)
    write(Path('other'), dict(speed=1.0, iter=1, step=1))
    write(Path('empty'))
    write(Path('iterations'), trained(5))
    with pytest.raises(SystemExit, match=message) as error:
        tool.main(arguments)
    assert '\n' not in str(error.value) and not Path('logs.png').exists()


@pytest.mark.parametrize(
    'options, message',
    [
        (['a', '--smooth', '1'], '--smooth must be at least 0 and less than 1, but got 1.0'),
        (['a', 'b', '--labels', 'x'], '--labels must be 2 different ones for 2 runs'),
        (['a', 'b', '--labels', 'x', 'x'], '--labels must be 2 different ones for 2 runs'),
    ],
)
def test_usage(capsys, options, message):
    with pytest.raises(SystemExit, match='2'):
        tool.main(options)
    assert message in capsys.readouterr().err
