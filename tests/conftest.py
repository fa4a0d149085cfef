"""What every test shares: one torch thread per worker of a spread suite, Triton's interpreter without a GPU, and what a GPU would run."""

import os

import pytest
import torch

LEFT_OUT = pytest.StashKey[dict[str, int]]()

if not torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ:
    # Before any kernel of Triton's is imported: it decides when it decorates. With a GPU the same tests run compiled (`-m gpu`).
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["EMC_FAST_FEW_SEEDS"] = "1"

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, unless they are asked for by name (`-m`), what needs a CUDA device and what takes minutes in Triton's interpreter."""
    without = [] if torch.cuda.is_available() else ["gpu"]
    if "EMC_FAST_FEW_SEEDS" in os.environ:
        without.append("interpreter")
    for marker in without:
        left_out = [item for item in items if item.get_closest_marker(marker)]
        if marker in config.option.markexpr or not left_out:
            continue
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker(marker)]
        config.stash.setdefault(LEFT_OUT, {})[marker] = len(left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = config.stash.get(LEFT_OUT, {})
    if count := left_out.get("gpu", 0):
        terminalreporter.write_line(f"{count} cases need a CUDA device and were left out: `pytest -m gpu` on a machine with one")
    if count := left_out.get("interpreter", 0):
        terminalreporter.write_line(f"{count} cases of Triton's interpreter were left out: `pytest -m interpreter tests/ops` runs them")
