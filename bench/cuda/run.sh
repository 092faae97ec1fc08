#!/usr/bin/env bash
# On a machine with a GPU and CUDA's toolkit: builds the kernels, runs their tests, checks them
# against double arithmetic and times them. bench/cuda/run.sh [FOLDER FOR THE RESULTS]
#
# Through the preset `cuda`, which gets LibTorch; with DROPPEFT_NVCC_ONLY=1 by nvcc alone, for
# machines that get nothing (the tests then run if doctest is installed).
set -euo pipefail
out=$(realpath -m "${1:-$(dirname "$0")/../../build/cuda_results}")
cd "$(dirname "$0")/../.."
mkdir -p "$out"
nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.max.sm,clocks.max.mem \
  --format=csv | tee "$out/gpu.csv"

if [[ -z ${DROPPEFT_NVCC_ONLY:-} ]]; then
  cmake --preset cuda
  cmake --build --preset cuda --target test_cuda cuda_kernels
  tests=build/cuda/tests/test_cuda
  kernels=build/cuda/bench/cuda/cuda_kernels
else
  nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
  build=build/nvcc_only
  mkdir -p "$build"
  flags=(-std=c++20 -O2 -arch=native -Iinclude)
  "$nvcc" "${flags[@]}" -c include/droppeft/kernels/cuda/register.cu -o "$build/register.o"
  tests=''
  if echo '#include <doctest/doctest.h>' | g++ -xc++ -E - >/dev/null 2>&1; then
    tests=$build/test_cuda
    "$nvcc" "${flags[@]}" tests/cuda/*.cpp "$build/register.o" -o "$tests"
  fi
  kernels=$build/cuda_kernels
  "$nvcc" "${flags[@]}" bench/cuda/kernels.cpp "$build/register.o" -lcublas -o "$kernels"
fi

if [[ -n $tests ]]; then
  "$tests" | tee "$out/tests.txt"
else
  echo 'no doctest: the tests were not run' | tee "$out/tests.txt"
fi
"$kernels" --json "$out/kernels.jsonl" | tee "$out/kernels.txt"
