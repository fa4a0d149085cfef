#!/usr/bin/env bash
# Everything that only a machine with a GPU can tell: builds, runs the operators' tests on the real back ends, compute-sanitizer, and the
# benchmarks. Needs no network: python with torch, pytest, pytest-benchmark, cmake, ninja and pybind11, and an nvcc.
#
#   bench/gpu_suite.sh [OUT]      OUT defaults to $OUT, then to gpu-report; report.md there is what to read
#
# Each step has its own limit; together they stay below nine minutes. A step that fails does not stop the others, and the exit status says
# whether all passed. DRY_RUN=1 prints the steps without running them.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
OUT=${1:-${OUT:-gpu-report}}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
report=$OUT/report.md
failed=0

step() { # step NAME LIMIT_SECONDS COMMAND...
  local name=$1 limit=$2 begin=$SECONDS status
  shift 2
  if [ "${DRY_RUN:-}" = 1 ]; then
    printf '%s (%s s):' "$name" "$limit"
    printf ' %q' "$@"
    printf '\n'
    return
  fi
  timeout "$limit" "$@" >"$OUT/$name.log" 2>&1
  status=$?
  [ $status -eq 0 ] || failed=1
  {
    printf '\n## %s: ' "$name"
    case $status in 0) printf 'passed' ;; 124) printf 'FAILED, out of time' ;; *) printf 'FAILED, status %s' "$status" ;; esac
    printf ' (%s s of %s)\n\n```\n' $((SECONDS - begin)) "$limit"
    tail -n "${TAIL:-12}" "$OUT/$name.log"
    printf '```\n'
  } >>"$report"
}

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
{
  printf '# GPU report\n\n%s, commit %s\n' "$(date -u +%FT%TZ)" "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
  printf '\n```\n'
  nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total --format=csv,noheader 2>&1
  nvcc --version 2>&1 | tail -n 2
  python -c 'import torch; print("torch", torch.__version__, "sees CUDA:", torch.cuda.is_available())' 2>&1
  printf '```\n'
} >"$report"

# By setup.py, or where its setuptools is too old for pyproject.toml, by CMake alone.
build() {
  python setup.py build_ext --inplace && return
  local work=build/gpu_suite
  cmake -S . -B "$work" -G Ninja -DCMAKE_BUILD_TYPE=Release -DEMC_STAGING="$PWD/$work/staging" \
    -DEMC_SOURCES="$(python -c 'from emc_fast._sources import digest; print(digest())')" &&
    cmake --build "$work" && cp "$work/staging/_C.so" emc_fast/_C.so
}
export -f build
step build 120 bash -c build
TAIL=40 step info 20 python -c 'from emc_fast.cli import main; main()' info
step tests 130 python -m pytest tests/ops -m gpu -q --junitxml="$OUT/tests.xml" -p no:cacheprovider
# The PTX in the library, compiled by the driver, in the place of the machine code.
step ptx 40 env CUDA_FORCE_PTX_JIT=1 python -m pytest tests/ops -m gpu -q -k "cuda and parity and seed0" -p no:cacheprovider
small=(python -m pytest tests/ops -m gpu -q -k "cuda and any_layout and seed0" -p no:cacheprovider)
if command -v compute-sanitizer >/dev/null; then
  # torch's caching allocator would hide accesses beyond a tensor.
  step memcheck 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 --kernel-name-exclude kernel_substring=at:: "${small[@]}"
  step racecheck 30 compute-sanitizer --tool racecheck --error-exitcode 9 --kernel-name-exclude kernel_substring=at:: "${small[@]}"
else
  printf '\n## memcheck, racecheck: not run, no compute-sanitizer on the path\n' >>"$report"
fi
TAIL=40 step bench 110 python bench/gpu_ops.py "$OUT/bench.json" --seconds 80

[ "${DRY_RUN:-}" = 1 ] || cat "$report"
exit $failed
