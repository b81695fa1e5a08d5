"""Packaging of itpn_mm: a `build_py` step puts configs and tools where OpenMMLab's `mim` looks."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_ENTRIES = ('configs', 'tools', 'benchmarks', 'model-index.yml')  # tools need benchmarks


def read_version() -> str:
    return re.search(r"__version__ = '(.+)'", (ROOT / 'itpn_mm' / 'version.py').read_text())[1]


def read_requirements(*names: str) -> list[str]:
    lines = [
        line.strip()
        for name in names
        for line in (ROOT / 'requirements' / name).open(encoding='utf8')
    ]
    return [line for line in lines if line and not line.startswith('#')]


class BuildWithMim(build_py):
    """Ship `configs`, `tools` and `model-index.yml` as `itpn_mm/.mim`, by way of `build_lib` only.

    An editable install ships nothing: there the files are found beside the package.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        mim = Path(self.build_lib) / 'itpn_mm' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)  # left by an earlier build of another state
        mim.mkdir(parents=True)
        ignore = shutil.ignore_patterns('__pycache__', '*.pyc')
        for entry in MIM_ENTRIES:
            source = ROOT / entry
            if source.is_dir():
                shutil.copytree(source, mim / entry, ignore=ignore)
            else:
                shutil.copy2(source, mim / entry)


setup(
    name='itpn_mm',
    version=read_version(),
    description='Integrally pre-trained transformer pyramid networks for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(encoding='utf8'),
    long_description_content_type='text/markdown',
    author='The itpn_mm authors',
    license='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=[f'Programming Language :: Python :: 3.{minor}' for minor in (10, 11, 12)],
    packages=find_packages(include=['itpn_mm', 'itpn_mm.*']),
    cmdclass={'build_py': BuildWithMim},
    python_requires='>=3.10,<3.13',
    # Whoever has an OpenMMLab environment keeps it as it is: no version is asked for here, and
    # mmengine, which comes under two names, only in the extras.
    install_requires=['safetensors', 'scipy', 'torch'],
    extras_require={
        'onedl': read_requirements('onedl.txt', 'onedl-mm.txt'),
        'openmmlab': read_requirements('openmmlab.txt', 'openmmlab-mm.txt'),
        'demo': read_requirements('demo.txt'),
        'dev': read_requirements('dev.txt'),
        'teachers': read_requirements('teachers.txt'),
    },
    zip_safe=False,
)
