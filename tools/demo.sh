#!/usr/bin/env bash
# Pre-train iTPN on photographs, fine-tune models from it, evaluate, draw: minutes on two cores.
#
#   bash tools/demo.sh [nuclei | digits | detection | rotated | segmentation | acceleration | all | report]
#                      [--compare] [--seeds N] [--fresh] [--smoke] [--jobs N] [--work-dir DIR]
#
# nuclei        Mask R-CNN on nuclei (default)
# digits        handwritten digits: k-NN, linear probe and fine-tuning, from random and pre-trained weights
# detection     Faster R-CNN and DINO on trees in aerial photographs
# rotated       Rotated Faster R-CNN on the same photographs, rotated; needs mmrotate (default stack)
# segmentation  UPerNet and MaskDINO on nuclei, their insides and borders; MaskDINO on each nucleus
# acceleration  Mask R-CNN on nuclei dense and accelerated: AP and speed
# all           every one of them, each training once, side by side on all cores; then the report
# report        report.html: one page of what was found so far, with all tables and pictures
#
# --compare     nuclei, detection, rotated, segmentation: fine-tune also from scratch; nuclei: and with the
#               backbone pre-trained but the pyramid random; the others: with three seeds each
# --seeds       digits, acceleration: how many (default: 3)
# --fresh       start again; otherwise what is complete is skipped
# --smoke       every step with next to no training, into work_dirs/demo-smoke
# --jobs        not for nuclei: trainings at a time (default: one a core)
# --work-dir    where results go (default: work_dirs/demo; but for nuclei, all and report a folder in it)
#
# All but digits start from the pre-training of nuclei, which is run first if it was not. So is the
# set-up of the environment (ITPN_VENV, default .venv). Every step is a stock command, which is
# shown and can be run alone.
set -euo pipefail
{  # read as a whole before it runs, so that an edit or `git pull` meanwhile does no harm

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
usage() { sed -n '2,26s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
die() { echo "demo.sh: $*" >&2; exit 2; }
demo=nuclei
case ${1-} in
    nuclei | digits | detection | rotated | segmentation | acceleration | all | report) demo=$1; shift ;;
esac
case $demo in
    nuclei) options=' --compare --fresh --smoke --work-dir ' ;;
    digits | acceleration) options=' --seeds --fresh --smoke --jobs --work-dir ' ;;
    all) options=' --fresh --smoke --jobs --work-dir ' ;;
    report) options=' --work-dir ' ;;
    *) options=' --compare --fresh --smoke --jobs --work-dir ' ;;
esac
arguments=("$@")
while (( $# )); do  # a wrong argument is told before the set-up, not after
    name=${1%%=*}
    case $name in
        -h | --help) usage; exit 0 ;;
        --compare | --fresh | --smoke | --seeds | --jobs | --work-dir)
            [[ $options == *" $name "* ]] || die "$name is not for $demo" ;;
        *) echo "demo.sh: unknown argument '$1'" >&2; usage >&2; exit 2 ;;
    esac
    case $name in
        --compare | --fresh | --smoke) [[ $1 == "$name" ]] || die "$name takes no value" ;;
        *)
            if [[ $1 == "$name" ]]; then value=${2-}; else value=${1#*=}; fi
            [[ $1 == "$name" && $# -gt 1 ]] && shift
            case $name in
                --work-dir) [[ $value ]] || die '--work-dir needs a folder' ;;
                --seeds) [[ $value =~ ^[1-3]$ ]] || die '--seeds needs a number from 1 to 3' ;;
                --jobs) [[ $value =~ ^[1-9][0-9]*$ ]] || die '--jobs needs a number' ;;
            esac
            ;;
    esac
    shift
done

SECONDS=0
bash "$repo/tools/setup_env.sh"
venv=${ITPN_VENV:-$repo/.venv}
case $demo in
    nuclei) command=(demo.py --setup-seconds "$SECONDS") ;;
    detection | rotated) command=(demo_aerial.py "$demo") ;;
    report) command=(demo_html.py) ;;
    *) command=("demo_$demo.py") ;;
esac
exec "$venv/bin/python" "$repo/tools/${command[0]}" "${command[@]:1}" ${arguments[@]+"${arguments[@]}"}
}
