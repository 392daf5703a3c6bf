#!/usr/bin/env bash
# Everything about serving that BENCHMARKS.md says of GPUs, for a machine with two; logs go to $1.
set -u
out=$1 work=$2
python=${PYTHON:-python3}
note() { echo "== $(date +%T) $*" | tee -a "$out/steps.log"; }
one() { CUDA_VISIBLE_DEVICES=0 "$@"; }

note build
CUDA_VISIBLE_DEVICES=1 $python -m tests.gpu.build_engines "$work" "$work/timings" resnet50.fp16 \
    >"$out/resnet.log" 2>&1 &
one $python -m tests.gpu.build_engines "$work" "$work/timings" embedder.fp16 >"$out/embedder.log" 2>&1
rm -rf "$work/served"
$python -m tests.gpu.make_bundle "$work" embedder "$work/served" fp16
wait
note two GPUs
$python -m tests.gpu.two_gpus "$work" embedder "$work/served" fp16 >"$out/two.log" 2>"$out/two.err"
note load
one $python -m tests.gpu.serve_load "$work" embedder "$work/served" fp16 >"$out/load.log" 2>"$out/load.err"
note overlap
one $python -m tests.gpu.overlap "$work" resnet50.fp16 embedder.fp16 >"$out/overlap.log" 2>&1
note bench
keys=(--bundle "$work/served/bundle" --trusted-keys "$work/served/keys" --cache "$work/cache")
one edge-agent profile "${keys[@]}" >"$out/profile.log" 2>&1
one edge-agent bench "${keys[@]}" --rows 8 --connections 1,8,16 --duration 4 --warm-up-time 1 \
    --plot "$out/bench.svg" >"$out/bench.log" 2>&1
one edge-agent bench "${keys[@]}" --compare --duration 2 --warm-up-time 1 >"$out/compare.log" 2>&1
note done
