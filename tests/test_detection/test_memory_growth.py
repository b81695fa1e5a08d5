"""DINO does not take more and more memory as it trains."""

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from tests.resident_memory import ITERATIONS, ResidentMemory, needs_linux
from tests.tiny_configs import ROOT, parse, plain_text, write_coco

pytest.importorskip('mmdet')

pytestmark = pytest.mark.checklist('leak')


@pytest.mark.slow
@needs_linux
def test_resident_memory_of_dino(tmp_path):
    """Images of changing size, in the stock Runner with the demo's small DINO."""
    (path,) = ROOT.glob('configs/detection/dino-4scale_hivit-demo-*.py')
    cfg = Config(parse(path).to_dict())
    write_coco(tmp_path / 'train.json', tmp_path / 'train', ('tree',))
    for part in ('backbone', 'neck'):
        cfg.model[part].init_cfg = None
    loader = cfg.train_dataloader
    loader.update(num_workers=0, persistent_workers=False, batch_size=2)
    loader.sampler = dict(type='InfiniteSampler')
    loader.dataset.update(
        data_root=str(tmp_path), ann_file='train.json', data_prefix=dict(img='train/')
    )
    sizes = [(96 + 16 * i, 96 + 16 * j) for i in range(5) for j in range(5)]
    resize = dict(type='RandomChoiceResize', scales=sizes, keep_ratio=False)
    loader.dataset.pipeline.insert(2, resize)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=ITERATIONS)
    for key in ('val', 'test'):
        cfg[f'{key}_cfg'] = cfg[f'{key}_dataloader'] = cfg[f'{key}_evaluator'] = None
    cfg.param_scheduler = None
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=10 * ITERATIONS)
    cfg.work_dir, cfg.log_level, cfg.randomness = str(tmp_path / 'run'), 'ERROR', dict(seed=0)
    cfg.experiment_name = tmp_path.name
    memory = ResidentMemory()
    with plain_text():
        runner = Runner.from_cfg(cfg)
        runner.register_hook(memory)
        runner.train()
    memory.check('DINO')
