#!/usr/bin/env bash
# The tests of the kernels for matrix tiles (csrc/cpu/amx) on a processor with AVX-512 and no tiles: what the unit does is computed in vectors.
#
#   tools/test_tiles.sh SCRATCH [ARGUMENTS OF PYTEST...]
#
# SCRATCH gets a copy of the tree with a library of its own; this one is left alone. It needs in the environment what builds and tests the package.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1" && scratch=$(cd "$1" && pwd) && shift

. "$root/tools/copy_tree.sh"
cmake -S "$root" -B "$scratch/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DEMC_EMULATED_TILES=ON -DEMC_NVCC= "-DEMC_SOURCES=$digest" \
  "-DEMC_STAGING=$scratch/tree/emc_fast" >/dev/null
cmake --build "$scratch/build"

[ $# -gt 0 ] || set -- -n 2 tests/ops/test_{attention,attention_block,attention_sublayer,emotion_attention,precision}.py
cd "$scratch/tree"
PYTHONPATH="$scratch/tree" python3 -c 'from emc_fast.ops._library import native; assert native().isa == "amx", native().problem or native().isa'
PYTHONPATH="$scratch/tree" python3 -m pytest -q -p no:cacheprovider -k "amx or precision" "$@"
