"""The reliability checklist, and the record that a run of the tests writes of it.

A test belongs to a line by `@pytest.mark.checklist('name')`, and leaves the figures it saw there
with the fixture `record_figure`. With `--reliability FILE` a run writes them down, and
`tools/report_reliability.py` lays them out as the table in docs/reliability.md.
"""

import functools
import json
import platform
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import Tensor

# Name of a line -> what has to hold.
LINES = {
    'parity': 'Outputs, gradients and names of parameters are those of the released models',
    'resume': '2N iterations, and N, a kill and N, are bit-equal in losses, parameters, optimizer '
    'and teacher; with 0 and 2 workers',
    'kill': '`kill -9` at 20 random moments of a run: 20 recoveries',
    'atomic': 'A checkpoint is written whole or not at all; the last good one stays; a damaged one '
    'is passed over with a message; a full disk is a clear error',
    'damaged-files': 'Damaged checkpoints: one message with file and cause, never a partial load',
    'safe-loading': 'No code in a checkpoint is run; safetensors there and back bit-equal',
    'ddp': '2 processes of 4 images are 1 process of 8: loss to 1e-6, gradients to 1e-5; the EMA '
    'teacher is equal on all ranks; accumulation 4 x 2 = 1 x 8',
    'fsdp': 'FSDP: checkpoints, full and sharded, load into a plain model bit by bit',
    'deepspeed': 'DeepSpeed ZeRO trains our models by config',
    'amp': 'bfloat16 stays within 2 % of float32 over 100 steps; steps that overflow are skipped '
    'and counted',
    'determinism': 'Two runs are bit-equal over 30 steps, whatever the number of workers',
    'loss-files': 'Committed losses of 20 steps are met exactly on the pinned stack',
    'nonfinite': 'NaN and infinity stop the run, or skip k steps; layer and batch are named and '
    'saved',
    'equivalences': 'Checkpointing, fused attention, compilation, masking of 0 %, migration of '
    '0 %, a single window: each equals the plain path to 1e-5',
    'migration': 'Kept and dropped tokens are a permutation, all come back, and neither padding '
    'nor the order of the batch matters',
    'fuzz-configs': '300 random valid model configs train; 100 invalid ones name the field',
    'fuzz-sizes': '200 image sizes of 16 to 96 pixels',
    'fuzz-checkpoints': '200 checkpoints with random damage: a message, never a partial load',
    'bad-data': 'Broken pictures and annotations: what is skipped is counted and named',
    'layer-decay': 'Learning rates of all parameters are as stated, in classification, detection, '
    'segmentation and rotated detection',
    'no-shared-state': 'No mutable defaults are shared; models pickle and copy; names of '
    'parameters are stable',
    'leak': '500 iterations of DINO and MaskDINO: memory grows by less than 50 MB; no compilation '
    'after 3 shapes',
    'learning': 'Detectors and segmentors learn 8 images by heart',
    'memory': 'Predicted memory is what is measured; checkpointing and half precision save what '
    'they say',
    'export-onnx': 'ONNX Runtime agrees with the model to 1e-4',
    'export-torch': 'torch.export agrees with the model',
    'environments': 'Both stacks pass; the wheel installs and works on its own',
    'security': 'Nothing unpickles foreign data, no shell, pinned dependencies, paths stay put',
}
PACKAGES = (
    *('torch', 'torchvision', 'numpy'),
    *(
        'onedl-mmengine',
        'onedl-mmcv',
        'onedl-mmpretrain',
        'onedl-mmdetection',
        'onedl-mmsegmentation',
    ),
    *('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmsegmentation', 'onedl-mmrotate', 'mmrotate'),
    *('onnx', 'onnxruntime', 'safetensors'),
)


class Record:
    """What became of each line; `path` is where it is written, every minute and when the run ends.

    Processes of pytest-xdist send what they saw with the reports of their tests.
    """

    def __init__(self, path: Path, slow: bool) -> None:
        self.path, self.slow = path, slow
        self.tests = new_counts()  # of the whole run
        self.lines: dict[str, dict[str, Any]] = {}
        self.started = self.written = time.time()

    def line(self, name: str) -> dict[str, Any]:
        """Counts of a line: tests, seconds, random cases of Hypothesis, and its figures."""
        return self.lines.setdefault(name, dict(**new_counts(), cases=0, figures=[]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once: called, or where its fixtures failed or skipped it."""
        if report.when != 'call' and report.passed:
            return
        seen = json.loads(dict(report.user_properties).get('checklist', '{"names": []}'))
        for counts in (self.tests, *map(self.line, seen['names'])):
            counts['seconds'] = round(counts['seconds'] + report.duration, 1)
            if not report.skipped:
                counts[report.outcome] += 1
                continue
            told = isinstance(report.longrepr, tuple)  # else it was expected to fail
            reason = report.longrepr[2].removeprefix('Skipped: ') if told else 'expected to fail'
            counts['skipped'][reason] = counts['skipped'].get(reason, 0) + 1
        for name in seen['names']:
            self.line(name)['cases'] += seen['cases']
            for figure in seen['figures']:
                self.add_figure(name, **figure)
        if time.time() > self.written + 60:
            self.write(finished=False)

    def add_figure(self, name: str, what: str, value: float | int | str, limit: str | None) -> None:
        """Of figures of one name and limit, the one closest to the limit is kept."""
        figures = self.line(name)['figures']
        new = dict(what=what, value=value, limit=limit)
        if new in figures:
            return
        worse = {'<': max, '>': min}.get((limit or ' ')[0])
        for figure in figures:
            numbers = all(isinstance(v, (int, float)) for v in (value, figure['value']))
            if worse and numbers and (figure['what'], figure['limit']) == (what, limit):
                figure['value'] = worse(figure['value'], value)
                return
        figures.append(new)

    def pytest_sessionfinish(self) -> None:
        self.write(finished=True)

    def write(self, finished: bool) -> None:
        """Write the file; lines without a test in this run are in it too."""
        versions = {}
        for package in PACKAGES:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                continue
        record = dict(
            date=time.strftime('%Y-%m-%d', time.gmtime(self.started)),
            python=platform.python_version(),
            versions=versions,
            slow=self.slow,
            finished=finished,
            tests=self.tests,
            lines={name: dict(text=text, **self.line(name)) for name, text in LINES.items()},
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(record, indent=1) + '\n')
        self.written = time.time()


def new_counts() -> dict[str, Any]:
    return dict(passed=0, failed=0, skipped={}, seconds=0.0)


# What the test that runs leaves behind, if its figures are wanted.
RUNNING: list[dict[str, Any]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--reliability', metavar='FILE', help='write the reliability checklist there')


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line('markers', 'checklist(name): the line of tests/checklist.py')
    path = config.getoption('--reliability')
    if path and not hasattr(config, 'workerinput'):
        slow = 'not slow' not in config.option.markexpr
        config.pluginmanager.register(Record(Path(path), slow), 'reliability')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a marker that names no line."""
    for item in items:
        for name in names_of(item):
            if name not in LINES:
                raise pytest.UsageError(
                    f'{item.nodeid}: the checklist has no line {name!r}; it has {sorted(LINES)}'
                )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    """Gather what a test leaves behind for its lines."""
    if not item.config.getoption('--reliability'):
        return (yield)
    RUNNING.append(dict(names=names_of(item), cases=0, figures=[]))
    try:
        return (yield)
    finally:
        RUNNING.pop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    """Send it along with the report, which may go to another process."""
    report = yield
    if RUNNING:
        report.user_properties.append(('checklist', json.dumps(RUNNING[-1], default=float)))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """Count the random cases of a Hypothesis test."""
    handle = getattr(getattr(item, 'obj', None), 'hypothesis', None)
    if handle is None or not RUNNING:
        return (yield)
    inner, seen = handle.inner_test, RUNNING[-1]

    @functools.wraps(inner)
    def counted(*args: Any, **kwargs: Any) -> Any:
        inner(*args, **kwargs)
        seen['cases'] += 1

    handle.inner_test = counted
    try:
        return (yield)
    finally:
        handle.inner_test = inner


def names_of(item: pytest.Item) -> list[str]:
    """The lines a test belongs to; it may have several markers, of itself and its module."""
    return list(dict.fromkeys(mark.args[0] for mark in item.iter_markers('checklist')))


@pytest.fixture
def record_figure(request: pytest.FixtureRequest) -> Any:
    """A function that leaves a figure beside the lines of the test: `(what, value, limit=None)`.

    `value` is a number, or text where one number does not say it; `limit` is the pass mark in
    words, such as '<= 1e-5': of several values of one `what` the worst is kept. The test itself
    asserts.
    """
    assert names_of(request.node), 'a test that records a figure needs a checklist marker'
    return note_figure


def note_figure(what: str, value: float | int | str, limit: str | None = None) -> None:
    """As `record_figure`, for helpers of tests and for tests of random cases."""
    if RUNNING:
        RUNNING[-1]['figures'].append(dict(what=what, value=value, limit=limit))


def note_difference(
    what: str, found: Iterable['Tensor'], expected: Iterable['Tensor'], limit: str
) -> None:
    """Note the largest max |a - b| / max |b| of pairs of tensors."""
    if not RUNNING:
        return
    for a, b in zip(found, expected, strict=True):
        difference, size = ((a - b).abs().max().item(), b.abs().max().item())
        note_figure(what, difference / size if difference else 0.0, limit)
