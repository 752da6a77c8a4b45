#!/usr/bin/env bash
# Train with several processes, on this host or on several:
#   ./distributed_train.sh NUM_PROCESSES [options of train.py]
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 ./distributed_train.sh NUM_PROCESSES …     on host 0, which has that address
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 ./distributed_train.sh NUM_PROCESSES …     on host 1, within ten minutes
# NUM_PROCESSES counts those of this host; MASTER_PORT (29500) must be free on host 0.
set -euo pipefail
if [[ $# -lt 1 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 NUM_PROCESSES [options of train.py]" >&2
    exit 2
fi
num_processes=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
num_hosts=${NNODES:-1}
if [[ ! $num_hosts =~ ^[1-9][0-9]*$ ]]; then
    echo "$0: error: NNODES is the number of hosts, got $num_hosts" >&2
    exit 2
fi

if [[ -n ${MIXED_PRECISION:-} ]]; then
    export ACCELERATE_MIXED_PRECISION=$MIXED_PRECISION
fi
if [[ $num_processes -eq 1 && $num_hosts -eq 1 ]]; then
    exec python "$here/train.py" "$@"
fi

if [[ $num_hosts -gt 1 ]]; then
    if [[ -z ${MASTER_ADDR:-} || ! ${NODE_RANK:-} =~ ^[0-9]+$ || $((10#${NODE_RANK:-0})) -ge $num_hosts ]]; then
        echo "$0: error: NNODES=$num_hosts needs MASTER_ADDR, the address of host 0, and NODE_RANK, this host's number" \
            "from 0 to $((num_hosts - 1))" >&2
        exit 2
    fi
    hosts=(--nnodes "$num_hosts" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR"
        --master-port "${MASTER_PORT:-29500}")
else
    hosts=(--standalone --local-addr localhost)
fi
# torchrun gives each process one thread; without a device the cores are shared out instead
if [[ -z ${OMP_NUM_THREADS:-} ]] && ! python -c 'import sys, torch; sys.exit(not torch.accelerator.is_available())'; then
    cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)  # macOS has no nproc
    export OMP_NUM_THREADS=$(( (cores + num_processes - 1) / num_processes ))
fi
exec python -m torch.distributed.run "${hosts[@]}" --nproc-per-node "$num_processes" "$here/train.py" "$@"
