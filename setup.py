"""Builds the native library with CMake and puts its two files beside the Python code.

`emc_fast/_C.so` holds the kernels and registers them with torch's dispatcher; nothing of it depends on the Python version.
`emc_fast/_build_info*.so` (pybind11) tells what was built. See docs/build.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
from emc_fast._sources import digest  # noqa: E402  (an isolated build does not have the source tree on its path)


def cmake_program() -> str:
    """The cmake of the build environment; its console script needs that environment's PYTHONPATH, which subprocesses inherit."""
    found = shutil.which("cmake")
    if found is None:
        raise RuntimeError("cmake not found; install it (pip install cmake ninja pybind11) or let pip build in isolation")
    return found


class BuildNative(build_ext):
    """One CMake run for both files, whatever the list of extensions says."""

    def run(self) -> None:
        in_place = bool(self.inplace or getattr(self, "editable_mode", False))
        target = ROOT / "emc_fast" if in_place else Path(self.build_lib).resolve() / "emc_fast"
        # One build folder per interpreter: objects of the kernels are the same, the binding module is not. Isolated builds change the
        # paths of cmake, ninja and pybind11 with every run, so CMake's cache of them must not survive.
        work = ROOT / "build" / f"cmake-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        work.mkdir(parents=True, exist_ok=True)
        (work / "CMakeCache.txt").unlink(missing_ok=True)
        staging = work / "staging"
        shutil.rmtree(staging, ignore_errors=True)
        configure = [cmake_program(), "-S", str(ROOT), "-B", str(work), "-DCMAKE_BUILD_TYPE=Release"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-DEMC_STAGING={staging}", f"-DEMC_SOURCES={digest()}"]
        if ninja := shutil.which("ninja"):
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        try:
            import pybind11

            configure.append(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
        except ImportError:
            print("emc_fast: pybind11 is not installed, so emc_fast._build_info is not built")
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
        subprocess.run(configure, check=True)
        subprocess.run([cmake_program(), "--build", str(work), "--parallel", jobs], check=True)
        target.mkdir(parents=True, exist_ok=True)
        self._placed = [self._place(built, target) for built in sorted(staging.iterdir())]

    @staticmethod
    def _place(built: Path, target: Path) -> str:
        """Rename into place, so that a process that has the old library open keeps it whole."""
        aside = target / f".{built.name}.{os.getpid()}"
        shutil.copy2(built, aside)
        os.replace(aside, target / built.name)
        return str(target / built.name)

    def get_outputs(self) -> list[str]:
        return list(getattr(self, "_placed", []))

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        """What a source distribution needs besides the Python files."""
        return ["CMakeLists.txt", *(str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("csrc/**/*")) if p.is_file())]

    def copy_extensions_to_source(self) -> None:
        """Nothing to do: run() already built where the files belong."""


setup(
    # Named so that the wheel is marked as platform-dependent; its sources are CMake's business.
    ext_modules=[Extension("emc_fast._build_info", sources=[])],
    cmdclass={"build_ext": BuildNative},
)
