"""Runs that end as runs do end: killed without a warning, or by Ctrl-C in a terminal."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from training_helpers import environment, same, weights

from emc_fast.training import train


def start(*arguments, **options) -> subprocess.Popen:
    env = environment(OMP_NUM_THREADS=str(torch.get_num_threads()))
    command = [sys.executable, "-m", "emc_fast", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, **options)


def steps_done(run) -> int:
    log = run / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def wait_for_step(process, run, step) -> None:
    end = time.monotonic() + 120
    while steps_done(run) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def test_killed_at_a_random_moment_it_goes_on_bit_for_bit(small, tmp_path):
    settings = {"epochs": 8, "checkpoint_every": 1, "log_every": 1}
    config = small("killed", **settings)
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(config.to_dict()))
    process = start("train", "--config", file, "--out", config.out)
    run = tmp_path / "killed"
    wait_for_step(process, run, 4)
    time.sleep(random.uniform(0, 0.2))  # anywhere: in a step, in the writing of a checkpoint, between two renames
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed_at = steps_done(run)
    assert 4 <= killed_at < 24
    resumed = train(config, resume=True)
    whole = train(small("whole", **settings))
    assert same(weights(whole.paths.last), weights(resumed.paths.last))
    assert (whole.history, whole.best) == (resumed.history, resumed.best)
    assert sorted(os.listdir(run / "checkpoints")) == ["best", "last"]


def test_ctrl_c_saves_and_tells_how_to_go_on(small, tmp_path):
    config = small("stopped", epochs=1000, log_every=1)
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(config.to_dict()))
    process = start("train", "--config", file, "--out", config.out)
    wait_for_step(process, tmp_path / "stopped", 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"emc-fast train --resume --out {config.out}" in out
    assert json.loads((tmp_path / "stopped" / "checkpoints" / "last" / "state.json").read_text())["step"] >= 2


def test_a_signal_to_all_its_processes_stops_a_run_and_not_its_workers(small, tmp_path):
    """As `timeout` and batch systems send it: saved, status 143, nobody left."""
    config = small("stopped", epochs=200, workers=2, log_every=1)
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(config.to_dict()))
    process = start("train", "--config", file, "--out", config.out, start_new_session=True)
    try:
        wait_for_step(process, Path(config.out), 3)
        os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 143, errors
        assert (Path(config.out) / "checkpoints" / "last" / "state.json").is_file()
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
