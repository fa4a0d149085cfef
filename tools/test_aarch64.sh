#!/usr/bin/env bash
# The operators' tests on an emulated aarch64 processor: kernels cross-compiled, Python and torch (the oldest that is supported) those of aarch64.
#
#   tools/test_aarch64.sh SCRATCH [TESTS...]
#
# needs Debian 12 with `apt-get install qemu-user-static g++-aarch64-linux-gnu`, and in the environment what builds the package (cmake, ninja).
# SCRATCH gets 1 GB of packages and is used again. Nothing is installed in the system. All of them take four minutes.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1" && scratch=$(cd "$1" && pwd) && shift
for tool in qemu-aarch64-static aarch64-linux-gnu-g++ cmake ninja pip; do
  command -v "$tool" >/dev/null || { echo "$tool is not there; the head of $0 says what is needed"; exit 2; }
done

if [ ! -e "$scratch/complete" ]; then
  mkdir -p "$scratch"/{lists/partial,cache/archives/partial,debs,sysroot}
  apt=(apt-get -qq -o APT::Architectures=amd64,arm64 -o "Dir::State::lists=$scratch/lists" -o "Dir::Cache=$scratch/cache" -o APT::Sandbox::User=root)
  "${apt[@]}" update
  # shellcheck disable=SC2046
  (cd "$scratch/debs" && "${apt[@]}" download $(printf '%s:arm64 ' python3.11 python3.11-minimal libpython3.11-stdlib libpython3.11-minimal \
    libc6 libgcc-s1 libstdc++6 libgomp1 zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 libcrypt1))
  for package in "$scratch"/debs/*.deb; do dpkg -x "$package" "$scratch/sysroot"; done
  pip install -q --target "$scratch/site" --python-version 3.11 --only-binary=:all: --no-deps \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
    torch==2.10.0 filelock typing_extensions sympy mpmath networkx jinja2 markupsafe fsspec numpy scipy \
    pytest iniconfig packaging pluggy pygments hypothesis sortedcontainers
  touch "$scratch/complete"
fi

. "$root/tools/copy_tree.sh"
cmake -S "$root" -B "$scratch/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DEMC_NVCC= "-DEMC_SOURCES=$digest" "-DEMC_STAGING=$scratch/tree/emc_fast" >/dev/null
cmake --build "$scratch/build"

# Left out: tests that start this Python again, which takes the kernel's help, compile through torch, or need x86 (the CUDA emulator).
[ $# -gt 0 ] || set -- tests/ops/test_{attention,attention_block,attention_sublayer,cross_covariance,dtw,emotion_attention,fusion_kl,fusion_kl_categorical,lagged_correlation,math,philox,precision,reparameterize}.py
cd "$scratch/tree"
CXX=aarch64-linux-gnu-g++ PYTHONPATH="$scratch/tree:$scratch/site" OMP_NUM_THREADS=1 \
  qemu-aarch64-static -cpu max -L "$scratch/sysroot" "$scratch/sysroot/usr/bin/python3.11" -m pytest -q -p no:cacheprovider \
  -k "not emulated and not compile and not environment and not tslearn and not inductor" "$@"
