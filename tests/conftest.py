"""What every test shares: one torch thread per worker of a spread suite, Triton's interpreter without a GPU, and what a GPU would run."""

import os

import pytest
import torch

LEFT_OUT = pytest.StashKey[int]()

if not torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ:
    # Before any kernel of Triton's is imported: it decides when it decorates. With a GPU the same tests run compiled (`-m gpu`).
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["EMC_FAST_FEW_SEEDS"] = "1"

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a CUDA device its cases are left out, unless they are asked for (`-m gpu`): then each says what it needs."""
    if torch.cuda.is_available() or "gpu" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
        config.stash[LEFT_OUT] = len(left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if count := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{count} cases need a CUDA device and were left out: `pytest -m gpu` on a machine with one")
