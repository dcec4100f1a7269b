#!/usr/bin/env bash
# Runs the tests of the native kernels, and drawn calls of a layer, under the address and undefined-behaviour
# sanitizers, in a build of their own.
set -euo pipefail
cd "$(dirname "$0")/.."

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
WENET_NATIVE=1 WENET_SANITIZE=1 pip install --quiet --no-deps --target "$build" .

compiler=${CXX:-g++}
# Python itself is not built with them, so their libraries must be there first; and it never frees all it has.
export LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export PYTHONPATH="$build"
export WENET_EXAMPLES="${WENET_EXAMPLES:-100}"
# Derivatives of derivatives and compilers run little native code, and take long here.
pytest -n 2 --import-mode=append --timeout 1500 -q -k "not (gradgrad or compile or opcheck or second)" \
  tests/wenet_kernels/test_{cpu,cpu_bf16,programs_cpu,programs_batchnorm,programs_bf16,project,projected,transforms}.py \
  tests/wenet/test_like_torch_rnn.py "$@"
