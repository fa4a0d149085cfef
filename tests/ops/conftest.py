"""Fixtures of the operator tests: which kernels run (`target`), how many threads, and memory that shows what was never written."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from emc_fast.ops._backend import use_backend
from emc_fast.ops._library import native

from .parity import Target, targets


@pytest.fixture(scope="session", autouse=True)
def _library() -> Iterator[None]:
    library = native()
    assert not library.problem, library.problem
    library.set_poison(True)  # fresh outputs are NaN, so an element that a kernel forgets fails every comparison
    os.environ["EMC_FAST_POISON"] = "1"  # the same for the Triton kernels
    yield
    library.set_poison(False)
    del os.environ["EMC_FAST_POISON"]


@pytest.fixture(autouse=True)
def _quiet_threads() -> Iterator[None]:
    """One thread unless a test asks for more, and the seed of the test's own choice; the instruction set is left as it was found."""
    threads, isa = torch.get_num_threads(), native().isa
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    # Tests that follow in this process would compute other bits, and the one that compares with a fresh process would fail.
    assert native().isa == isa, "this test left another instruction set in use than it found"


@pytest.fixture(params=targets(), ids=str)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Every kernel that this build has: the CPU's, one per instruction set; on a GPU also its back ends (`-m gpu`)."""
    chosen: Target = request.param
    stem = request.module.__name__.rpartition(".")[2].removeprefix("test_")
    if reason := chosen.missing("philox_normal" if stem == "philox" else stem):
        pytest.skip(reason)
    library, before = native(), native().isa
    if chosen.isa:
        library.set_isa(chosen.isa)
    with use_backend(chosen.backend):
        yield chosen
    library.set_isa(before)


@pytest.fixture
def isa(target: Target) -> str:
    """The instruction set in use, for operators that have kernels for the CPU only."""
    if target.backend != "cpu":
        pytest.skip("this operator has no kernel for the GPU; its CPU kernels are tested on every machine")
    return target.isa
