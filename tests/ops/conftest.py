"""Fixtures of the operator tests: which kernels run (`target`), how many threads, and memory that shows what was never written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch

from emc_fast.ops._backend import use_backend
from emc_fast.ops._library import native

from .parity import Target, targets


def _left_to_a_gpu(item: pytest.Item) -> bool:
    """Triton's interpreter takes a second for what a GPU does at once, and runs one program after the other.

    Without a GPU it therefore gets the first seed of a test (of attention's parity, with its many options, two), and none that asks for
    statistics or for the same bits again.
    `TRITON_INTERPRET=1 pytest tests/ops` gives it everything.
    """
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    target = parameters.get("target")
    if "EMC_FAST_FEW_SEEDS" not in os.environ or not isinstance(target, Target) or target.backend != "triton":
        return False
    assert isinstance(item, pytest.Function)
    few = 2 if item.nodeid.startswith("tests/ops/test_attention.py::test_parity") else 1
    return parameters.get("seed", 0) % 100 >= few or item.originalname in ("test_deterministic", "test_moments")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if _left_to_a_gpu(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not _left_to_a_gpu(item)]


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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`target` runs over the kernels of the operator whose file stem the test file has: tests/ops/test_<op>.py."""
    if "target" in metafunc.fixturenames:
        operator = metafunc.module.__name__.rpartition("test_")[2]
        every_order = "parity" in metafunc.function.__name__
        metafunc.parametrize("target", targets(operator, every_order=every_order), ids=str, indirect=True, scope="function")


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """One set of kernels: the CPU's of an instruction set, the CUDA kernels on the emulator, or on a GPU its back ends (`-m gpu`).

    New tensors of the test are made on the target's device, so that the same test runs unchanged on every machine.
    """
    chosen: Target = request.param
    if reason := chosen.missing():
        (pytest.fail if "EMC_FAST_NO_SKIP" in os.environ else pytest.skip)(reason)  # bench/gpu_suite.sh: a machine that ought to run it
    with ExitStack() as stack:
        if chosen.isa:
            stack.callback(native().set_isa, native().isa)
            native().set_isa(chosen.isa)
        if chosen.emulated:
            from cuda_emulator import build

            stack.enter_context(build.enabled(chosen.emulated))
        if chosen.device != "cpu":
            stack.enter_context(torch.device(chosen.device))
        stack.enter_context(use_backend(chosen.backend))
        yield chosen


@pytest.fixture
def isa(target: Target) -> str:
    """The instruction set in use, for operators that have kernels for the CPU only."""
    if not target.isa:
        pytest.skip("this operator has no kernel for the GPU; its CPU kernels are tested on every machine")
    return target.isa
