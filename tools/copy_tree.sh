# Sourced by tools/test_*.sh: $scratch/tree becomes a copy of the tree $root without its library, and $digest says what that is to be built from.
mkdir -p "$scratch/tree"
for part in csrc emc_fast kernels tests bench pyproject.toml; do
  rm -rf "${scratch:?}/tree/$part" && cp -r "$root/$part" "$scratch/tree/"
done
rm -f "$scratch"/tree/emc_fast/*.so
digest=$(cd "$root" && python3 -c 'import runpy; print(runpy.run_path("emc_fast/_sources.py")["digest"]())')
