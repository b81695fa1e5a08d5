#!/usr/bin/env bash
# Pre-train iTPN on photographs, fine-tune models from it, evaluate, draw: minutes on two cores.
#
#   bash tools/demo.sh [nuclei | detection | rotated | segmentation]
#                      [--compare] [--fresh] [--smoke] [--jobs N] [--work-dir DIR]
#
# nuclei        Mask R-CNN on nuclei (default)
# detection     Faster R-CNN and DINO on trees in aerial photographs
# rotated       Rotated Faster R-CNN on the same photographs, rotated; needs mmrotate (default stack)
# segmentation  UPerNet and MaskDINO on nuclei, their insides and borders; MaskDINO on each nucleus
#
# --compare     fine-tune also from scratch; nuclei: and with the backbone pre-trained but the pyramid
#               random; the others: with three seeds each
# --fresh       start again; otherwise steps that are complete are skipped
# --smoke       every step with next to no training, into work_dirs/demo-smoke
# --jobs        not for nuclei: trainings at a time (default: one a core)
# --work-dir    where results go (default: work_dirs/demo, and but for nuclei a folder in it)
#
# The others start from the pre-training of nuclei, which is run first if it was not. So is the
# set-up of the environment (ITPN_VENV, default .venv). Every step is a stock command, which is
# shown and can be run alone.
set -euo pipefail
{  # read as a whole before it runs, so that an edit or `git pull` meanwhile does no harm

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
usage() { sed -n '2,22s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
demo=nuclei
case ${1-} in
    nuclei | detection | rotated | segmentation) demo=$1; shift ;;
esac
arguments=("$@")
while (( $# )); do  # a wrong argument is told before the set-up, not after
    case $1 in
        --compare | --fresh | --smoke | --work-dir=?*) ;;
        --work-dir) [[ ${2-} ]] || { echo 'demo.sh: --work-dir needs a folder' >&2; exit 2; }; shift ;;
        --jobs | --jobs=*)
            [[ $demo != nuclei ]] || { echo 'demo.sh: --jobs is not for nuclei' >&2; exit 2; }
            [[ $1 == --jobs ]] && shift
            [[ ${1-} =~ ^(--jobs=)?[1-9][0-9]*$ ]] || { echo 'demo.sh: --jobs needs a number' >&2; exit 2; } ;;
        -h | --help) usage; exit 0 ;;
        *) echo "demo.sh: unknown argument '$1'" >&2; usage >&2; exit 2 ;;
    esac
    shift
done

SECONDS=0
bash "$repo/tools/setup_env.sh"
venv=${ITPN_VENV:-$repo/.venv}
case $demo in
    nuclei) command=(demo.py --setup-seconds "$SECONDS") ;;
    segmentation) command=(demo_segmentation.py) ;;
    *) command=(demo_aerial.py "$demo") ;;
esac
exec "$venv/bin/python" "$repo/tools/${command[0]}" "${command[@]:1}" ${arguments[@]+"${arguments[@]}"}
}
