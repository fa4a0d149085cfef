"""Ctrl-C during ``emc-fast evaluate``, alone and under torchrun: no process and no half of a file is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from emc_fast.data import synthesize_corpus

FRAMES = 60
# Says that the clips are being measured, then takes as long as a large set does, in steps as its kernels take.
_SLOW = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal; what a script starts in the background ignores it
from emc_fast.metrics import evaluation
inner = evaluation._measure_part
def slow(*arguments):
    Path(os.environ["EMC_TEST_READY"] + os.environ.get("RANK", "0")).touch()
    for _ in range(600 if os.environ.get("RANK", "0") == os.environ["EMC_TEST_SLOW_RANK"] else 0):
        time.sleep(0.1)
    return inner(*arguments)
evaluation._measure_part = slow
from emc_fast.cli import main
main()
"""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    home = tmp_path_factory.mktemp("interrupt")
    corpus = synthesize_corpus(home / "tree", train=1, val=9, test=2, frames=FRAMES, neighbours=2, sample_rate=8000)
    np.save(home / "pred.npy", np.random.default_rng(0).random((18, 2, FRAMES, 25), np.float32))  # two parts of 16 clips
    (home / "slow.py").write_text(_SLOW)
    return [str(home / "slow.py"), "evaluate", str(home / "pred.npy"), "--data", str(corpus), "--json", str(home / "out" / "figures.json")]


def processes_with(mark: str) -> list[int]:
    """Processes whose environment holds the text."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int(entry.name) != os.getpid() and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize(("ranks", "slow_rank"), [(1, "0"), (2, "0"), (2, "1")])  # the other waits for it in a collective
def test_interrupt_leaves_nothing(arguments: list[str], tmp_path: Path, ranks: int, slow_rank: str) -> None:
    launch = [sys.executable]
    if ranks == 2:
        launch += ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    ready = tmp_path / "ready"
    environment = {**os.environ, "EMC_TEST_READY": str(ready), "EMC_TEST_SLOW_RANK": slow_rank, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [*launch, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 90
        while not all(Path(f"{ready}{rank}").exists() for rank in range(ranks)):
            assert started.poll() is None, started.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        assert len(processes_with(str(ready))) >= ranks
        os.killpg(started.pid, signal.SIGINT)  # as a terminal does: to everything in the foreground
        _, told = started.communicate(timeout=60)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
    if ranks == 1:
        assert started.returncode == 130, told
        assert "Traceback" not in told
    else:
        assert started.returncode not in (0, None)
    deadline = time.monotonic() + 20
    while (left := processes_with(str(ready))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    out = Path(arguments[-1]).parent
    assert not out.exists() or not list(out.iterdir())
