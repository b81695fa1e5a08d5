#!/usr/bin/env bash
# The demo's Mask R-CNN fine-tuned dense and with acceleration: AP and speed of each setting.
#
#   bash tools/demo_acceleration.sh [--fresh] [--smoke] [--jobs N] [--work-dir DIR]
#
# --fresh     start again; otherwise tasks that are complete are skipped
# --smoke     every task with next to no training, into work_dirs/demo-acceleration-smoke
# --jobs      how many chains of tasks at a time (default: one a core)
# --work-dir  where results go (default: work_dirs/demo-acceleration)
#
# Starts from the pre-training of tools/demo.sh, which is run first if it was not. So is the set-up of
# the environment (ITPN_VENV, default .venv).
set -euo pipefail
{  # read as a whole before it runs, so that an edit or `git pull` meanwhile does no harm

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
usage() { sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
arguments=("$@")
while (( $# )); do  # a wrong argument is told before the set-up, not after
    case $1 in
        --fresh | --smoke | --jobs=?* | --work-dir=?*) ;;
        --jobs | --work-dir) [[ ${2-} ]] || { echo "demo_acceleration.sh: $1 needs a value" >&2; exit 2; }; shift ;;
        -h | --help) usage; exit 0 ;;
        *) echo "demo_acceleration.sh: unknown argument '$1'" >&2; usage >&2; exit 2 ;;
    esac
    shift
done

bash "$repo/tools/setup_env.sh"
venv=${ITPN_VENV:-$repo/.venv}
exec "$venv/bin/python" "$repo/tools/demo_acceleration.py" ${arguments[@]+"${arguments[@]}"}
}
