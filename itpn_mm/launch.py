"""Hands a config and its arguments to the stock script of the OpenMMLab package it belongs to."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config, DictAction

from .engine.config_paths import check_config
from .hosts import describe_distributions, is_installed

SCOPES = ('mmpretrain', 'mmdet', 'mmseg', 'mmrotate')
CONFIG_SUFFIXES = ('.py', '.json', '.yaml', '.yml')


def find_stock_script(scope: str, name: str) -> Path:
    """Return the path of the script `name` that the package `scope` ships, without importing it.

    Raises:
        ValueError: `scope` is not one of `SCOPES`.
        ModuleNotFoundError: The package, or the script in it, is not there.
    """
    if scope not in SCOPES:
        raise ValueError(f'`default_scope` must be one of {SCOPES}, but the config says {scope!r}')
    if not is_installed(scope):
        raise ModuleNotFoundError(
            f'the config belongs to {scope}, which is not installed; install '
            f'{describe_distributions(scope)}'
        )
    package = Path(find_spec(scope).origin).parent
    # An installed package, or a clone of it on the path.
    candidates = [package / '.mim' / 'tools' / name, package.parent / 'tools' / name]
    for path in candidates:
        if path.is_file():
            return path
    raise ModuleNotFoundError(
        f'{scope} is installed in {package} without `tools/{name}`; install the released '
        f'{describe_distributions(scope)}'
    )


def read_config(argv: list[str]) -> Config:
    """Read the config named in the command line `argv`, with its `--cfg-options` merged in.

    Raises:
        ValueError: No argument names a config.
        FileNotFoundError: The config does not exist.
    """
    # The stock scripts take it wherever it stands; `key=value` belongs to `--cfg-options`.
    names = (a for a in argv if a.endswith(CONFIG_SUFFIXES) and '=' not in a)
    path = next(names, None)
    if path is None:
        raise ValueError(f'expected a config, a file ending in {CONFIG_SUFFIXES}, but got {argv}')
    if not Path(path).is_file():
        raise FileNotFoundError(
            f'the config {path!r} does not exist; its path is from {Path.cwd()}'
        )
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    options = parser.parse_known_args(argv)[0].cfg_options
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(options or {})
    return cfg


def join_processes_on_cpu(cfg: Config) -> list[str]:
    """Join the processes of `torchrun` by gloo on a machine without a GPU; else do nothing.

    mmengine, told to launch with `pytorch`, selects a CUDA device and names one to
    DistributedDataParallel, both of which fail there. It leaves a process group that exists alone,
    and the device to the config.

    Returns:
        The arguments of the stock script that this asks for.
    """
    if 'RANK' not in os.environ or torch.cuda.is_available():
        return []
    torch.distributed.init_process_group('gloo')
    wrapper = {
        'type': 'MMDistributedDataParallel',
        'broadcast_buffers': False,
        'find_unused_parameters': cfg.get('find_unused_parameters', False),
        **(cfg.get('model_wrapper_cfg') or {}),
        'device_ids': None,
    }
    return ['--cfg-options', *(f'model_wrapper_cfg.{key}={wrapper[key]}' for key in wrapper)]


def settle_resume(cfg: Config, argv: list[str]) -> list[str]:
    """What `--resume` without a file needs besides: `load_from` counts where nothing is resumed.

    `--resume auto` is the same, where the stock script takes a file. Two of these scripts forget
    `load_from` even if there is no checkpoint yet, and two resume from that file even if there is
    one. As `start_from` it is left to `itpn_mm.PreflightHook`, with which all processes agree.

    Returns:
        Further arguments of the stock script.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--resume', nargs='?', const='auto')
    value = parser.parse_known_args(argv)[0].resume
    # After the `--resume` of mmseg and mmrotate, which takes no value, the config may stand.
    without_file = value == 'auto' or (value or '').endswith(CONFIG_SUFFIXES)
    if not without_file or not cfg.get('load_from'):
        return []
    return ['--cfg-options', 'load_from=None', f'start_from={cfg.load_from}']


def hand_over(name: str, mode: str, argv: list[str]) -> None:
    """Check the config in `argv`, then run the stock script on the very same arguments.

    Only several processes on a CPU need more, see `join_processes_on_cpu`, and some runs that
    resume, see `settle_resume`.

    Args:
        name: Its file name, `train.py` or `test.py`.
        mode: `train` or `test`, what to check the config for.
        argv: The arguments after the script's own name.
    """
    try:
        cfg = read_config(argv)
        script = find_stock_script(cfg.get('default_scope'), name)
        check_config(cfg, mode)
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        sys.exit(f'{name}: {error}')
    sys.argv = [str(script), *argv, *settle_resume(cfg, argv), *join_processes_on_cpu(cfg)]
    sys.path[0] = str(script.parent)  # as if Python had been started on it
    runpy.run_path(str(script), run_name='__main__')
