#!/usr/bin/env bash
# Build mmcv with its operators from source and install it.
#
#   bash tools/build_mmcv.sh PYTHON SPEC BUILD_DIR [CONSTRAINTS]     e.g.  .venv/bin/python onedl-mmcv==2.3.6 build/mmcv
#
# PYTHON must have torch, setuptools<81, wheel, ninja and psutil. BUILD_DIR keeps the objects, so that
# an interrupted build goes on where it stopped. Most of the 78 files parse the same torch headers; a
# precompiled header of <torch/types.h> makes the build about 8 times faster with GCC. Where it
# cannot be made or used, the build is a plain one. CONSTRAINTS are for pip: the SHA-256 of the source.
set -euo pipefail
{  # read as a whole before it runs, so that an edit or `git pull` meanwhile does no harm

if (( $# < 3 || $# > 4 )); then
    sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
fi
python=$1 spec=$2
mkdir -p "$3"
build=$(cd "$3" && pwd -P)

# ninja and pip of PYTHON's environment come first; a user's own flags would spoil the header.
PATH=$(cd "$(dirname "$python")" && pwd):$PATH
unset CPPFLAGS CXXFLAGS CFLAGS
cxx=${CXX:-c++}

# What the operators are built for: the GPU if torch sees one and the CUDA compiler is here.
target=cpu
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    cuda=$("$python" -c 'from torch.utils.cpp_extension import CUDA_HOME; print(CUDA_HOME or "")')
    if [[ -x $cuda/bin/nvcc ]]; then
        target=cuda
    else
        echo 'There is a GPU but no nvcc: the operators are built for the CPU only.'
        export CUDA_VISIBLE_DEVICES=''
    fi
fi

# The source, and the objects of an earlier, interrupted run of the same recipe.
recipe="$spec $target $(sha256sum < "${BASH_SOURCE[0]}") $("$python" -c 'import sys, torch; print(sys.version, torch.__version__)')"
if [[ ! -f $build/recipe || $(< "$build/recipe") != "$recipe" ]]; then
    (cd "$build" && rm -rf recipe sdist source wheel torch_types.h*)
    "$python" -m pip download --no-deps --no-build-isolation --no-binary :all: -d "$build/sdist" ${4:+-c "$4"} "$spec"
    mkdir -p "$build/source"
    tar -xzf "$build"/sdist/*.tar.gz -C "$build/source" --strip-components 1
    printf '%s\n' "$recipe" > "$build/recipe"
fi

# Files compiled at once: one a core, but no more than memory allows (2 GB each).
cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
memory=$(awk '/MemAvailable/ {print int($2 / 2e6)}' /proc/meminfo 2>/dev/null || echo "$cores")
jobs=$(( memory < cores ? memory : cores ))
export MAX_JOBS=${MAX_JOBS:-$(( jobs < 1 ? 1 : jobs ))}
export MMCV_WITH_OPS=1

# CFLAGS replaces Python's own flags, hence the -O2.
flags='-O2 -DNDEBUG -fwrapv -w'
header=$build/torch_types.h

make_header() {
    "$cxx" --version 2>/dev/null | grep -qi 'gcc\|g++\|Free Software Foundation' || return 1
    local more
    # What torch adds to the command line of an extension, where it has to agree.
    more=$("$python" - <<'PY'
import inspect
import sysconfig

import torch
from torch.utils import cpp_extension

flags = [f'-I{path}' for path in cpp_extension.include_paths()]
flags.append('-I' + sysconfig.get_paths()['include'])
if '_GLIBCXX_USE_CXX11_ABI' in inspect.getsource(cpp_extension):
    flags.append(f'-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}')
print(*flags)
PY
    ) || return 1
    more+=' -fPIC -std=c++17 -DTORCH_API_INCLUDE_EXTENSION_H -DTORCH_EXTENSION_NAME=_ext'
    if [[ ! -f $header.gch ]]; then
        echo 'Making the precompiled header.'
        echo '#include <torch/types.h>' > "$header"
        # shellcheck disable=SC2086  # flags are words
        "$cxx" $flags $more -x c++-header "$header" -o "$header.gch.part" || return 1
        mv "$header.gch.part" "$header.gch"
    fi
    # With -H, GCC marks a precompiled header that it uses with an exclamation mark.
    echo 'int answer = 42;' > "$build/probe.cpp"
    # shellcheck disable=SC2086
    "$cxx" $flags $more -include "$header" -H -fsyntax-only "$build/probe.cpp" 2>&1 | grep -q '^! '
}

compile() {
    rm -rf "$build/wheel"
    CFLAGS=$1 "$python" -m pip wheel --verbose --no-deps --no-build-isolation --no-cache-dir \
        --wheel-dir "$build/wheel" "$build/source"
}

if make_header; then
    echo "Precompiled header in use; $MAX_JOBS file(s) at a time, for $target."
    compile "$flags -include $header -Winvalid-pch" || {
        echo 'The build with the precompiled header failed; once more without it.'
        rm -rf "$build/source/build"
        compile "$flags"
    }
else
    echo "No precompiled header with '$cxx'; plain build, about 40 seconds a file and core."
    compile "$flags"
fi

"$python" -m pip install --no-deps --force-reinstall "$build"/wheel/*.whl
exit
}
