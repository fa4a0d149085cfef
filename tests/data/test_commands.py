"""``emc-fast synth`` and ``emc-fast features``."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from emc_fast.cli import app
from emc_fast.data.cache import default_cache_dir


@pytest.fixture
def call():
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(a) for a in arguments])


def test_synth_then_features(tmp_path, call):
    made = call("synth", tmp_path / "t", "--clips", 3, "--val", 2, "--test", 0, "--frames", 30, "--lag", 2, 4, "--seed", 7)
    assert made.exit_code == 0, made.output
    assert "5 synthetic pairs" in made.output
    for _ in range(2):
        cached = call("features", "--data", tmp_path / "t")
        assert cached.exit_code == 0, cached.output
        assert "train: 6 clips of one person, 6 pairs" in cached.output
        assert "test" not in cached.output.replace(str(tmp_path), "")
    assert len(list(default_cache_dir(tmp_path / "t").glob("*/index.json"))) == 2


def test_faults_are_one_message_and_exit_code_2(tmp_path):
    command = [sys.executable, "-c", "from emc_fast.cli import main; main()", "features", "--data", str(tmp_path / "gone")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "gone" in done.stderr
    assert "Traceback" not in done.stderr
