"""Options, the fixture `race`, what goes into the JSON file, and the table at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from emc_fast.reporting import Race
from emc_fast.reporting.machine import this_gpu, this_machine
from emc_fast.reporting.races import rounded

from .limits import device_limits, machine_limits
from .race import Case, Settings, run_race, table

RACES = pytest.StashKey[list[Race]]()
ON_A_GPU = pytest.StashKey[bool]()


OVER = {
    "size": "SIZES",
    "growth": "GROWTH",
    "frames": "FRAMES",
    "scaled": "SCALED",
    "generation_size": "GENERATION",
    "training_size": "TRAINING",
    "regnn_frames": "REGNN_FRAMES",
    "regnn_windows": "REGNN_WINDOWS",
}
"""Arguments of benchmarks, and the (short, full) pair of lists in their module."""


def in_short(value: Any) -> str:
    return "x".join(map(in_short, value)) if isinstance(value, tuple) else str(value)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("emc_fast benchmarks")
    group.addoption("--full", action="store_true", help="every size of the field instead of a few")
    group.addoption("--threads", type=int, default=1, help="threads of torch and of the kernels (default 1)")
    group.addoption("--budget", type=float, default=2.0, help="seconds that one race may take, preparations apart (default 2)")
    group.addoption("--no-compile", action="store_true", help="leave torch.compile out: it takes most of the time of a run")
    group.addoption("--compile-models", action="store_true", help="torch.compile a whole model's training step too: minutes")
    group.addoption("--whole", action="store_true", help="FaceAIS and REGNN's step as published; metrics of 64 clips and a whole test set")
    group.addoption("--compile-within", type=float, default=300.0, help="seconds that torch.compile may take for one rival (default 300)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RACES] = []
    config.stash[ON_A_GPU] = False
    config.option.benchmark_quiet = True  # its table holds rounds, not calls, and no rivals; the one below replaces it


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Races of a GPU run only where they are asked for (`-m gpu`)."""
    if "gpu" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("gpu")]


def pytest_collection_finish(session: pytest.Session) -> None:
    """A file of races is of one machine."""
    kinds = {item.get_closest_marker("gpu") is not None for item in session.items}
    if len(kinds) > 1:
        raise pytest.UsageError("races of the CPU and of a GPU go into files of their own: `-m gpu` for those of the GPU alone, or no -m")
    session.config.stash[ON_A_GPU] = kinds == {True}


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Benchmarks are bench_*.py, so that no test run picks them up by accident."""
    if not file_path.match("bench_*.py") or parent.session.isinitpath(file_path):  # a file that is named is collected anyhow
        return None
    return pytest.Module.from_parent(parent, path=file_path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What `OVER` names runs over a list of the module, the short one or the full one, and `direction` over what can be timed."""
    for name, of_module in OVER.items():
        if name in metafunc.fixturenames:
            short, full = getattr(metafunc.module, of_module)
            metafunc.parametrize(name, full if metafunc.config.getoption("--full") else short, ids=in_short)
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
def publish(request: pytest.FixtureRequest) -> Callable[[Race], None]:
    """Put a race into the table at the end."""
    return request.config.stash[RACES].append


@pytest.fixture
def race(request: pytest.FixtureRequest, benchmark, publish) -> Callable[..., Race]:
    """Race a case against its rivals: first the gate, then all of them interleaved; `threads` other than --threads for a series."""
    option = request.config.getoption

    def start(case: Case, direction: str = "forward", threads: int | None = None) -> Race:
        settings = Settings(option("--budget"), not option("--no-compile"), option("--compile-within"), threads or option("--threads"))
        torch.set_num_threads(settings.threads)
        result = run_race(case, direction, settings, benchmark)
        if result.seconds:
            publish(result)
        return result

    return start


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What a ratio depends on, and nothing that tells whose machine it was."""
    machine_info.clear()
    machine_info.update(this_machine())
    if config.stash[ON_A_GPU] and torch.cuda.is_available():
        machine_info["gpu"] = this_gpu()


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    for name in set(commit_info) - {"id", "time", "dirty"}:
        del commit_info[name]


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Keep the file small enough to commit (pytest-benchmark's own times are those of a round), and put the machine's limits into it."""
    if "gpu" in output_json["machine_info"]:
        limits = device_limits()
    else:
        threads = {config.getoption("--threads"), *(race.threads for race in config.stash[RACES])}
        limits = {name: rate for n in sorted(threads) for name, rate in machine_limits(n).items()}
    output_json["machine_info"]["limits"] = rounded(limits)
    output_json["benchmarks"] = [
        {"name": item["name"], "group": item["group"], "extra_info": item["extra_info"]} for item in output_json["benchmarks"]
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if races := config.stash[RACES]:
        terminalreporter.section("median of ours; how many times faster than each rival, in one interleaved run")
        for line in table(races):
            terminalreporter.write_line(line)
