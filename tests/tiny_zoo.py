"""Model indices for the tests of tools/benchmark_accuracy.py: of texts, and of tiny models.

Configs look for their data where the shipped ones do, so that the tool has to find them elsewhere.
"""

import json
import sys
from pathlib import Path

import torch
import yaml
from mmengine.config import Config

from .tiny_configs import ROOT, _replace_root, shrink
from .tiny_predictors import Trained

sys.path.insert(0, str(ROOT / 'tools'))

from accuracy.data import DATA_ROOTS

REAL = {
    'imagenet': 'classification/hivit-tiny-p16_itpn-pixel-300e-pre_32xb32-amp-coslr-100e_in1k',
    'coco': 'detection/mask-rcnn_hivit-base-itpn-pixel_tpn_32xb2-amp-ms-crop-1x_coco',
    'ade20k': 'segmentation/upernet_hivit-base-itpn-pixel_tpn_8xb2-amp-160k_ade20k-512x512',
    'dota': 'rotated_detection/rotated-faster-rcnn-le90_fastitpn-base-itpn-clip-l_tpn_8xb1-1x_dota',
}
FOLDERS = dict(imagenet='classes', coco='instances', ade20k='segments', dota='rotated')

# Texts of configs that nobody builds.
COCO = """
default_scope = 'mmdet'
model = dict(type='Nothing')
test_dataloader = dict(batch_size=2, dataset=dict(
    type='CocoDataset', data_root='data/coco/', ann_file='annotations/val.json',
    data_prefix=dict(img='val/'),
    pipeline=[dict(type='LoadImageFromFile'), dict(type='mmdet.Resize', scale=(1333, 800))]))
test_evaluator = [
    dict(type='CocoPanopticMetric', seg_prefix='data/coco/annotations/val/'),
    dict(type='CocoMetric', ann_file='data/coco/annotations/val.json')]
"""
ADE = """
default_scope = 'mmseg'
model = dict(test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)))
test_dataloader = dict(dataset=dict(
    type='ADE20KDataset', data_root='data/ade/ADEChallengeData2016',
    data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
    pipeline=[dict(type='Resize', scale=(2048, 512))]))
test_evaluator = dict(type='IoUMetric')
"""
TRAINING = "default_scope = 'mmpretrain'\ntest_dataloader = None\n"
TEXTS = {
    'small_coco': (COCO, 'detection', {'box AP (paper)': 53.0, 'mask AP (paper)': 46.5}),
    'small_coco-384px': (COCO, 'detection', {}),
    'large_coco': (COCO, 'detection', {'box AP (paper)': 55.6}),
    'small_ade': (ADE, 'segmentation', {'mIoU (paper)': 53.5}),
    'small_in21k': (TRAINING, 'classification', {}),
    'small_pretraining': (TRAINING, 'pretraining', {}),
}
# Stands in for tools/test.py: a checkpoint holds what is to be measured, or an error.
TEST = """
import json, pathlib, sys, time
config, checkpoint, _, work_dir = [a for a in sys.argv[1:] if a not in ('--launcher', 'slurm')][:4]
text = pathlib.Path(checkpoint).read_text()
with pathlib.Path(checkpoint).with_suffix('.calls').open('a') as calls:
    calls.write(json.dumps(sys.argv[1:]) + '\\n')
print('    GPU 0,1: Some Accelerator')
print('INFO - Epoch(test) [1/2]  eta: 0:00:01', flush=True)
if text == 'wait':
    time.sleep(100)
if not text.startswith('{'):
    print('Traceback (most recent call last):')
    sys.exit(text)
folder = pathlib.Path(work_dir) / '20260101'
folder.mkdir(parents=True)
(folder / '20260101.json').write_text(text)
"""


def write_texts(folder: Path) -> Path:
    """An index of `TEXTS`, data for them in `folder/coco` and `folder/ade`, and the stand-in."""
    models = {}
    for name, (text, task, figures) in TEXTS.items():
        models.setdefault(task, []).append(_model(name, task, figures))
        path = folder / 'configs' / task / f'{name}.py'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path in ('coco/annotations/val', 'coco/val', 'tools', 'checkpoints'):
        (folder / path).mkdir(parents=True)
    for path in ('images', 'annotations'):
        (folder / 'ade' / path / 'validation').mkdir(parents=True)
    (folder / 'coco/annotations/val.json').touch()
    (folder / 'tools/test.py').write_text(TEST)
    return _write_index(folder, models)


def write_models(folder: Path, datasets: tuple[str, ...]) -> tuple[Path, list[str]]:
    """Tiny models of shipped configs, with the metafiles' own figures and random weights.

    Returns:
        The index, and the command line that names data and checkpoints.
    """
    models, roots, checkpoints = {}, [], folder / 'checkpoints'
    checkpoints.mkdir()
    for dataset in datasets:
        task, name = REAL[dataset].split('/')
        metafile = yaml.safe_load((ROOT / f'configs/{task}/metafile.yml').read_text())
        models[task] = [model for model in metafile['Models'] if model['Name'] == name]
        cfg = shrink(Config.fromfile(ROOT / f'configs/{REAL[dataset]}.py'), name, folder / dataset)
        cfg.log_level = 'INFO'
        root = folder / dataset / FOLDERS[dataset]
        for part in ('test_dataloader', 'test_evaluator'):
            cfg[part] = _replace_root(cfg.to_dict()[part], str(root), DATA_ROOTS[dataset])
        classes = cfg.test_dataloader.dataset.get('metainfo', {}).get('classes', ())
        trained = Trained(folder / dataset / 'model', cfg, classes)
        checkpoint = torch.load(trained.checkpoint, weights_only=True)
        if dataset == 'imagenet':  # sure of the first of its classes
            checkpoint['state_dict']['head.fc.bias'][0] = 1000.0
        torch.save(checkpoint, checkpoints / f'{name}_random.pth')
        config = folder / models[task][0]['Config']
        config.parent.mkdir(parents=True)
        Path(trained.config).rename(config)
        roots.append(f'{dataset}={root}')
    index = _write_index(folder, models)
    return index, ['--data-root', *roots, '--checkpoints', str(checkpoints)]


def _model(name: str, task: str, figures: dict) -> dict:
    results = [dict(Task=task, Dataset='some', Metrics=figures)] if figures else []
    meta = {'Source of Results': 'paper, Table V'} if figures else {}
    return dict(Name=name, Config=f'configs/{task}/{name}.py', Metadata=meta, Results=results)


def _write_index(folder: Path, models: dict[str, list[dict]]) -> Path:
    metafiles = [f'configs/{task}/metafile.yml' for task in models]
    for path, content in zip(metafiles, models.values(), strict=True):
        (folder / path).write_text(yaml.safe_dump(dict(Models=content)))
    index = folder / 'model-index.yml'
    index.write_text(yaml.safe_dump(dict(Import=metafiles)))
    return index


def measured(time: float = 0.5, **metrics: float) -> str:
    """What mmengine writes at the end of a test."""
    return json.dumps({**metrics, 'data_time': time / 5, 'time': time})
