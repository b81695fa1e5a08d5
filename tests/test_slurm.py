"""tools/slurm_train.sh, with an `srun` and a `scontrol` that note what they are asked for."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / 'tools' / 'slurm_train.sh'
# Notes its arguments and the environment, then does what FAKE_SRUN says.
SRUN = f"""#!{sys.executable}
import json, os, sys
with open(os.environ['NOTES'] + '/srun.json', 'w') as file:
    json.dump(dict(argv=sys.argv[1:], env=dict(os.environ)), file)
command = sys.argv[1:]
while command[0].startswith('--'):
    command.pop(0)
what = os.environ.get('FAKE_SRUN', 'exit 0')
os.execvp(command[0], command) if what == 'run' else os.execvp('bash', ['bash', '-c', what])
"""
UNTIL_TERM = (
    "trap 'echo term >> $NOTES/run; kill $!; exit {status}' TERM; sleep 60 & touch $NOTES/up; wait"
)
SCONTROL = '#!/bin/sh\necho "$@" >> "$NOTES/scontrol"\n'


@pytest.fixture
def cluster(tmp_path):
    """A function that starts the script; what was asked for lies in `tmp_path`."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name, text in (('srun', SRUN), ('scontrol', SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    def start(*arguments, script=SCRIPT, **env) -> subprocess.Popen:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(('SLURM', 'SRUN'))}
        env = {
            **inherited,
            'PATH': f'{folder}{os.pathsep}{os.environ["PATH"]}',
            'PYTHON': sys.executable,
            'CUDA_VISIBLE_DEVICES': '',
            'NOTES': str(tmp_path),
            **env,
        }
        pipe = subprocess.PIPE
        command = ['bash', str(script), *map(str, arguments)]
        return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path)

    return start


def asked_for(tmp_path) -> dict:
    return json.loads((tmp_path / 'srun.json').read_text())


def finish(process: subprocess.Popen) -> str:
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    return errors


def wait_for(path: Path) -> None:
    for _ in range(200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f'{path} did not come')


def test_from_a_shell(cluster, tmp_path):
    finish(
        cluster(
            *('configs/my.config.py', 'out', '--cfg-options', 'a=1 2'),
            PARTITION='gpu',
            GPUS='4',
            CPUS_PER_TASK='7',
            SRUN_ARGS='--exclusive --time=10:00',
        )
    )
    argv = asked_for(tmp_path)['argv']
    command = argv.index(sys.executable)
    assert argv[:command] == [
        '--partition=gpu',
        '--job-name=my.config',
        *('--ntasks=4', '--ntasks-per-node=4', '--gres=gpu:4', '--cpus-per-task=7'),
        *('--kill-on-bad-exit=1', '--exclusive', '--time=10:00'),
    ]
    assert argv[command + 1 :] == [
        *('-u', str(SCRIPT.parent / 'train.py'), 'configs/my.config.py', '--work-dir', 'out'),
        *('--launcher', 'slurm', '--resume', '--cfg-options', 'a=1 2'),
    ]


def test_in_a_job(cluster, tmp_path):
    """sbatch runs a copy of the script; what it was given is left to srun; a port of its own."""
    copy = tmp_path / 'spool' / 'slurm_script'
    copy.parent.mkdir()
    copy.write_text(SCRIPT.read_text())
    job = dict(
        SLURM_JOB_ID='123456', SLURM_CPUS_PER_TASK='8', SLURM_SUBMIT_DIR=str(SCRIPT.parents[1])
    )
    finish(cluster('c.py', 'out', script=copy, **job))
    asked = asked_for(tmp_path)
    assert asked['argv'][:2] == ['--kill-on-bad-exit=1', sys.executable]
    assert asked['argv'][3] == str(SCRIPT.parent / 'train.py')
    assert asked['env']['SRUN_CPUS_PER_TASK'] == '8'
    assert asked['env']['MASTER_PORT'] == str(20000 + 123456 % 20000)


@pytest.mark.parametrize('name', ['list.txt', 'one.py'])
def test_tasks_of_an_array_share_nothing(name, cluster, tmp_path):
    (tmp_path / 'list.txt').write_text('a.py\nb.py\n')
    seeds = ('--cfg-options', 'randomness.seed=%a')
    for task, config in (('1', 'a.py'), ('2', 'b.py')):
        env = dict(SLURM_JOB_ID='7', SLURM_ARRAY_TASK_ID=task)
        finish(cluster(name, 'out', *seeds, **env))
        argv = asked_for(tmp_path)['argv']
        assert argv[argv.index('--work-dir') - 1] == (config if name == 'list.txt' else name)
        assert argv[argv.index('--work-dir') + 1] == f'out/{task}'
        assert argv[-1] == f'randomness.seed={task}'


@pytest.mark.parametrize(
    ('env', 'message'),
    [
        (dict(SLURM_ARRAY_TASK_ID='3'), 'list.txt has no line 3'),
        ({}, 'list.txt is a list, of which sbatch --array'),
    ],
)
def test_list_that_does_not_fit_is_named(env, message, cluster, tmp_path):
    (tmp_path / 'list.txt').write_text('a.py\nb.py\n')
    process = cluster('list.txt', 'out', **env)
    assert message in process.communicate()[1] and process.returncode == 2
    assert not (tmp_path / 'srun.json').exists()


def test_time_that_is_up_puts_the_job_back(cluster, tmp_path):
    until_term = UNTIL_TERM.format(status=1)
    process = cluster('c.py', 'out', SLURM_JOB_ID='42', FAKE_SRUN=until_term)
    wait_for(tmp_path / 'up')
    process.send_signal(signal.SIGUSR1)
    assert 'back into the queue' in finish(process)
    assert (tmp_path / 'run').read_text() == 'term\n'
    assert (tmp_path / 'scontrol').read_text() == 'requeue 42\n'


def test_end_of_the_job_reaches_the_run(cluster, tmp_path):
    until_term = UNTIL_TERM.format(status=5)
    process = cluster('c.py', 'out', SLURM_JOB_ID='42', FAKE_SRUN=until_term)
    wait_for(tmp_path / 'up')
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 5
    assert (tmp_path / 'run').read_text() == 'term\n'
    assert not (tmp_path / 'scontrol').exists()


def test_status_of_the_run_is_that_of_the_script(cluster):
    process = cluster('c.py', 'out', FAKE_SRUN='exit 3')
    process.communicate()
    assert process.returncode == 3


def test_usage(cluster):
    process = cluster('c.py')
    out, _ = process.communicate()
    assert process.returncode == 2 and out.startswith('Train on a Slurm cluster;')
