#!/bin/sh
# Compile the CUDA kernels' source as C++, against a stand-in for CUDA, and run their tests on the CPU.
#
# SANITIZE=1 does so with the address and undefined-behaviour sanitizers.
set -eu
folder=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
torch=$("$python" -c 'import importlib.util, pathlib; print(pathlib.Path(importlib.util.find_spec("torch").origin).parent)')
flags="-std=c++20 -O1 -g -fPIC -ffp-contract=off -Wall -Wno-unknown-pragmas -DTORCH_TARGET_VERSION=0x020b000000000000ULL"
if [ -n "${SANITIZE:-}" ]; then
  flags="$flags -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
  # Python is built without them: the sanitizer must come first, and find what throws.
  preload="$(${CXX:-g++} -print-file-name=libasan.so) $(${CXX:-g++} -print-file-name=libstdc++.so)"
  export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0:verify_asan_link_order=0
fi
${CXX:-g++} $flags -isystem "$torch/include" -shared -x c++ "$folder/ms_deform_attn/cuda.cu" -x none \
  -L"$torch/lib" -ltorch_cpu -ltorch -o "$made/emulated.so"
cd "$folder/.."
env LD_PRELOAD="${preload:-}" DINOMED_CPU_KERNEL=none DINOMED_EMULATED_CUDA="$made/emulated.so" \
  "$python" -m pytest --capture=sys tests/ops/test_ms_deform_attn_cuda.py "$@"
