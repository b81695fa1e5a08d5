#!/usr/bin/env bash
# Run the tests; the environment is set up first if it is not.
#
#   bash tools/run_tests.sh [--slow] [--stack onedl|openmmlab] [pytest arguments]
#
# Without --slow the tests marked slow are left out. A run of the whole default set also measures the
# line coverage of itpn_mm and fails below 90 %; with pytest arguments of your own it does not. With --slow
# it also writes work_dirs/reliability.json, from which docs/reliability.md is made. Such a run takes
# two processes, or PROCESSES.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
stack=onedl
slow=
arguments=()
while (( $# )); do
    case $1 in
        --slow) slow=1 ;;
        --stack) stack=${2-}; if (( $# > 1 )); then shift; fi ;;
        --stack=*) stack=${1#*=} ;;
        -h | --help) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) arguments+=("$1") ;;
    esac
    shift
done

venv=${ITPN_VENV:-$repo/.venv}
if [[ $stack == openmmlab ]]; then
    venv=${ITPN_VENV:-$repo/.venv-openmmlab}
fi
bash "$repo/tools/setup_env.sh" --stack "$stack"

if (( ${#arguments[@]} == 0 )); then
    arguments=(--cov --cov-fail-under=90 --numprocesses "${PROCESSES:-2}" --dist worksteal)
    if [[ $slow ]]; then
        record=reliability.json
        [[ $stack == onedl ]] || record=reliability-$stack.json
        arguments+=(--reliability "work_dirs/$record")
    fi
fi
if [[ ! $slow ]]; then
    arguments=(-m 'not slow' "${arguments[@]}")
fi
cd "$repo"
exec "$venv/bin/python" -m pytest "${arguments[@]}"
