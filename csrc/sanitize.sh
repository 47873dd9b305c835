#!/bin/sh
# Run random and hostile inputs through the CPU kernels with the address and undefined-behaviour sanitizers.
set -eu
folder=$(cd "$(dirname "$0")" && pwd)
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
flags="-std=c++20 -O1 -g -fno-math-errno -ffp-contract=fast -Wno-psabi"
flags="$flags -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
objects=""
for name in portable avx2 avx512; do
  case "$name-$(uname -m)" in
    portable-*) extra="" ;;
    avx2-x86_64) extra="-mavx2 -mfma -mf16c" ;;
    avx512-x86_64) extra="-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c" ;;
    *) continue ;;
  esac
  ${CXX:-g++} $flags $extra -c "$folder/ms_deform_attn/kernels_$name.cpp" -o "$made/$name.o"
  objects="$objects $made/$name.o"
done
${CXX:-g++} $flags "$folder/sanitize.cpp" $objects -o "$made/sanitize"
"$made/sanitize" "$@"
