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


#: Kernels that multiply matrices begin so; those of the block's end have none.
MULTIPLYING = ("attention<", "attention_backward_queries<", "attention_backward_keys<", "few_heads<")


@pytest.mark.parametrize(
    "stem",
    [
        "philox",
        "reparameterize",
        "fusion_kl",
        "fusion_kl_rows",
        "dtw",
        "fusion_kl_categorical",
        "attention",
        "attention_backward",
        "attention_block",
        "emotion_attention",
    ],
)
def test_volta(resources: ModuleType, stem: str) -> None:
    """sm_70, which no toolkit from 13.0 on has code for: NVRTC 12.9 has."""
    if resources.library() is None:
        pytest.skip(f"needs NVRTC (any machine: pip install {resources.WHEEL}, which the extra `test` has)")
    expected = resources.read_table()
    for name, found in resources.measure(70, (stem,)).items():
        assert found.spilled == 0, f"{name} spills {found.spilled} bytes: see __launch_bounds__"
        assert str(found) == expected[name][70], f"{name} takes {found}; if that is meant, run tools/cuda_resources.py and commit the table"
        assert (found.matrix > 0) == (name.startswith(MULTIPLYING) and "Half" in name), f"{name} has {found.matrix} matrix instructions"


def test_the_list_of_stems_is_whole(resources: ModuleType) -> None:
    assert set(resources.KERNELS) == set(test_volta.pytestmark[0].args[1])


def in_the_build(file: str) -> list[Path]:
    """A file that building with CUDA leaves behind, one for each build folder."""
    found = sorted((ROOT / "build").glob(f"cmake-*/cuda/{file}"))
    if not found:
        pytest.skip("needs a build folder with CUDA: an editable installation on a machine with nvcc leaves it in the source tree")
    return found


def test_nothing_spills_in_the_build(resources: ModuleType) -> None:
    """What nvcc reported when this library was built, for each of its targets."""
    reports = in_the_build("resources.txt")
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


def test_attention_of_the_build_uses_what_its_targets_have() -> None:
    """HMMA in the machine code for the types that a target multiplies in matrix units, and in no other (from 7.5 on); from 8.0 on LDGSTS.

    The latter is a copy to shared memory that goes on beside the products, here of every size.
    """
    triton = pytest.importorskip("triton", reason="needs the disassembler in Triton's wheel (any machine: the extra `test` has it)")
    disassembler = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    for path in in_the_build("kernels.o"):
        listing = subprocess.run([disassembler, "-sass", path], capture_output=True, text=True, check=True).stdout
        for code in listing.split("arch = sm_")[1:]:
            target, _, body = code.partition("\n")
            for function in body.split("Function : ")[1:]:
                name = function.partition("\n")[0]
                half = "4Half" in name or ("8BFloat16" in name and int(target) >= 80)
                multiplies = "attention" in name or "few_heads" in name
                assert ("HMMA" in function) == (multiplies and half), f"{name} for sm_{target}"
                if "9Attention" in name:
                    copies = set(re.findall(r"\bLDGSTS\.E(\S*)", function))
                    assert copies == ({"", ".64", ".BYPASS.128"} if int(target) >= 80 else set()), f"{name} for sm_{target}"
