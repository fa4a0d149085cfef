"""Every CUDA kernel compiles for the oldest target and for those of the build, spills no register, and takes what the table says."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from .test_build import tool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def resources() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuda_resources", ROOT / "tools" / "cuda_resources.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_kernel_is_in_the_table(resources: ModuleType) -> None:
    """And every `__global__` function of csrc/cuda is in the list that the table is made from."""
    written = {
        name for path in (ROOT / "csrc/cuda").glob("*.cuh") for name in re.findall(r"__global__\s[^(]*\([^)]*\)\s(\w+)\(", path.read_text())
    }
    listed = {name for stem in resources.KERNELS for name in resources.names(stem)}
    assert written == {name.partition("<")[0] for name in listed}
    assert set(resources.read_table()) == listed


@pytest.mark.parametrize("stem", ["philox", "reparameterize", "fusion_kl", "fusion_kl_rows", "dtw", "fusion_kl_categorical"])
def test_volta(resources: ModuleType, stem: str) -> None:
    """sm_70, which no toolkit from 13.0 on has code for: NVRTC 12.9 has."""
    if resources.library() is None:
        pytest.skip(f"needs NVRTC (any machine: pip install {resources.WHEEL}, which the extra `test` has)")
    expected = resources.read_table()
    for name, found in resources.measure(70, (stem,)).items():
        assert found.spilled == 0, f"{name} spills {found.spilled} bytes: see __launch_bounds__"
        assert str(found) == expected[name][70], f"{name} takes {found}; if that is meant, run tools/cuda_resources.py and commit the table"


def test_the_list_of_stems_is_whole(resources: ModuleType) -> None:
    assert set(resources.KERNELS) == set(test_volta.pytestmark[0].args[1])


def test_nothing_spills_in_the_build(resources: ModuleType) -> None:
    """What nvcc reported when this library was built, for each of its targets."""
    reports = sorted((ROOT / "build").glob("cmake-*/cuda/resources.txt"))
    if not reports:
        pytest.skip("needs a build folder with CUDA: an editable installation on a machine with nvcc leaves it in the source tree")
    listed = {name.partition("<")[0] for stem in resources.KERNELS for name in resources.names(stem)}
    for path in reports:
        found = list(resources.parse(path.read_text()))
        symbols = subprocess.run(
            [tool("c++filt")], input="\n".join(symbol for symbol, _ in found), capture_output=True, text=True, check=True
        )
        kernels = symbols.stdout.splitlines()
        assert {re.sub(r"^(void )?emc::cuda::(\w+).*", r"\2", kernel) for kernel in kernels} == listed
        for kernel, (_, taken) in zip(kernels, found, strict=True):
            assert taken.spilled == 0, f"{kernel} spills {taken.spilled} bytes"
            assert 0 < taken.registers <= 255
