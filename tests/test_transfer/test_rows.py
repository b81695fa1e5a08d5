"""Rows of the study through the stock runner, on pictures of noise."""

import json

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image

from benchmarks.transfer import chain as single
from benchmarks.transfer import configs
from benchmarks.transfer.plan import PRETRAININGS, Chain, chains
from benchmarks.transfer.results import rows_of
from itpn_mm.registry import MODELS


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A fold and the pool, with few pictures, and short trainings."""
    rng = np.random.default_rng(0)

    def save(path, labels=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (128, 128) if labels else (128, 128, 3)
        Image.fromarray(
            rng.integers(1 if labels else 0, 4 if labels else 256, shape, np.uint8)
        ).save(path)

    for i in range(16):
        save(tmp_path / 'data' / 'pool' / 'cat' / f'{i}.png')
        save(tmp_path / 'data' / 'right' / 'pool' / 'nuclei' / f'{i}.png')
    for task in ('nuclei', 'trees'):
        for split in ('train', 'val'):
            root, images, boxes = tmp_path / 'data' / 'right' / task, [], []
            for i in range(2):
                save(root / split / f'{i}.png')
                save(root / 'classes' / split / f'{i}.png', labels=True)
                images.append(dict(id=i + 1, file_name=f'{i}.png', width=128, height=128))
                polygon = [20, 20, 60, 20, 60, 70, 20, 70]
                boxes.append(
                    dict(
                        id=i + 1,
                        image_id=i + 1,
                        category_id=1,
                        bbox=[20, 20, 40, 50],
                        area=2000,
                        iscrowd=0,
                        segmentation=[polygon],
                    )
                )
            name = 'nucleus' if task == 'nuclei' else 'tree'
            document = dict(categories=[dict(id=1, name=name)], images=images, annotations=boxes)
            (root / f'{split}.json').write_text(json.dumps(document))
    monkeypatch.setattr(configs, 'DATA', tmp_path / 'data')
    monkeypatch.setattr(configs, 'ITERATIONS', 2)
    monkeypatch.setattr(configs, 'LENGTHS', dict.fromkeys(configs.LENGTHS, 2))
    monkeypatch.setattr(configs, 'LABELLED', dict.fromkeys(configs.LENGTHS))
    monkeypatch.setattr(configs, 'BATCH', 8)
    return tmp_path


def run(chain, tasks, data):
    work = data / 'work'
    single.run_chain(chain, tasks, rows_of(chain, tasks), work)
    return {
        name: json.loads((work / 'rows' / f'{name}.json').read_text())
        for name in rows_of(chain, tasks)
    }


def test_a_chain_and_its_repetition(data):
    chain, tasks = Chain(0, 'itpn', 'integral'), ('classes',)
    rows = run(chain, tasks, data)
    first = 'itpn/integral/seed0/pretrain'
    assert list(rows[first]['losses']) == [
        *('loss', 'loss_pixel', 'loss_mfm_p4', 'loss_mfm_p8', 'loss_mfm_p16')
    ]
    loaded = rows['itpn/integral/seed0/classes']
    assert [point[0] for point in loaded['curve']] == [1, 2]
    assert 0 <= loaded['score'] <= 100
    # The pyramid makes a difference, so it was loaded in one of them only.
    assert loaded['loss'] != rows['itpn/integral/seed0/classes-random-pyramid']['loss']
    assert single.run_again('itpn/integral/seed0/classes', rows, data / 'again') == []
    loaded['score'] += 1e-9
    [difference] = single.run_again('itpn/integral/seed0/classes', rows, data / 'again')
    assert difference.startswith('itpn/integral/seed0/classes: score was')


def test_only_what_is_missing_is_run(data):
    chain = Chain(0, 'itpn', 'none')
    single.run_chain(chain, ('classes',), [], data / 'work')
    single.run_chain(chain, ('classes',), rows_of(chain, ('classes',)), data / 'work', until=0.0)
    assert not (data / 'work').exists()


@pytest.mark.slow
@pytest.mark.parametrize('family', configs.BACKBONES)
def test_all_tasks(family, data):
    tasks = ('classes', 'instances', 'trees')
    rows = run(Chain(0, family, 'mim'), tasks, data)
    assert len(rows) == 4


@pytest.mark.parametrize(
    'chain',
    [c for c in chains() if c.seed == 0 and c.pretraining not in ('none', 'teacher')],
    ids=lambda chain: chain.name,
)
def test_every_pretraining_trains(chain):
    """All parts have gradients, and the options of the plan are in the model."""
    import torch

    init_default_scope('mmpretrain')
    model = MODELS.build(configs.pretraining(chain).model)
    if model.teacher is not None:
        model.teacher.update_parameters(model.backbone)
    images = torch.randn(2, 3, configs.IMG_SIZE, configs.IMG_SIZE)
    losses = model.loss(images)
    assert ('loss_mfm_p4' in losses) == (model.mfm_head is not None)
    sum(losses.values()).backward()
    names = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not [name for name in names if not name.startswith('teacher')]
    options = PRETRAININGS[chain.pretraining].options
    weight = options.get('model.mfm_head.loss_weight', 0.3)
    assert model.mfm_head is None or model.mfm_head.loss_weight == weight
