#!/usr/bin/env bash
# Train with several processes on this machine: ./distributed_train.sh NUM_PROCESSES [options of train.py]
set -euo pipefail
if [[ $# -lt 1 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 NUM_PROCESSES [options of train.py]" >&2
    exit 2
fi
num_processes=$1
shift
here=$(cd "$(dirname "$0")" && pwd)

# without a device the launcher has to be told so, or it starts one process only
if ! python -c 'import sys, torch; sys.exit(not torch.accelerator.is_available())'; then
    export ACCELERATE_USE_CPU=true
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( ($(nproc) + num_processes - 1) / num_processes ))}
fi
multi=()
if [[ $num_processes -gt 1 ]]; then
    multi=(--multi_gpu)
fi
exec accelerate launch "${multi[@]}" --num_processes "$num_processes" --num_machines 1 --dynamo_backend no \
    --mixed_precision "${MIXED_PRECISION:-no}" --main_process_port "${MASTER_PORT:-0}" "$here/train.py" "$@"
