#!/usr/bin/env bash
# On a machine with a GPU: builds the device kernels and what stands on them, runs their tests,
# checks them against double arithmetic, times them and the step of BERT-large, and writes
# bench/cuda/results.md. bench/cuda/run.sh [FOLDER FOR THE RESULTS]
#
# Needs nvcc, g++, the headers of Boost and doctest (where they lie elsewhere: CPATH) and, for the
# step, a LibTorch with CUDA: that of python3's torch, or the one in DROPPEFT_TORCH. peft beside it
# is taken as a rival. Gets nothing.
set -euo pipefail
out=$(realpath -m "${1:-$(dirname "$0")/../../build/cuda_results}")
cd "$(dirname "$0")/../.."
build=build/cuda_run
mkdir -p "$out" "$build"
rm -f "$out"/*.jsonl
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
toolkit=$(dirname "$(dirname "$(realpath "$nvcc")")")
torch=${DROPPEFT_TORCH:-$(python3 -c 'import torch; print(torch.__path__[0])')}
nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.max.sm,clocks.max.mem \
  --format=csv | tee "$out/gpu.csv"

for_device=("$nvcc" -std=c++20 -O2 -arch=native -Iinclude)
for_host=(g++ -std=c++20 -O2 -fopenmp -Iinclude -Iexamples -Itests -isystem "$torch/include"
  -isystem "$torch/include/torch/csrc/api/include" -isystem "$toolkit/include")
link=(-fopenmp -L"$torch/lib" -L"$toolkit/lib64" -Wl,-rpath,"$torch/lib" -Wl,--no-as-needed
  -ltorch_cpu -ltorch_cuda -lc10 -lc10_cuda -lcudart -Wl,--unresolved-symbols=ignore-in-shared-libs)
"${for_device[@]}" -c include/droppeft/kernels/cuda/register.cu -o "$build/register.o"
"${for_device[@]}" tests/cuda/*.cpp "$build/register.o" -o "$build/test_cuda" &
"${for_device[@]}" bench/cuda/kernels.cpp "$build/register.o" -lcublas \
  -Xlinker "-rpath=$toolkit/lib64" -o "$build/kernels" &
for source in tests/gpu/*.cpp bench/cuda/step.cpp; do
  "${for_host[@]}" -c "$source" -o "$build/$(basename "$source" .cpp).o" &
done
for job in $(jobs -p); do wait "$job"; done
g++ "$build"/{main,fronts_test,step_graphs_test,register}.o "${link[@]}" -o "$build/test_gpu"
g++ "$build"/{step,register}.o "${link[@]}" -o "$build/step"

{ "$build/test_cuda" && "$build/test_gpu"; } | tee "$out/tests.txt"
"$build/kernels" --json "$out/kernels.jsonl" | tee "$out/kernels.txt"
"$build/step" --json "$out/step.jsonl" | tee "$out/step.txt"
if python3 -c 'import peft' 2>/dev/null; then
  python3 bench/cuda/peft_step.py --json "$out/peft.jsonl" | tee "$out/peft.txt"
fi
python3 bench/cuda/results.py "$out" > "$out/results.md"
cp "$out/results.md" bench/cuda/results.md
