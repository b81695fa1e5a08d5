#!/usr/bin/env bash
# Make the virtual environment of itpn_mm, or bring it up to date.
#
#   bash tools/setup_env.sh [--stack onedl|openmmlab]
#
# ITPN_VENV   where (default: .venv in the repository; .venv-openmmlab for that stack)
# ITPN_HASHES 0: take files of other builds than those whose SHA-256 is in requirements/onedl-hashes.txt
# PYTHON      the interpreter to build on (default: the first of python3.11, 3.12, 3.10, python3 that fits)
#
# Versions are those of requirements/. Every step that succeeded leaves a stamp keyed by what it was
# made from, so the script can be interrupted and run again, and has nothing to do in a second or two.
set -euo pipefail
{  # read as a whole before it runs, so that an edit or `git pull` meanwhile does no harm

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
stack=onedl
while (( $# )); do
    case $1 in
        --stack) stack=${2-}; if (( $# > 1 )); then shift; fi ;;
        --stack=*) stack=${1#*=} ;;
        -h | --help) sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) echo "setup_env.sh: unknown argument '$1'; usage: setup_env.sh [--stack onedl|openmmlab]" >&2; exit 2 ;;
    esac
    shift
done
case $stack in
    onedl) venv=${ITPN_VENV:-$repo/.venv} ;;
    openmmlab) venv=${ITPN_VENV:-$repo/.venv-openmmlab} ;;
    *) echo "setup_env.sh: --stack must be onedl or openmmlab, got '$stack'" >&2; exit 2 ;;
esac
[[ $venv == /* ]] || venv=$PWD/$venv
state=$venv/.itpn_mm
py=$venv/bin/python
req=$repo/requirements
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONNOUSERSITE=1
unset PYTHONPATH PYTHONHOME

say() { printf '[%4ds] %s\n' "$SECONDS" "$*"; }
die() { printf 'setup_env.sh: %s\n' "$*" >&2; exit 1; }

# ---------------------------------------------------------------- the interpreter and the compiler

python_fits() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

find_python() {
    local name
    for name in ${PYTHON:-python3.11 python3.12 python3.10 python3}; do
        if python_fits "$name"; then
            printf '%s' "$name"
            return
        fi
    done
    return 1
}

check_system() {
    python=$(find_python) || die "needs Python 3.10, 3.11 or 3.12 (${PYTHON:-python3} is not); Debian: apt install python3 python3-venv python3-dev, or set PYTHON"
    local version
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$python cannot make virtual environments; Debian: apt install python$version-venv"
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
        die "the C headers of $python are missing (mmcv is compiled); Debian: apt install python$version-dev"
    command -v "${CXX:-c++}" >/dev/null ||
        die "no C++ compiler '${CXX:-c++}' (mmcv is compiled); Debian: apt install g++"
}

# What a failed step's log says about the system, in words of Debian.
explain() {
    local log=$1
    grep -q 'Python\.h: No such file' "$log" && echo 'The C headers of Python are missing; Debian: apt install python3-dev'
    grep -q 'libGL\.so' "$log" && echo 'OpenGL is missing; Debian: apt install libgl1'
    grep -q 'libgthread-2\|libglib-2' "$log" && echo 'GLib is missing; Debian: apt install libglib2.0-0'
    grep -q 'libgomp\.so' "$log" && echo 'OpenMP is missing; Debian: apt install libgomp1'
    grep -qi 'killed signal\|out of memory\|cannot allocate' "$log" && echo 'Memory ran out; set MAX_JOBS=1 and run again.'
    grep -q 'No space left' "$log" && echo "The disk is full: the environment takes about 6 GB and TMPDIR some more ($venv)."
    grep -qi 'NewConnectionError\|name resolution\|Read timed out' "$log" && echo 'The package index could not be reached; run again when it can.'
    return 0
}

# ---------------------------------------------------------------- steps

child=
trap 'if [[ $child ]]; then kill -TERM -- "-$child" 2>/dev/null; fi; echo "setup_env.sh: interrupted; run it again to go on" >&2; exit 130' INT TERM HUP

# step NAME KEY VERIFY COMMAND...: run COMMAND unless the stamp holds KEY and VERIFY agrees.
step() {
    local name=$1 key=$2 verify=$3 log=$state/$1.log began=$SECONDS next=$((SECONDS + 20)) status=0
    shift 3
    if [[ -f $state/$name.stamp && $(< "$state/$name.stamp") == "$key" ]] && $verify >/dev/null 2>&1; then
        return
    fi
    say "$name ..."
    changed=1
    rm -f "$state/$name.stamp"
    set -m  # a process group of its own, which the trap can end as a whole
    "$@" >"$log" 2>&1 </dev/null &
    child=$!
    set +m
    while kill -0 "$child" 2>/dev/null; do
        sleep 0.2
        if (( SECONDS >= next )); then
            say "  ... $(progress "$log")"
            next=$((SECONDS + 20))
        fi
    done
    wait "$child" || status=$?
    child=
    if (( status == 0 )) && ! $verify >>"$log" 2>&1; then
        status=1
    fi
    if (( status )); then
        tail -n 25 "$log" >&2
        explain "$log" >&2
        die "step '$name' failed; the whole log: $log"
    fi
    printf '%s' "$key" > "$state/$name.stamp"
    say "$name done in $((SECONDS - began)) s"
}

progress() {
    local files
    files=$(grep -o '\[[0-9]*/[0-9]*\]' "$1" | tail -n 1 || true)
    if [[ $files ]]; then
        echo "$files files compiled"
    else
        { grep -v '^ *$\|WARNING' "$1" || true; } | tail -n 1 | cut -c -70
    fi
}

key_of() { cat "$@" | sha256sum | cut -c -16; }

# check_pins FILE...: every requirement of the files is installed in the version of the file or lock.
check_pins() {
    "$py" - "$req/$stack-lock.txt" "$@" <<'PY'
import re
import sys
from importlib.metadata import PackageNotFoundError, version


def read(path):
    lines = (line.split('#')[0].strip() for line in open(path))
    pairs = (line.partition('==') for line in lines if line)
    names = ((re.split(r'[\[<>=!~]', name)[0], pin) for name, _, pin in pairs)
    return {re.sub('[-_.]+', '-', name).lower(): pin for name, pin in names}


lock, wrong = read(sys.argv[1]), []
for path in sys.argv[2:]:
    for name, pin in read(path).items():
        want = pin or lock[name]
        try:
            have = version(name)
        except PackageNotFoundError:
            have = 'nothing'
        if have.split('+')[0] != want:
            wrong.append(f'{name}: {want} wanted, {have} installed')
print(*wrong, sep='\n')
sys.exit(bool(wrong))
PY
}

hashes_fit() {
    "$py" -c 'import platform, sys
this = (*sys.version_info[:2], sys.platform, platform.machine())
sys.exit(this != (3, 11, "linux", "x86_64"))'
}

# Versions, and where they are known the very files (Python 3.11, Linux, x86-64).
constraints() {
    local hashes=$req/$stack-hashes.txt
    if [[ ${ITPN_HASHES-} != 0 && -f $hashes ]] && hashes_fit; then
        printf '%s' "$hashes"
    else
        printf '%s' "$lock"
    fi
}
pip_install() { "$py" -m pip install --progress-bar off -c "$(constraints)" "$@"; }

make_venv() {  # an earlier, unfinished one is removed, but for the state folder, where the log is
    rm -f "$state"/*.stamp
    find "$venv" -mindepth 1 -maxdepth 1 ! -name .itpn_mm -exec rm -rf {} +
    "$python" -m venv "$venv"
}
verify_venv() { python_fits "$py" && "$py" -c 'import pip'; }

verify_libraries() { check_pins "$req/build.txt" "$req/$stack.txt"; }
install_libraries() {
    # First of all a newer pip, which takes hashes from constraints.
    "$py" -m pip install --progress-bar off --no-deps -r <(grep '^pip==' "$(constraints)")
    pip_install -r "$req/build.txt"
    pip_install -r "$req/$stack.txt"
    "$py" -c 'import cv2, torch, torchvision'
}

verify_extras() { check_pins "$req/demo.txt" "$req/dev.txt" "$req/docs.txt" "$req/teachers.txt"; }
install_extras() { pip_install -r "$req/demo.txt" -r "$req/dev.txt" -r "$req/docs.txt" -r "$req/teachers.txt"; }

mmcv_spec() { grep -E '^(onedl-)?mmcv==' "$req/$stack-mm.txt"; }
other_mm() { grep -vE '^(onedl-)?mmcv==' "$req/$stack-mm.txt"; }

verify_mm() { check_pins <(other_mm); }
install_mm() { pip_install --no-deps --no-build-isolation -r <(other_mm); }

verify_mmcv() {
    check_pins <(mmcv_spec) && compgen -G "$venv/lib/python3*/site-packages/mmcv/_ext*.so" >/dev/null
}
install_mmcv() {
    bash "$repo/tools/build_mmcv.sh" "$py" "$(mmcv_spec)" "$state/mmcv" "$(constraints)"
    "$py" - <<'PY'
import torch
from mmcv.ops import nms

boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.9]])
assert len(nms(boxes, torch.tensor([0.9, 0.8]), 0.5)[1]) == 1
PY
    rm -rf "$state/mmcv"
}

# The environment may have served another clone before.
verify_itpn_mm() {
    [[ $(cd / && "$py" -c 'from importlib.util import find_spec as f; print(f("itpn_mm").origin)') == "$repo/itpn_mm/__init__.py" ]]
}
install_itpn_mm() { "$py" -m pip install --no-deps --no-build-isolation -e "$repo"; }

# ---------------------------------------------------------------- main

if [[ -e $venv && ! -d $state && -n $(ls -A "$venv") ]]; then
    die "'$venv' exists and is not an environment made by this script; set ITPN_VENV to another place"
fi
mkdir -p "$state"
if [[ -f $state/stack && $(< "$state/stack") != "$stack" ]]; then
    die "'$venv' holds the stack $(< "$state/stack"); the two cannot share one, set ITPN_VENV to another place"
fi
# One at a time: a second run waits for the first.
if command -v flock >/dev/null; then
    exec 9>"$venv.lock"
    flock -n 9 || { say "another setup of $venv is running; waiting for it"; flock 9; }
fi

changed=
lock=$req/$stack-lock.txt
self=$repo/tools/setup_env.sh
verify_venv >/dev/null 2>&1 || rm -f "$state/venv.stamp"
if [[ ! -f $state/venv.stamp ]]; then
    check_system
    say "environment $venv, stack $stack, $("$python" --version)"
fi
step venv 1 verify_venv make_venv
printf '%s' "$stack" > "$state/stack"
step libraries "$(key_of "$self" "$lock" "$req/build.txt" "$req/$stack.txt")" verify_libraries install_libraries
step extras "$(key_of "$self" "$lock" "$req/demo.txt" "$req/dev.txt" "$req/docs.txt" "$req/teachers.txt")" verify_extras install_extras
step mm-packages "$(key_of "$self" "$lock" "$req/$stack-mm.txt")" verify_mm install_mm
step mmcv "$(key_of "$repo/tools/build_mmcv.sh" <(mmcv_spec; grep '^torch==' "$lock"))" verify_mmcv install_mmcv
step itpn_mm "$(key_of "$repo/setup.py" "$repo/pyproject.toml" "$repo/itpn_mm/version.py")" verify_itpn_mm install_itpn_mm

if [[ $changed ]]; then
    say "ready: $venv (source $venv/bin/activate)"
else
    say "up to date: $venv"
fi
exit
}
