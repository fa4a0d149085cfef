#!/usr/bin/env bash
# Everything that only a machine with a GPU can tell: builds, runs the operators' tests on the real back ends, compute-sanitizer, and the
# races. Needs no network: python with torch, numpy, pytest, setuptools, cmake, ninja and pybind11, an nvcc and a C++ compiler;
# pytest-xdist is used where it is there.
#
#   bench/gpu_suite.sh [OUT] [STAGE ...]
#
# OUT defaults to $OUT, then to gpu-report; report.md there is what to read, suite.log has everything. Stages, each with its own limit in
# seconds; without any named, those of the first list run, below nine minutes together:
#
#   build 110, info 20, cuda 60, triton 110, ptx 80, memcheck 40, racecheck 20, races 95
#   compiled 200   races beside torch.compile          tune 400   the search for Triton's tiles (OUT/tuned.json)
#
# What was raced is held against what is aimed at (bench/gpu_targets.py) at the end of the report. OUT/races.json and OUT/compiled.json are
# what `emc-fast bench report` reads: they belong into bench/results/<device>/.
#
# Stages can be called one by one into the same OUT, on a library that is built: the report grows, and what a stage has left when its time
# runs out stays (pytest ends as by Ctrl-C; races and tiles are written one by one). LIMIT=300 gives every named stage that limit. A stage that
# fails does not stop the others, and the exit status says whether all passed. A test that is skipped counts as failed: nothing passes for
# want of a device or of a kernel. DRY_RUN=1 prints the commands without running them.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

declare -A limits=([build]=110 [info]=20 [cuda]=60 [triton]=110 [ptx]=80 [memcheck]=40 [racecheck]=20 [races]=95 [compiled]=200 [tune]=400)
usual=(build info cuda triton ptx memcheck racecheck races)
if [ $# -gt 0 ] && [ -z "${limits[$1]:-}" ]; then
  OUT=$1
  shift
fi
OUT=${OUT:-gpu-report}
stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=("${usual[@]}")
for stage in "${stages[@]}"; do
  [ -n "${limits[$stage]:-}" ] || { echo "gpu_suite.sh: no stage $stage; there are ${usual[*]} compiled tune" >&2; exit 2; }
done
[ "${DRY_RUN:-}" = 1 ] || mkdir -p "$OUT"
OUT=$(realpath -m "$OUT")
report=$OUT/report.md
log=$OUT/suite.log
failed=0
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} PYTHONUNBUFFERED=1 EMC_FAST_NO_SKIP=1
export PYTHON=${PYTHON:-python3}

run() { # run LINES COMMAND...: one stage's command under its limit, its last lines in the report
  local lines=$1 limit=${LIMIT:-${limits[$stage]}} begin=$SECONDS status
  shift
  if [ "${DRY_RUN:-}" = 1 ]; then
    printf '%s (%s s):' "$stage" "$limit"
    printf ' %q' "$@"
    printf '\n'
    return
  fi
  printf '\n==== %s\n' "$stage" >>"$log"
  local from=$(($(wc -l <"$log") + 1))
  timeout --signal=INT --kill-after=10 "$limit" "$@" >>"$log" 2>&1
  status=$?
  [ $status -eq 0 ] || failed=1
  {
    printf '\n## %s: ' "$stage"
    case $status in 0) printf 'passed' ;; 124 | 137) printf 'FAILED, out of time' ;; *) printf 'FAILED, status %s' "$status" ;; esac
    printf ' (%s s of %s)\n\n```\n' $((SECONDS - begin)) "$limit"
    tail -n "+$from" "$log" | tail -n "$lines" | cut -c1-300
    printf '```\n'
  } >>"$report"
}

by_cmake() { # by_cmake FOLDER: the library in FOLDER/staging
  cmake -S . -B "$1" -G Ninja -DCMAKE_BUILD_TYPE=Release -DEMC_STAGING="$PWD/$1/staging" \
    -DEMC_SOURCES="$("$PYTHON" -c 'from emc_fast._sources import digest; print(digest())')" && cmake --build "$1"
}
# By setup.py, or where its setuptools is too old for pyproject.toml, by CMake alone.
build() {
  "$PYTHON" setup.py build_ext --inplace && return
  by_cmake build/gpu_suite && cp build/gpu_suite/staging/_C.so emc_fast/_C.so
}
# A library whose only machine code is for 7.5: every newer device compiles its PTX. (CUDA_FORCE_PTX_JIT would ask that of torch too, whose
# kernels have none.)
from_ptx() {
  EMC_FAST_CUDA_TARGETS=75 by_cmake build/gpu_suite_ptx && EMC_FAST_LIBRARY=$PWD/build/gpu_suite_ptx/staging/_C.so "$@"
}
export -f build by_cmake from_ptx

facts='
import sys, torch
from emc_fast.ops import backend_report
from emc_fast.ops._library import has_kernel, native
library = native()
print(library.stamp, library.problem or "usable", library.cuda_problem or "and its CUDA kernels too", sep="\n")
for row in backend_report():
    if row.device == "cuda":
        print(f"{row.operator:22} {row.backend:10} {chr(42) if row.chosen else chr(32)} {row.reason or row.source}")
sys.exit(bool(library.problem or library.cuda_problem or not torch.cuda.is_available() or not has_kernel("philox_normal", "CUDA")))
'
spread=()
"$PYTHON" -c 'import xdist' 2>/dev/null && spread=(-n 8)
# Tests of a module that cannot be imported here (a package that is missing) must not take the others along.
tests=("$PYTHON" -m pytest tests/ops -m gpu -q -p no:cacheprovider --continue-on-collection-errors)
small=("${tests[@]}" -k "cuda and any_layout and seed0")
sanitizer=(compute-sanitizer --error-exitcode 9 --kernel-name-exclude kernel_substring=at::)

if [ "${DRY_RUN:-}" != 1 ] && [ ! -e "$report" ]; then
  {
    printf '# GPU report\n\n%s, commit %s\n' "$(date -u +%FT%TZ)" "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
    printf '\n```\n'
    nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total --format=csv,noheader 2>&1
    nvcc --version 2>&1 | tail -n 2
    "$PYTHON" -c 'import torch; print("torch", torch.__version__, "sees CUDA:", torch.cuda.is_available())' 2>&1
    printf '```\n'
  } >"$report"
fi

for stage in "${stages[@]}"; do
  case $stage in
    build) run 12 bash -c build ;;
    info) run 60 "$PYTHON" -c "$facts" ;;
    cuda) run 20 "${tests[@]}" "${spread[@]}" -k "not triton" --junitxml="$OUT/cuda.xml" ;;
    triton) run 20 "${tests[@]}" "${spread[@]}" -k triton --junitxml="$OUT/triton.xml" ;;
    ptx) run 8 bash -c 'from_ptx "$@"' from_ptx "${tests[@]}" -k "cuda and parity and seed0" ;;
    memcheck | racecheck)
      if ! command -v compute-sanitizer >/dev/null; then
        printf '\n## %s: not run, no compute-sanitizer on the path\n' "$stage" >>"$report"
      elif [ "$stage" = memcheck ]; then # torch's caching allocator would hide accesses beyond a tensor
        run 12 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${sanitizer[@]}" --tool memcheck "${small[@]}"
      else
        run 12 "${sanitizer[@]}" --tool racecheck "${small[@]}"
      fi
      ;;
    races) run 120 "$PYTHON" bench/gpu_ops.py "$OUT/races.json" --seconds $((${LIMIT:-${limits[races]}} - 15)) ;;
    compiled) run 40 "$PYTHON" bench/gpu_ops.py "$OUT/compiled.json" --compile --seconds $((${LIMIT:-${limits[compiled]}} - 30)) ;;
    tune)
      [ -e "$OUT/tuned.json" ] || cp kernels/_tuned.json "$OUT/tuned.json"
      run 40 "$PYTHON" bench/tune_triton.py --table "$OUT/tuned.json" --seconds 370
      ;;
  esac
done

if [ "${DRY_RUN:-}" != 1 ]; then
  measured=()
  for file in "$OUT/compiled.json" "$OUT/races.json"; do [ ! -e "$file" ] || measured+=("$file"); done
  if [ ${#measured[@]} -gt 0 ]; then
    printf '\n## targets, from all that has been measured so far\n\n' >>"$report"
    "$PYTHON" bench/gpu_targets.py "${measured[@]}" >>"$report" 2>&1 || failed=1
  fi
  cat "$report"
fi
exit $failed
