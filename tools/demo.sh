#!/usr/bin/env bash
# Pre-train iTPN on photographs, fine-tune Mask R-CNN on nuclei, evaluate, draw: minutes on two cores.
#
#   bash tools/demo.sh [--compare] [--fresh] [--smoke] [--work-dir DIR]
#
# --compare   fine-tune also from scratch, and with the backbone pre-trained but the pyramid random
# --fresh     start again; otherwise steps that are complete are skipped
# --smoke     every step with next to no training, into work_dirs/demo-smoke
# --work-dir  where results go (default: work_dirs/demo)
#
# The environment (ITPN_VENV, default .venv) is set up first if it is not. Every step is a stock
# command, which is shown and can be run alone.
set -euo pipefail
{  # read as a whole before it runs, so that an edit or `git pull` meanwhile does no harm

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
usage() { sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
arguments=("$@")
while (( $# )); do  # a wrong argument is told before the set-up, not after
    case $1 in
        --compare | --fresh | --smoke | --work-dir=?*) ;;
        --work-dir) [[ ${2-} ]] || { echo 'demo.sh: --work-dir needs a folder' >&2; exit 2; }; shift ;;
        -h | --help) usage; exit 0 ;;
        *) echo "demo.sh: unknown argument '$1'" >&2; usage >&2; exit 2 ;;
    esac
    shift
done

SECONDS=0
bash "$repo/tools/setup_env.sh"
venv=${ITPN_VENV:-$repo/.venv}
exec "$venv/bin/python" "$repo/tools/demo.py" --setup-seconds "$SECONDS" ${arguments[@]+"${arguments[@]}"}
}
