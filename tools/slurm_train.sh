#!/usr/bin/env bash
# Train on a Slurm cluster; a run that is started again goes on where it was.
#
#   bash tools/slurm_train.sh CONFIG WORK_DIR [arguments of tools/train.py]
#   sbatch --nodes=8 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 --requeue \
#       --signal=B:USR1@120 tools/slurm_train.sh CONFIG WORK_DIR [arguments of tools/train.py]
#
# With `bash`, srun asks for PARTITION, GPUS (8), GPUS_PER_NODE (8) and CPUS_PER_TASK (5); with
# `sbatch`, from the root of the project, the options of sbatch count. SRUN_ARGS go to srun, PYTHON
# names the interpreter.
#
# Arrays (`sbatch --array=1-9`): task N trains line N of CONFIG if that is a .txt, else CONFIG; its
# folder is WORK_DIR/N, and `%a` in the arguments is N: `--cfg-options randomness.seed=%a`.
#
# Requeueing: USR1, which `--signal` above makes Slurm send 120 s before the time is up, ends the run
# and puts the job into the queue again; after a preemption Slurm does so itself. Training resumes
# from the newest checkpoint in the folder, of which only what came after is lost.
set -euo pipefail

if (( $# < 2 )); then
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
fi
config=$1 work_dir=$2
shift 2
arguments=("$@")

if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    task=$SLURM_ARRAY_TASK_ID
    work_dir=$work_dir/$task
    arguments=("${arguments[@]//%a/$task}")
    if [[ $config == *.txt ]]; then
        list=$config
        config=$(sed -n "${task}p" "$list")
        [[ -n $config ]] || { echo "slurm_train.sh: $list has no line $task" >&2; exit 2; }
    fi
elif [[ $config == *.txt ]]; then
    echo "slurm_train.sh: $config is a list, of which sbatch --array=... takes lines" >&2
    exit 2
fi

request=()
if [[ -z ${SLURM_JOB_ID:-} ]]; then
    gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
    (( per_node < gpus )) || per_node=$gpus
    request=(
        ${PARTITION:+--partition="$PARTITION"} --job-name="$(basename "${config%.*}")"
        --ntasks="$gpus" --ntasks-per-node="$per_node" --gres=gpu:"$per_node"
        --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1
    )
else
    # srun no longer takes this over from sbatch.
    export SRUN_CPUS_PER_TASK=${SRUN_CPUS_PER_TASK:-${SLURM_CPUS_PER_TASK:-}}
    [[ -n $SRUN_CPUS_PER_TASK ]] || unset SRUN_CPUS_PER_TASK
    # Jobs that share a machine need ports of their own.
    export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
    request=(--kill-on-bad-exit=1)
fi

# sbatch runs a copy of this file in a folder of its own.
tools=$(dirname "${BASH_SOURCE[0]}")
[[ -f $tools/train.py ]] || tools=${SLURM_SUBMIT_DIR:-.}/tools

# shellcheck disable=SC2086
srun "${request[@]}" ${SRUN_ARGS:-} "${PYTHON:-python}" -u "$tools/train.py" "$config" \
    --work-dir "$work_dir" --launcher slurm --resume "${arguments[@]}" &
run=$!

requeue() {
    echo "slurm_train.sh: the time is nearly up, back into the queue" >&2
    kill -TERM "$run" 2>/dev/null || true
    wait "$run" || true
    [[ -z ${SLURM_JOB_ID:-} ]] || scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap requeue USR1
stopped=
trap 'stopped=yes; kill -TERM "$run" 2>/dev/null || true' TERM INT
status=0
wait "$run" || status=$?
if [[ -n $stopped ]]; then  # the signal had ended the waiting
    status=0
    wait "$run" || status=$?
fi
exit "$status"
