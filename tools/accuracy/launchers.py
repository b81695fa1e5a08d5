"""The commands that run the stock test script: here, by torchrun, or by Slurm."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.elastic.utils.distributed import get_free_port

TOOLS = Path(__file__).resolve().parents[1]
KINDS = ('none', 'pytorch', 'slurm')


@dataclass(frozen=True)
class Launcher:
    """How a row is run.

    Args:
        kind: Of the job launcher, as mmengine calls them: `none` (one process), `pytorch`
            (torchrun on this machine) or `slurm` (srun).
        processes: One a GPU, or, where there is none, on the CPU.
    """

    kind: str = 'none'
    processes: int = 1

    def command(
        self, name: str, config: Path, checkpoint: Path, work_dir: Path, options: Sequence[str]
    ) -> list[str]:
        """Command line of a test.

        Args:
            name: Of the job, for Slurm.
            config: To be tested.
            checkpoint: To be tested.
            work_dir: Where mmengine writes.
            options: Of `--cfg-options`, `KEY=VALUE`.
        """
        files = [str(config), str(checkpoint)]
        rest = ['--work-dir', str(work_dir), *(['--cfg-options', *options] if options else [])]
        test = [sys.executable, '-u', str(TOOLS / 'test.py'), *files]
        if self.kind == 'pytorch':
            return ['bash', str(TOOLS / 'dist_test.sh'), *files, str(self.processes), *rest]
        if self.kind == 'slurm':
            return [*self._srun(name), *test, '--launcher', 'slurm', *rest]
        return [*test, *rest]

    def environment(self) -> Mapping[str, str]:
        """Variables of a test: those of this process, and a port of its own."""
        port = str(get_free_port())
        env = {**os.environ, 'PYTHON': sys.executable, 'PYTHONUNBUFFERED': '1'}
        if self.kind == 'slurm' and 'SLURM_CPUS_PER_TASK' in env:
            # srun no longer takes this over from sbatch.
            env.setdefault('SRUN_CPUS_PER_TASK', env['SLURM_CPUS_PER_TASK'])
        return {**env, 'PORT': port, 'MASTER_PORT': port}

    def _srun(self, name: str) -> list[str]:
        """srun with the variables of `tools/slurm_train.sh`; in a job, what that was given."""
        env, command = os.environ, ['srun', f'--ntasks={self.processes}', '--kill-on-bad-exit=1']
        if 'SLURM_JOB_ID' not in env:
            per_node = min(int(env.get('GPUS_PER_NODE', 8)), self.processes)
            command += [f'--partition={env["PARTITION"]}'] if env.get('PARTITION') else []
            command += [
                f'--job-name={name}',
                f'--ntasks-per-node={per_node}',
                f'--gres=gpu:{per_node}',
                f'--cpus-per-task={env.get("CPUS_PER_TASK", 5)}',
            ]
        return [*command, *shlex.split(env.get('SRUN_ARGS', ''))]
