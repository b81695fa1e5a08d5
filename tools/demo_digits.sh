#!/usr/bin/env bash
# Handwritten digits from random and from pre-trained weights: k-NN, linear probe and fine-tuning.
#
#   bash tools/demo_digits.sh [--fresh] [--smoke] [--jobs N] [--work-dir DIR]
#
# --fresh     start again; otherwise tasks that are complete are skipped
# --smoke     every task with next to no training, into work_dirs/demo-digits-smoke
# --jobs      how many chains of tasks at a time (default: one a core)
# --work-dir  where results go (default: work_dirs/demo-digits)
#
# The environment (ITPN_VENV, default .venv) is set up first if it is not.
set -euo pipefail
{  # read as a whole before it runs, so that an edit or `git pull` meanwhile does no harm

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
usage() { sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
arguments=("$@")
while (( $# )); do  # a wrong argument is told before the set-up, not after
    case $1 in
        --fresh | --smoke | --jobs=?* | --work-dir=?*) ;;
        --jobs | --work-dir) [[ ${2-} ]] || { echo "demo_digits.sh: $1 needs a value" >&2; exit 2; }; shift ;;
        -h | --help) usage; exit 0 ;;
        *) echo "demo_digits.sh: unknown argument '$1'" >&2; usage >&2; exit 2 ;;
    esac
    shift
done

bash "$repo/tools/setup_env.sh"
venv=${ITPN_VENV:-$repo/.venv}
exec "$venv/bin/python" "$repo/tools/demo_digits.py" ${arguments[@]+"${arguments[@]}"}
}
