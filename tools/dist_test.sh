#!/usr/bin/env bash
# Test with several processes, one a GPU (or, on a machine without one, on the CPU).
#
#   bash tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of tools/test.py]
#
# Several machines: NNODES, and either NODE_RANK, MASTER_ADDR and PORT, or RDZV=HOST:PORT of any of
# them, which gives out the ranks by itself (RDZV_ID tells runs that share it apart). PYTHON names
# the interpreter.
set -euo pipefail

if (( $# < 3 )); then
    sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
fi
config=$1 checkpoint=$2 processes=$3
shift 3

if [[ -n ${RDZV:-} ]]; then
    meeting=(--rdzv_backend=c10d --rdzv_endpoint="$RDZV" --rdzv_id="${RDZV_ID:-itpn_mm}")
else
    meeting=(
        --node_rank="${NODE_RANK:-0}"
        --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}"
    )
fi

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" "${meeting[@]}" --nproc_per_node="$processes" \
    "$(dirname "${BASH_SOURCE[0]}")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
