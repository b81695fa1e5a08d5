"""The page of all demos: needs no other file, tells what is missing, shows what the results say."""

import base64
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('matplotlib')
pytest.importorskip('pycocotools.mask')
pytest.importorskip('jinja2')
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import demo_html  # noqa: E402
from demo_run import (  # noqa: E402
    acceleration_plan,
    acceleration_report,
    aerial_plan,
    aerial_report,
    digits_plan,
    digits_report,
    page,
    segmentation_plan,
    segmentation_report,
)
from demo_run.acceleration_report import METRICS  # noqa: E402
from demo_run.chains import SEEDS  # noqa: E402
from demo_run.command import write_status  # noqa: E402
from demo_run.page_sections import SECTIONS  # noqa: E402
from demo_run.results import describe_machine  # noqa: E402
from demo_run.segmentation_pictures import Tile  # noqa: E402

CHAINS = {
    'nuclei': 'nuclei',
    'digits': 'digits-seed0',
    'detection': 'dino-pretrained-seed0',
    'rotated': 'rotated-faster-rcnn-pretrained-seed0',
    'segmentation': 'upernet-pretrained-seed0',
    'acceleration': 'all-seed0',
}
COMMANDS = {name: {chain: f'python {name}'} for name, chain in CHAINS.items()}
LICENCES = [
    page.Licence('stardist', '0.9.2', 'BSD-3-Clause', ('nuclei', 'photographs'), '<as is>'),
    page.Licence('deepforest', '2.1.0', 'MIT', ('aerial', 'aerial_rotated'), ''),
]


# ---------------------------------------------------------------------------- results of each demo


def nuclei_summary():
    return {
        'demo_seconds': 3725.0,
        'bbox_mAP': 0.585,
        'bbox_mAP_50': 0.9,
        'segm_mAP': 0.622,
        'segm_mAP_50': 0.9,
        'seconds': {'finetune': 359.0, 'pretrain': 262.0},
        'val_images': 4,
        'val_instances': 29,
        'machine': describe_machine(used_gpu=False),
    }


def digits_summary(seeds=(0,)):
    tasks = {}
    for name in digits_plan.costs(seeds):
        kind, _, number = name.partition('/')[2].partition('-')
        result = {'loss': 0.5} if kind == 'pretrain' else {}
        if kind in digits_plan.METHODS:
            base = {'scratch': 50.0, 'photographs': 60.0, 'digits': 79.0}[name.partition('-')[0]]
            result = dict.fromkeys([number] if number else digits_plan.LABELS, base)
        tasks[name] = {'seconds': 10.0, 'result': result}
    counts = {'train_images': 1415, 'test_images': 382}
    return digits_report.summarise(digits_report.collect(tasks), tasks, counts, seeds)


def chain_tasks(chains, result):
    return {
        chain: {
            'train': {'seconds': 100.0, 'result': {'loss': 1.0}},
            'evaluate': {'seconds': 5.0, 'result': result(chain[0])},
        }
        for chain in chains
    }


def aerial_summary(study, compare=False):
    plan = aerial_plan.STUDIES[study]
    result = dict.fromkeys(plan.metrics.values(), 7.25)
    tasks = chain_tasks(aerial_plan.chains(study, compare), lambda _: result)
    return aerial_report.summarise(plan, tasks, {'tiles': 90, 'trees': 659})


def segmentation_summary(compare=False):
    tasks = chain_tasks(
        segmentation_plan.chains(compare),
        lambda name: dict.fromkeys(segmentation_plan.MODELS[name].metrics, 76.5),
    )
    truth = np.array([[1, 1, 2, 3]], np.uint8)
    return segmentation_report.summarise(tasks, [Tile('a.png', None, truth, {}, [{}] * 29, [])])


def acceleration_summary(seeds=(0,)):
    tasks = {}
    for name in acceleration_plan.costs(seeds):
        keys = [f'{part}_{metric}' for part in acceleration_plan.PARTS for metric in METRICS]
        tasks[name] = {'seconds': 20.0, 'result': {'loss': 0.5} | dict.fromkeys(keys, 56.0)}
    passes = {setting: [0.4, 0.4] for setting in acceleration_plan.SETTING_NAMES}
    timed = {
        part: {'images': 4, 'detector': passes, 'backbone': passes}
        for part in acceleration_plan.PARTS
    }
    counts = {part: {'images': 4, 'instances': 29} for part in acceleration_plan.PARTS}
    return acceleration_report.summarise(tasks, timed, counts, seeds)


SUMMARIES = {
    'nuclei': nuclei_summary,
    'digits': digits_summary,
    'detection': lambda: aerial_summary('detection'),
    'rotated': lambda: aerial_summary('rotated'),
    'segmentation': segmentation_summary,
    'acceleration': acceleration_summary,
}


def write_results(work, names=tuple(SECTIONS)):
    """What demos leave behind; pictures are of one colour."""
    for name in names:
        section = SECTIONS[name]
        folder = work / section.folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / section.summary).write_text(json.dumps(SUMMARIES[name]()))
        for file in section.pictures:
            Image.new('RGB', (64, 32), '#3070b0').save(folder / file)
        write_status(folder)


# ---------------------------------------------------------------------------------------- the page


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or '') for key, value in attrs]
        if tag not in ('meta', 'img', 'br', 'hr'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def make(work):
    text = page.make_page(work, COMMANDS, LICENCES)
    return text, Reader(text)


def states(text):
    return re.findall(r'class="state [\w-]+">([\w ]+)<', text)


def test_page_needs_nothing_else(tmp_path):
    write_results(tmp_path)
    text, reader = make(tmp_path)
    assert reader.open == [] and text.startswith('<!doctype html>')
    assert not {'script', 'link', 'iframe', 'object', 'embed', 'video'} & set(reader.tags)
    for _, key, value in reader.attributes:
        assert not key.startswith('on')
        if key in ('src', 'href', 'srcset'):
            assert value.startswith(('data:image/', '#')), value[:60]
    style = text[text.index('<style>') : text.index('</style>')]
    assert 'url(' not in style and '@import' not in style and '@font-face' not in style
    assert 'prefers-color-scheme: dark' in style and 'max-width: 640px' in style
    ids = [value for _, key, value in reader.attributes if key == 'id']
    assert len(ids) == len(set(ids))
    links = {value[1:] for _, key, value in reader.attributes if key == 'href'}
    assert links == set(SECTIONS) <= set(ids)
    assert ('meta', 'name', 'viewport') in reader.attributes
    assert all(value for tag, key, value in reader.attributes if (tag, key) == ('img', 'alt'))


def test_page_shows_every_result(tmp_path):
    write_results(tmp_path)
    (tmp_path / 'all.json').write_text(
        json.dumps(dict(seconds=2400.0, finished='2026-01-01 10:00:00', jobs=2, smoke=False))
    )
    text, reader = make(tmp_path)
    assert states(text) == ['complete'] * len(SECTIONS)
    assert reader.tags.count('img') == sum(len(s.pictures) for s in SECTIONS.values())
    for said in (
        'took 0:40:00 after set-up, 2 tasks at a time',
        'box mAP 0.585, mask mAP 0.622',
        '1:02:05',  # of nuclei
        'linear probe, 10 labels per class: 79.0 %, from random weights 50.0 %',
        'AP50 7.2 (Faster R-CNN), 7.2 (DINO)',
        'AP50 7.2 (Rotated Faster R-CNN)',
        'mIoU 76.5 (UPerNet)',
        'mask AP50 76.5 (MaskDINO, instances)',
        'mask mAP 56.0 (dense), 56.0 (all)',
        '<td class="n">76.5</td>',
        '<td>windows</td>',
        describe_machine(used_gpu=False)['cpu'],
    ):
        assert said in text, said
    for name in SECTIONS:
        assert f'python {name}' in text and f'bash tools/demo.sh {name}' in text
    assert 'Smoke run' not in text
    assert text.count('Data: stardist 0.9.2 (BSD-3-Clause).') == 3  # of nuclei
    assert text.count('Data: deepforest 2.1.0 (MIT).') == 2  # of trees


def test_smoke_run_says_that_its_figures_mean_nothing(tmp_path):
    write_results(tmp_path, ['digits'])
    (tmp_path / 'all.json').write_text(
        json.dumps(dict(seconds=60.0, finished='2026-01-01 10:00:00', jobs=1, smoke=True))
    )
    assert 'Smoke run' in make(tmp_path)[0]


def test_page_of_some_demos(tmp_path):
    write_results(tmp_path, ['nuclei', 'segmentation'])
    write_status(tmp_path / 'segmentation', failed='upernet failed; log:\n   | <b>&"wrong"')
    write_status(tmp_path / 'detection', failed='it needs pretraining, which failed')
    write_status(tmp_path / 'rotated', skipped='needs mmrotate')
    (tmp_path / 'loss_curves.png').unlink()
    text, reader = make(tmp_path)
    assert reader.open == []
    assert states(text) == ['complete', 'not run', 'failed', 'left out', 'failed', 'not run']
    assert '&lt;b&gt;&amp;' in text and '<b>' not in text and 'needs mmrotate' in text
    # An earlier result is shown as such.
    assert text.count('of an earlier') == 1 and 'mIoU 76.5 (UPerNet)' in text
    shown = len(SECTIONS['nuclei'].pictures) - 1 + len(SECTIONS['segmentation'].pictures)
    assert reader.tags.count('img') == shown
    assert '&lt;as is&gt;' in text  # of a licence


def test_page_of_nothing_names_the_machine(tmp_path):
    text, _ = make(tmp_path)
    assert states(text) == ['not run'] * len(SECTIONS)
    assert describe_machine(used_gpu=False)['cpu'] in text


def test_machines_are_told_apart():
    here = describe_machine(used_gpu=False)
    other = {**here, 'cpu': 'other', 'gpu': 'H200'}
    found = page.group_machines({'a': here, 'b': other, 'c': here})
    assert [names for _, names in found] == [['a', 'c'], ['b']]
    assert 'other' in found[1][0] and 'H200' in found[1][0]


@pytest.mark.parametrize(
    ('name', 'summary', 'options'),
    [
        ('nuclei', nuclei_summary, ''),
        ('nuclei', lambda: {**nuclei_summary(), 'compare': {'scratch': {}}}, ' --compare'),
        ('digits', digits_summary, ' --seeds 1'),
        ('digits', lambda: digits_summary(SEEDS), ''),
        ('detection', lambda: aerial_summary('detection'), ''),
        ('detection', lambda: aerial_summary('detection', compare=True), ' --compare'),
        ('segmentation', lambda: segmentation_summary(compare=True), ' --compare'),
        ('acceleration', lambda: acceleration_summary((0, 1)), ' --seeds 2'),
    ],
)
def test_command_that_gives_such_results(name, summary, options):
    assert SECTIONS[name].options(summary()) == options


def test_commands_are_those_of_what_was_run():
    commands = {'a-seed0': 'zero', 'a-seed1': 'one', 'b-seed0': 'other'}
    assert page.chosen(commands, {'a-seed0/train': 1, 'b-seed0/train': 1}) == ['zero', 'other']
    assert page.chosen(commands, None) == list(commands.values())


def test_pictures_are_made_small_and_kept_readable(tmp_path):
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 2400)[None, :, None] + rng.normal(0, 9, (120, 2400, 3))
    path = tmp_path / 'large.png'
    Image.fromarray(ramp.clip(0, 255).astype(np.uint8)).save(path)
    picture = page.embed(path, 'a ramp')
    kind, _, data = picture.source.partition(';base64,')
    content = base64.b64decode(data)
    image = Image.open(io.BytesIO(content)).convert('RGB')
    assert kind == 'data:image/webp' and image.size == (picture.width, picture.height)
    assert image.size == (page.MAX_WIDTH, 90) and len(content) < path.stat().st_size / 4
    found = np.asarray(image, float).mean(axis=(0, 2))
    assert np.abs(found - np.linspace(0, 255, page.MAX_WIDTH)).max() < 8

    Image.fromarray(rng.random((40, 40)) < 0.5).save(tmp_path / 'small.png')  # a bit a pixel
    small = page.embed(tmp_path / 'small.png', 'nothing')
    content = base64.b64decode(small.source.partition(';base64,')[2])
    assert small.source.startswith('data:image/png') and (small.width, small.height) == (40, 40)
    assert content == (tmp_path / 'small.png').read_bytes()


# ------------------------------------------------------------------------------------- the command


def test_command_writes_the_page(tmp_path, capsys):
    with pytest.raises(SystemExit, match='no results of any demo'):
        demo_html.main(['--work-dir', str(tmp_path)])
    write_results(tmp_path, ['digits'])
    assert demo_html.main(['--work-dir', str(tmp_path)]) == 0
    assert capsys.readouterr().out == f'== {tmp_path}/report.html\n'
    text = (tmp_path / 'report.html').read_text()
    assert 'python tools/demo_digits_chain.py photographs pretrain --work-dir' in text
    assert 'seed1' not in text  # was not run
    for package in ('stardist', 'scikit-image', 'scikit-learn', 'deepforest'):
        assert package in text
    assert str(ROOT) not in text and sys.prefix not in text


def test_commands_name_scripts_and_configs_that_exist(tmp_path):
    commands = demo_html.all_commands(ROOT / 'work_dirs/demo')
    assert list(commands) == list(SECTIONS)
    for of_demo in commands.values():
        for command in of_demo.values():
            words = command.split()
            assert words[0] == 'python' and (ROOT / words[1]).is_file()
            assert all((ROOT / word).is_file() for word in words if word.startswith('configs/'))
            assert str(ROOT) not in command
