#!/bin/bash
# bash build.sh BUILD_DIR: compiles the programs of this folder. NVCC and NVCC_FLAGS may be set.
set -euo pipefail
cd "$(dirname "$0")"
build=$1
mkdir -p "$build"
nvcc=${NVCC:-nvcc}
flags="-O3 -std=c++17 -gencode=arch=compute_90a,code=sm_90a ${NVCC_FLAGS:-}"
$nvcc $flags -Xcompiler -pthread -o "$build/tensor_core_bits" tensor_core_bits.cu &
$nvcc $flags -Xcompiler -pthread -o "$build/tensor_core_model" tensor_core_model.cu &
for job in $(jobs -p); do wait "$job"; done
