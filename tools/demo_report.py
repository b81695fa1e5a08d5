"""Sum up a run of tools/demo.sh: summary.json, loss_curves.png, detections.png, compare.md.

python tools/demo_report.py [--work-dir work_dirs/demo] [--compare]
"""

import argparse
import json
import sys
import time
from pathlib import Path

START = time.monotonic()  # importing matplotlib is part of the work

from demo_run import pictures, results  # noqa: E402
from demo_run.steps import ROOT, Steps, clock  # noqa: E402

NUCLEI = ROOT / 'data/demo/nuclei'
THRESHOLD = 0.5


def report(work: Path, compare: bool) -> dict:
    """Write all files of the report into `work`; the summary.

    Raises:
        FileNotFoundError: A step was not run.
    """
    annotations = json.loads((NUCLEI / 'annotations/val.json').read_text())
    starts = results.STARTS if compare else {'pretrained': 'fine-tuning'}
    curves = {
        label: results.read_scalars(results.finetune_folder(work, start))
        for start, label in starts.items()
    }
    pretrain, _ = results.read_scalars(work / 'pretrain')
    pictures.draw_loss_curves(pretrain, curves, work / 'loss_curves.png')
    found = json.loads((results.evaluate_folder(work, 'pretrained') / 'val.segm.json').read_text())
    pictures.draw_detections(annotations, found, NUCLEI / 'val', THRESHOLD, work / 'detections.png')
    Steps(work, 1).stamp('report', '', time.monotonic() - START)
    summary = results.summarise(work, annotations, compare)
    table = work / 'compare.md'
    if compare:
        table.write_text(results.compare_table(summary))
    else:
        table.unlink(missing_ok=True)  # of runs that this report does not cover
    (work / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')
    return summary


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'))
    parser.add_argument('--compare', action='store_true', help='also the other two starts')
    args = parser.parse_args(arguments)
    try:
        summary = report(args.work_dir, args.compare)
    except FileNotFoundError as error:
        sys.exit(f'demo_report.py: {error}')
    first, last = summary['pretrain_loss_first'], summary['pretrain_loss_last']
    print(f'pre-training loss   {first:.3f} -> {last:.3f} ({last / first - 1:+.0%})')
    print('held-out region     ' + '  '.join(f'{n} {summary[n]:.3f}' for n in results.METRICS))
    print(f'time after set-up   {clock(summary["demo_seconds"])}')
    if args.compare:
        print(f'\n{results.compare_table(summary)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
