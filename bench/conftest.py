"""Options, the fixture `race`, and the table at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from .race import Case, Result, Settings, run_race, table

RESULTS = pytest.StashKey[list[Result]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("emc_fast benchmarks")
    group.addoption("--full", action="store_true", help="every size of the field instead of a few")
    group.addoption("--threads", type=int, default=1, help="threads of torch and of the kernels (default 1)")
    group.addoption("--budget", type=float, default=2.0, help="seconds that one race may take, preparations apart (default 2)")
    group.addoption("--no-compile", action="store_true", help="leave torch.compile out: it takes most of the time of a run")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []
    config.option.benchmark_quiet = True  # its table holds rounds, not calls, and no rivals; the one below replaces it


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Benchmarks are bench_*.py, so that no test run picks them up by accident."""
    if not file_path.match("bench_*.py") or parent.session.isinitpath(file_path):  # a file that is named is collected anyhow
        return None
    return pytest.Module.from_parent(parent, path=file_path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`size` runs over the module's SIZES, the short list or the full one, and `direction` over what can be timed."""
    if "size" in metafunc.fixturenames:
        short, full = metafunc.module.SIZES
        sizes = full if metafunc.config.getoption("--full") else short
        metafunc.parametrize("size", sizes, ids=lambda size: "x".join(map(str, size)))
    if "direction" in metafunc.fixturenames:
        metafunc.parametrize("direction", ["forward", "forward+backward"])


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def race(request: pytest.FixtureRequest, benchmark) -> Callable[[Case, str], Result]:
    """Race a case against its rivals: first the gate, then all of them interleaved."""
    option = request.config.getoption
    settings = Settings(budget=option("--budget"), compile=not option("--no-compile"), threads=option("--threads"))

    def start(case: Case, direction: str = "forward") -> Result:
        result = run_race(case, direction, settings, benchmark)
        request.config.stash[RESULTS].append(result)
        return result

    return start


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if results := config.stash[RESULTS]:
        terminalreporter.section("median of ours; how many times faster than each rival, in one interleaved run")
        for line in table(results):
            terminalreporter.write_line(line)
