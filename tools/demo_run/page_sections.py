"""What the page of all demos says about each of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from . import (
    acceleration_report,
    aerial_report,
    digits_report,
    results,
    segmentation_report,
)
from .aerial_plan import STUDIES
from .chains import SEEDS
from .segmentation_plan import MODELS
from .values import figure


@dataclass(frozen=True)
class Section:
    """A demo on the page.

    Args:
        title: For people.
        text: What was done.
        summary: The file of its results, in its folder.
        table: Markdown of what that file holds.
        headline: The main result in a few words.
        options: Options of `tools/demo.sh` that give such a summary.
        pictures: Captions by file.
        data: Data sets that its pictures show, or its table is of.
        folder: Of its results, in that of all demos.
    """

    title: str
    text: str
    summary: str
    table: Callable[[dict], str]
    headline: Callable[[dict], str]
    options: Callable[[dict], str]
    pictures: Mapping[str, str]
    data: tuple[str, ...]
    folder: str


def compares(summary: dict) -> str:
    """The option with which a study trains from scratch as well."""
    return ' --compare' if summary.get('compare') or summary.get('pretrained_minus_scratch') else ''


def seeds(summary: dict) -> str:
    """The option that sets how many seeds a study has, unless it is the default."""
    number = len(summary['seeds'])
    return '' if number == len(SEEDS) else f' --seeds {number}'


def nuclei_headline(summary: dict) -> str:
    return f'box mAP {summary["bbox_mAP"]:.3f}, mask mAP {summary["segm_mAP"]:.3f}'


def digits_headline(summary: dict) -> str:
    rows = {
        (r['start'], r['labels_per_class']): r for r in summary['rows'] if r['method'] == 'linear'
    }
    ours, theirs = (rows[start, '10']['mean'] for start in ('digits', 'scratch'))
    return f'linear probe, 10 labels per class: {ours:.1f} %, from random weights {theirs:.1f} %'


def aerial_headline(study: str) -> Callable[[dict], str]:
    def headline(summary: dict) -> str:
        names = {name: detector.label for name, detector in STUDIES[study].detectors.items()}
        rows = [row for row in summary['rows'] if row['start'] == 'pretrained']
        return 'AP50 ' + ', '.join(f'{figure(r["AP50"])} ({names[r["detector"]]})' for r in rows)

    return headline


def segmentation_headline(summary: dict) -> str:
    said = []
    for row in summary['rows']:
        if row['start'] == 'pretrained':
            model = MODELS[row['model']]
            metric = 'mIoU' if model.semantic else 'mask AP50'
            said.append(f'{metric} {figure(row[metric])} ({model.label})')
    return ', '.join(said)


def acceleration_headline(summary: dict) -> str:
    rows = {(r['trained'], r['evaluated']): r for r in summary['rows'] if r['part'] == 'tiles'}
    return 'mask mAP ' + ', '.join(
        f'{figure(rows[name, name]["segm_mAP"])} ({name})' for name in ('dense', 'all')
    )


SECTIONS = {
    'nuclei': Section(
        'Nuclei: from pre-training to Mask R-CNN',
        'A small iTPN is pre-trained on crops of photographs: pixels and features of masked '
        'patches are predicted through the feature pyramid. Mask R-CNN, with backbone and pyramid '
        'from there, is fine-tuned on tiles of a picture of cell nuclei and evaluated on a part '
        'of it that no training has seen.',
        'summary.json',
        results.make_table,
        nuclei_headline,
        compares,
        {
            'reconstructions.png': 'What the pre-trained model makes of pictures with 75 % of the '
            'patches masked.',
            'detections.png': 'The held-out region: ground truth above, predictions below.',
            'loss_curves.png': 'Losses and AP.',
        },
        ('photographs', 'nuclei'),
        '',
    ),
    'digits': Section(
        'Digits: what does pre-training bring?',
        'A very small Fast-iTPN classifies handwritten digits: from random weights, and after '
        'pre-training on photographs or on the training digits without their labels.',
        'results.json',
        digits_report.make_table,
        digits_headline,
        seeds,
        {'digits.png': 'Top-1 over the number of labels.'},
        ('digits',),
        'digits',
    ),
    'detection': Section(
        'Trees: boxes',
        'Faster R-CNN and DINO, from the pre-training on photographs, on trees in three aerial '
        'photographs; a fourth one, of another place, is held out. The data are few and the '
        'trainings take minutes: these are no detectors of trees yet.',
        'summary.json',
        lambda summary: aerial_report.make_table(STUDIES['detection'], summary),
        aerial_headline('detection'),
        compares,
        {
            'detections.png': 'Tiles of the held-out photograph.',
            'photograph.png': 'All that was found in it.',
            'curves.png': 'Losses and validation.',
        },
        ('aerial',),
        'detection',
    ),
    'rotated': Section(
        'Trees: oriented boxes',
        'Rotated Faster R-CNN on the same photographs, rotated, in the format of DOTA.',
        'summary.json',
        lambda summary: aerial_report.make_table(STUDIES['rotated'], summary),
        aerial_headline('rotated'),
        compares,
        {
            'detections.png': 'Patches of the held-out photograph.',
            'photograph.png': 'All that was found in it.',
            'curves.png': 'The loss.',
        },
        ('aerial_rotated',),
        'rotated',
    ),
    'segmentation': Section(
        'Nuclei: classes of pixels, and instances',
        'UPerNet and MaskDINO tell background, inside and border of nuclei apart; another MaskDINO '
        'finds every nucleus. All start from the pre-training on photographs.',
        'summary.json',
        segmentation_report.make_table,
        segmentation_headline,
        compares,
        {
            'overlays.png': 'The held-out region: truth, classes and instances.',
            'curves.png': 'Losses and validation.',
        },
        ('nuclei', 'nuclei_semantic'),
        'segmentation',
    ),
    'acceleration': Section(
        'Acceleration: Mask R-CNN with fewer tokens',
        'The Mask R-CNN of nuclei, fine-tuned for half as long, dense and with token migration, '
        'windows and gathering tokens. A dense checkpoint is evaluated with each of them switched '
        'on as well.',
        'results.json',
        acceleration_report.make_table,
        acceleration_headline,
        seeds,
        {'acceleration.png': 'AP and speed of each setting; a point is a seed.'},
        ('nuclei',),
        'acceleration',
    ),
}
