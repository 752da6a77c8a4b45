#!/usr/bin/env bash
# Measure training on one GPU in at most nine minutes: JSON lines to OUT_DIR, what went wrong beside them.
#
#   benchmarks/gpu.sh PACKED_FILE [OUT_DIR]
#
# PACKED_FILE  data set from `python -m timm_longtail pack`; '' for the embedded digits, which suffice for TINY=1 only
# OUT_DIR      output/benchmark by default: results.jsonl, NAME.log of each step, steps.txt
#
# Steps run in the order below, the most valuable first. One that fails or takes too long does not stop the others;
# when the time is used up the rest is skipped. Environment:
#   ONLY='run_* compare_bcl*'   names of steps, wildcards allowed
#   BUDGET=520                  seconds for all of them
#   TINY=1                      every step in small, for a machine without a GPU: float32, no compiler
#   PYTHON=.venv/bin/python
set -uo pipefail
START=$SECONDS
packed=${1:-}
tiny=${TINY:-}
if [[ -z $packed && -z $tiny ]]; then
    echo "usage: $0 PACKED_FILE [OUT_DIR]; timm-longtail pack --dataset cifar100_lt --packed FILE makes one" >&2
    exit 2
fi
out=$(mkdir -p "${2:-output/benchmark}" && cd "${2:-output/benchmark}" && pwd) || exit 2
[[ -z $packed ]] || packed=$(realpath -e "$packed") || exit 2
cd "$(dirname "$0")/.." || exit 2
budget=${BUDGET:-520}
python=${PYTHON:-}
[[ -n $python ]] || { [[ -x .venv/bin/python ]] && python=.venv/bin/python || python=python3; }
dataset=digits_lt
[[ -z $packed ]] || dataset=packed:$packed
failed=0
: > "$out/steps.txt"
photos=$(mktemp -d) || exit 2
trap 'rm -rf "$photos"' EXIT

say() { echo "$(( SECONDS - START )) s  $*" | tee -a "$out/steps.txt" >&2; }

asked_for() {
    local pattern status=1
    set -f  # the patterns are of names of steps, not of files
    for pattern in ${ONLY:-*}; do
        # shellcheck disable=SC2053
        [[ $1 == $pattern ]] && status=0
    done
    set +f
    return $status
}

# measure NAME LIMIT OPTION…: one process, LIMIT seconds at most
measure() {
    local name=$1 limit=$2 left=$(( budget - (SECONDS - START) )) status late=
    shift 2
    asked_for "$name" || return 0
    if (( left < 15 )); then
        say "$name: skipped, the $budget seconds are used up"
        failed=1
        return 0
    fi
    timeout -k 5 $(( left < limit ? left : limit )) "$python" benchmark.py --dataset "$dataset" --no-recipe "$@" \
        --output "$out/results.jsonl" > "$out/$name.json" 2> "$out/$name.log"
    status=$?
    if (( status == 0 )); then
        say "$name: done"
    else
        (( status != 124 )) || late=', out of time'
        say "$name: status $status$late: $(tail -n 1 "$out/$name.log")"
        failed=1
    fi
}

# made-up photographs of many sizes, JPEG files in one folder a class: IMAGES of each, SIDE to twice that, LINKS of one
write_files() {
    "$python" - "$photos" "$@" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
from PIL import Image

folder, per_class, side, links = Path(sys.argv[1]), *map(int, sys.argv[2:])
random = np.random.default_rng(0)
for split, count in (('train', per_class), ('val', 2)):
    for label in range(10):
        place = folder / split / f'class_{label}'
        place.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            width, height = random.integers(side, 2 * side, 2)
            coarse = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)  # smooth, as photographs are, with some grain
            image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
            image = image + random.integers(-12, 13, image.shape, dtype=np.int16)
            path = place / f'{number}.jpg'
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path, quality=90)
            for link in range(1, links if split == 'train' else 1):  # an epoch is long, the writing short
                (place / f'{number}_{link}.jpg').hardlink_to(path)
PYTHON
}

if [[ -n $tiny ]]; then
    net=(--model bcl_resnet20 --model-kwargs 'layers=(1,1,1)' 'channels=(8,16,32)' --method bcl --img-size 16)
    wide=(--model resnet32_w64_cifar --model-kwargs 'layers=(1,1,1)' 'channels=(8,16,32)' --method bcl --img-size 16)
    photo=(--model resnet10t --method bcl --img-size 48) file_net=(--model resnet10t --method ce --img-size 48)
    batch=64 large=128 photo_batch=8 epochs=2 every=1 precisions=no compiled=(no)
    blocks=(--steps 1 --warmup 0 --blocks 1) files=(4 48 2)
else
    net=(--model bcl_resnet32 --method bcl)
    wide=(--model resnet32_w64_cifar --method bcl)
    photo=(--model bcl_resnet50 --method bcl --img-size 224) file_net=(--model resnet50 --method ce --img-size 224)
    batch=256 large=1024 photo_batch=256 epochs=200 every=10 precisions='bf16 fp16 no' compiled=(no yes)
    blocks=(--blocks 3) files=(64 300 40)
fi
fast=(--mixed-precision bf16 --channels-last)
[[ -n $tiny ]] || fast+=(--torchcompile)
# the optimizer of the recipe bcl_resnet32.cifar100_lt_if100
whole=(--epochs "$epochs" --val-interval "$every" --log-interval 1000 --lr 0.15 --weight-decay 5e-4
       --sched multistep --decay-milestones 161 181 --warmup-epochs 4 --warmup-lr 0.03)
[[ -z $tiny ]] || whole+=(--warmup-epochs 0)

measure compare_bcl 100 "${net[@]}" -b "$batch" "${fast[@]}" "${blocks[@]}" --compare
measure run_bcl 200 "${net[@]}" -b "$batch" "${fast[@]}" "${whole[@]}"
measure compare_wide 100 "${wide[@]}" -b "$batch" "${fast[@]}" "${blocks[@]}" --compare
measure photo_bf16 80 "${photo[@]}" -b "$photo_batch" "${fast[@]}" "${blocks[@]}"
measure run_wide 240 "${wide[@]}" -b "$batch" "${fast[@]}" "${whole[@]}"
for compile in "${compiled[@]}"; do
    option=()
    [[ $compile == no ]] || option=(--torchcompile)
    for precision in $precisions; do
        for size in "$batch" "$large"; do
            measure "bcl_${precision}_compile_${compile}_b$size" 60 "${net[@]}" -b "$size" \
                --mixed-precision "$precision" "${option[@]}" "${blocks[@]}"
        done
    done
done
if asked_for compare_files; then
    dataset=folder
    write_files "${files[@]}" || say 'compare_files: the files cannot be written'
    measure compare_files 90 --data-dir "$photos" "${file_net[@]}" -b "$photo_batch" "${fast[@]}" "${blocks[@]}" \
        --compare
fi
say "results: $out/results.jsonl"
exit $failed
