"""The package as a newcomer meets it: README's code, the cost of an import, and errors that are one clear message."""

import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*args: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def test_readme_python_runs():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert code is not None
    result = run("-c", code[1])
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[0].startswith("torch.Size([1, 10, 207, 58])")


def test_readme_names_only_commands_that_exist():
    from emc_fast.cli import app

    known = {command.name for command in (*app.registered_commands, *app.registered_groups)}
    named = set(re.findall(r"emc-fast (\w+)", (ROOT / "README.md").read_text()))
    assert named <= known, f"README names {sorted(named - known)}, which emc-fast does not have"


def test_readme_links_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}, which is not there"


@pytest.mark.parametrize("use", ["emc_fast.ops", "emc_fast.EMCModel"])
def test_import_costs_little_beyond_torch(use):
    # Seconds of the processor: what the package makes it do, whatever else the machine is doing.
    program = f"import time, torch; t = time.process_time(); import emc_fast; {use}; print(time.process_time() - t)"
    seconds = [float(run("-c", program).stdout) for _ in range(3)]
    assert statistics.median(seconds) < 0.5, f"{seconds} s beyond torch's own import"


def test_cli_help_needs_no_torch():
    result = run("-c", "import sys, emc_fast.cli; print('torch' in sys.modules)")
    assert result.stdout.strip() == "False", result.stderr


def test_cli_error_is_one_message(tmp_path):
    result = run("-m", "emc_fast", "generate", str(tmp_path / "nowhere"), "--wav", "examples/speech.wav", "--out", str(tmp_path / "out"))
    assert result.returncode == 2
    assert "nowhere" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_every_noise_stream_is_its_own():
    from emc_fast.ops import streams

    values = [value for name, value in vars(streams).items() if name.isupper() and isinstance(value, int)]
    assert len(values) == len(set(values))
