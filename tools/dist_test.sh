#!/usr/bin/env bash
# Test with several processes, one a GPU (or, on a machine without one, on the CPU).
#
#   bash tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of tools/test.py]
#
# Several machines: NNODES, NODE_RANK, MASTER_ADDR, PORT. PYTHON names the interpreter.
set -euo pipefail

if (( $# < 3 )); then
    sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
fi
config=$1 checkpoint=$2 processes=$3
shift 3

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    --nproc_per_node="$processes" \
    "$(dirname "${BASH_SOURCE[0]}")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
