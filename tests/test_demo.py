"""tools/demo.sh and what is behind it: steps, results, pictures; the whole in a smoke run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('matplotlib')
coco_mask = pytest.importorskip('pycocotools.mask')
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import demo  # noqa: E402
import demo_report  # noqa: E402
from demo_data.coco import encode_rle  # noqa: E402
from demo_run import pictures, results  # noqa: E402
from demo_run.steps import LiveFilter, StepError, Steps, clock, shown  # noqa: E402

HEAD = '11/21 09:22:13 - mmengine - INFO - '


# ------------------------------------------------------------------------------------------- steps


def say(text):
    return [sys.executable, '-c', f'print({text!r})']


def test_live_filter_hides_dumps_and_nothing_else():
    lines = [
        ('System environment follows', True),
        (HEAD, False),
        ('System environment:', False),
        (f'{HEAD}Config:', False),
        ('model = dict(', False),
        (f'{HEAD}Hooks will be executed in the following order:', False),
        ('before_run:', False),
        (f'{HEAD}HiViT loaded from epoch_1.pth', True),
        ('  loaded:     71 tensors', True),
        (f'{HEAD}decoder.pos_embed is skipped since its requires_grad=False', False),
        ('Traceback (most recent call last):', True),
        ('ValueError: wrong', True),
        (f'{HEAD}"FileClient" will be deprecated in future.', False),
        (f'{HEAD}Epoch(train) [1][1/4]  eta: 0:00:19  loss: 2.8827', True),
        (f'{HEAD}Config:', False),
        ('Traceback (most recent call last):', True),
        ('  File "x.py", line 1', True),
        ('', False),
    ]
    live = LiveFilter()
    assert [(line, live.shows(line + '\n')) for line, _ in lines] == lines


def test_step_runs_once_until_an_input_or_an_output_changes(tmp_path, capfd):
    out, count = tmp_path / 'out', tmp_path / 'count'
    code = f'open({str(out)!r}, "w"); open({str(count)!r}, "a").write("x")'
    command = [sys.executable, '-c', code]

    def run(*inputs):
        Steps(tmp_path, 1).run('make', command, [out], inputs)
        return len(count.read_text())

    assert [run('a'), run('a')] == [1, 1]
    assert 'complete: ' in capfd.readouterr().out
    assert run('b') == 2
    out.unlink()
    assert [run('b'), run('b')] == [3, 3]
    Steps(tmp_path, 1).forget(keep=['other'])
    assert run('b') == 4


def test_step_starts_in_an_empty_folder(tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / 'old').touch()
    code = f'import pathlib; p = pathlib.Path({str(folder)!r}); p.mkdir(); (p / "new").touch()'
    Steps(tmp_path, 1).run('make', [sys.executable, '-c', code], [folder / 'new'], clear=folder)
    assert [path.name for path in folder.iterdir()] == ['new']


def test_failed_step_names_itself_and_its_log(tmp_path, capfd):
    command = [sys.executable, '-c', 'print("Config:"); raise SystemExit("no such thing")']
    steps = Steps(tmp_path, 1)
    with pytest.raises(
        StepError, match=r"step 'train' failed \(exit status 1\); log: .*train\.log"
    ):
        steps.run('train', command, [])
    assert 'no such thing' in capfd.readouterr().err
    assert 'no such thing' in steps.log('train').read_text()
    assert steps.read('train') == {}


def test_step_without_its_output_fails(tmp_path):
    with pytest.raises(StepError, match=r"step 'train' did not write .*missing; log:"):
        Steps(tmp_path, 1).run('train', say('done'), [tmp_path / 'missing'])


def test_repeated_step_keeps_the_time_of_the_real_work(tmp_path):
    steps = Steps(tmp_path, 1)
    for key, seconds, expected in (('a', 600, 600), ('a', 2, 600), ('b', 3, 3), ('b', 4, 4)):
        steps.keep_longest('setup', key, seconds)
        assert steps.read('setup')['seconds'] == expected


def test_command_is_shown_as_typed_in_the_repository():
    words = [str(ROOT / '.venv/bin/python'), 'tools/train.py', 'a b']
    assert shown(words) == ".venv/bin/python tools/train.py 'a b'"
    assert shown(['/usr/bin/python3', 'x']) == '/usr/bin/python3 x'
    assert clock(3725.4) == '1:02:05'


# ----------------------------------------------------------------------------------------- results


def write_run(folder, records, stamp='20260101_000000'):
    path = folder / stamp / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))


def train_records(total, number=20):
    """A loss that falls in a straight line from `total`, in two terms."""
    return [
        dict(loss=total * (1 - i / number), loss_a=total / 2, loss_b=1.0, lr=0.1, step=i + 1)
        for i in range(number)
    ]


def val_record(epoch, value):
    return {'step': epoch, **{f'coco/{name}': value for name in results.METRICS}}


@pytest.fixture
def work(tmp_path):
    """What a run with --compare leaves behind."""
    write_run(tmp_path / 'pretrain', train_records(4.0))
    steps = Steps(tmp_path, 1)
    for name, seconds in (('setup', 500), ('data', 10), ('pretrain', 300), ('report', 2)):
        steps.stamp(name, 'key', seconds)
    for i, start in enumerate(results.STARTS):
        folder = results.finetune_folder(tmp_path, start)
        write_run(folder, [*train_records(2.0), val_record(1, 0.1), val_record(2, 0.5 - i / 10)])
        evaluated = results.evaluate_folder(tmp_path, start)
        path = evaluated / '20260101_000000' / '20260101_000000.json'
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(val_record(0, 0.5 - i / 10)))
        steps.stamp(results.step_name('finetune', start), 'key', 100 + i)
        steps.stamp(results.step_name('evaluate', start), 'key', 20)
    return tmp_path


ANNOTATIONS = {'images': [{'id': 1}] * 4, 'annotations': [{'id': 1}] * 29}


def test_last_run_of_a_folder_counts(tmp_path):
    write_run(tmp_path, train_records(1.0), '20260101_000000')
    write_run(tmp_path, [*train_records(2.0), val_record(1, 0.5)], '20260102_000000')
    train, val = results.read_scalars(tmp_path)
    assert (len(train), len(val), train[0]['loss']) == (20, 1, 2.0)
    assert results.loss_names(train) == ['loss', 'loss_a', 'loss_b']
    with pytest.raises(FileNotFoundError, match='run that step first'):
        results.read_scalars(tmp_path / 'other')


@pytest.mark.parametrize(
    ('number', 'first', 'last'),
    [(20, (0 + 1) / 2, (18 + 19) / 2), (3, 0, 2), (1, 0, 0), (29, 0.5, 27.5)],
)
def test_first_and_last_tenth(number, first, last):
    records = [{'loss': float(i)} for i in range(number)]
    assert results.first_and_last(records, 'loss') == (first, last)


def test_summary(work):
    summary = results.summarise(work, ANNOTATIONS, compare=False)
    assert summary['setup_seconds'] == 500
    assert summary['demo_seconds'] == 10 + 300 + 2 + 100 + 20  # not the compared ones
    assert summary['pretrain_loss_first'] == pytest.approx(4 * (1 - 0.5 / 20))
    assert summary['pretrain_loss_last'] == pytest.approx(4 * (1 - 18.5 / 20))
    assert summary['pretrain_losses']['loss_b'] == {'first': 1.0, 'last': 1.0}
    assert [summary[name] for name in results.METRICS] == [0.5] * 4
    assert (summary['val_images'], summary['val_instances']) == (4, 29)
    assert summary['machine']['cores'] >= 1 and summary['machine']['gpu'] is None
    assert any('torch' in name for name in summary['machine']['packages'])
    assert 'compare' not in summary
    json.dumps(summary)


def test_comparison(work):
    summary = results.summarise(work, ANNOTATIONS, compare=True)
    assert list(summary['compare']) == list(results.STARTS)
    assert summary['compare']['scratch']['segm_mAP'] == pytest.approx(0.3)
    assert summary['compare']['scratch']['seconds'] == 102
    table = results.compare_table(summary)
    assert '| from scratch | 0.300 | 0.300 | 0.300 | 0.300 | 102 s |' in table
    assert '4 held-out tiles with 29 instances' in table and '3.4%' in table


def test_initial_weights():
    both = ['model.backbone.init_cfg.checkpoint=x.pth', 'model.neck.init_cfg.checkpoint=x.pth']
    none = ['model.backbone.init_cfg=None', 'model.neck.init_cfg=None']
    assert demo.initial_weights('pretrained', 'x.pth') == both
    assert demo.initial_weights('random-pyramid', 'x.pth') == [both[0], none[1]]
    assert demo.initial_weights('scratch', 'x.pth') == none


def test_one_config_of_each_kind():
    for pattern in (demo.PRETRAIN_CONFIG, demo.FINETUNE_CONFIG):
        assert (ROOT / demo.find_config(pattern)).is_file()
    with pytest.raises(StepError, match='expected one config'):
        demo.find_config('configs/pretraining/*.py')


# ---------------------------------------------------------------------------------------- pictures


def square(left, top, side=20):
    mask = np.zeros((64, 64), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def truth(number, left, top):
    return {
        'id': number,
        'image_id': 1,
        'bbox': [left, top, 20, 20],
        'segmentation': encode_rle(square(left, top)),
    }


def found(score, left, top):
    rle = coco_mask.encode(np.asfortranarray(square(left, top), dtype=np.uint8))
    rle['counts'] = rle['counts'].decode()
    return {'image_id': 1, 'bbox': [left, top, 20, 20], 'score': score, 'segmentation': rle}


def test_surest_prediction_is_matched_first():
    masks = [coco_mask.frPyObjects(truth(1, x, 0)['segmentation'], 64, 64) for x in (0, 40)]
    truths = [{'segmentation': mask} for mask in masks]
    # The second is closer to the first nucleus, but less sure; the fourth is off by too much.
    predictions = [found(0.9, 3, 0), found(0.8, 0, 0), found(0.7, 40, 2), found(0.6, 20, 30)]
    assert pictures.match_masks(truths, predictions) == {0: 0, 2: 1}
    assert pictures.match_masks([], predictions) == pictures.match_masks(truths, []) == {}


def has_colour(path, colour, box):
    """Whether lines of a colour can be seen in a part of a picture, given in shares of it."""
    image = np.asarray(Image.open(path).convert('RGB')).astype(int)
    height, width = image.shape[:2]
    left, top, right, bottom = box
    part = image[int(top * height) : int(bottom * height), int(left * width) : int(right * width)]
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(part - wanted).max(axis=2) < 12).sum() > 20


def test_detections_are_drawn_below_the_ground_truth(tmp_path):
    Image.fromarray(np.full((64, 64, 3), 40, np.uint8)).save(tmp_path / 'tile.png')
    annotations = {
        'images': [{'id': 1, 'file_name': 'tile.png'}],
        'annotations': [truth(1, 2, 2), truth(2, 40, 40)],
    }
    predictions = [found(0.9, 2, 2), found(0.8, 2, 40), found(0.3, 40, 40)]
    out = tmp_path / 'out.png'
    pictures.draw_detections(annotations, predictions, tmp_path, 0.5, out)
    above, below = (0, 0, 1, 0.5), (0, 0.5, 1, 1)
    assert has_colour(out, pictures.COLOURS[0], above) and has_colour(
        out, pictures.COLOURS[0], below
    )
    assert has_colour(out, pictures.WRONG, (0.5, 0, 1, 0.5))  # missed: below the threshold
    assert has_colour(out, pictures.WRONG, (0, 0.5, 0.5, 1))  # the one that is nowhere
    assert not has_colour(out, pictures.WRONG, (0.5, 0.55, 1, 0.9))


def test_report_writes_all_files(work, tmp_path, monkeypatch, capsys):
    data = tmp_path / 'nuclei'
    (data / 'annotations').mkdir(parents=True)
    (data / 'val').mkdir()
    Image.fromarray(np.full((64, 64, 3), 40, np.uint8)).save(data / 'val/tile.png')
    images = [{'id': i, 'file_name': 'tile.png'} for i in (1, 2)]
    document = {'images': images, 'annotations': [truth(1, 2, 2)]}
    (data / 'annotations/val.json').write_text(json.dumps(document))
    predictions = [found(0.9, 2, 2), found(0.9, 40, 40)]
    (work / 'evaluate/val.segm.json').write_text(json.dumps(predictions))
    monkeypatch.setattr(demo_report, 'NUCLEI', data)

    assert demo_report.main(['--work-dir', str(work), '--compare']) == 0
    assert 'from scratch' in (work / 'compare.md').read_text()
    assert 'pre-training loss   3.900 -> 0.300 (-92%)' in capsys.readouterr().out
    for name in ('loss_curves.png', 'detections.png'):
        assert min(Image.open(work / name).size) > 400
    summary = json.loads((work / 'summary.json').read_text())
    assert len(summary['compare']) == 3 and 'report' in summary['seconds']

    assert demo_report.main(['--work-dir', str(work)]) == 0
    assert not (work / 'compare.md').exists()
    assert 'compare' not in json.loads((work / 'summary.json').read_text())
    with pytest.raises(SystemExit, match='run that step first'):
        demo_report.main(['--work-dir', str(tmp_path / 'none')])


# ------------------------------------------------------------------------------------- the command


def test_wrong_argument_is_told_before_the_set_up():
    for arguments, message in ((['--copmare'], '--copmare'), (['--work-dir'], 'needs a folder')):
        done = subprocess.run(
            ['bash', 'tools/demo.sh', *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 2 and message in done.stderr
        assert 'environment' not in done.stdout


def whole_demo():
    """The command; in an environment that tools/setup_env.sh did not make, the part after it."""
    if (Path(sys.prefix) / '.itpn_mm').is_dir():
        return ['bash', 'tools/demo.sh']
    return [sys.executable, 'tools/demo.py']


@pytest.mark.slow
def test_whole_demo(tmp_path):
    pytest.importorskip('mmdet')
    pytest.importorskip('mmpretrain')
    work = tmp_path / 'demo'
    command = [*whole_demo(), '--smoke', '--work-dir', str(work)]
    environment = {**os.environ, 'ITPN_VENV': sys.prefix}

    def run(*arguments):
        return subprocess.run(
            [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
        )

    first = run()
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert 'eta: ' in first.stdout and 'requires_grad' not in first.stdout
    for name in ('reconstructions.png', 'detections.png', 'loss_curves.png'):
        assert min(Image.open(work / name).size) > 400
    summary = json.loads((work / 'summary.json').read_text())
    assert summary['val_instances'] == 29 and 0 <= summary['bbox_mAP'] <= 1
    assert summary['pretrain_losses'].keys() >= {'loss', 'loss_pixel', 'loss_mfm_p16'}
    assert set(summary['seconds']) == {
        'data', 'pretrain', 'finetune', 'evaluate', 'reconstructions', 'report',
    }  # fmt: skip

    again = run()
    assert again.returncode == 0 and again.stdout.count('complete: ') == 4
    repeated = json.loads((work / 'summary.json').read_text())
    for name in ('pretrain', 'finetune', 'evaluate'):
        assert repeated['seconds'][name] == summary['seconds'][name]

    weights = next((work / 'pretrain').glob('epoch_*.pth'))
    weights.write_bytes(b'damaged')
    Steps(work, 1).forget(keep=['data', 'pretrain'])
    broken = run()
    assert broken.returncode == 1
    assert "step 'finetune' failed" in broken.stderr and 'finetune.log' in broken.stderr
