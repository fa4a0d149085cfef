"""Two runs side by side: ratios are compared, never times."""

from __future__ import annotations

from pathlib import Path

import pytest
from reporting_helpers import race, write
from typer.testing import CliRunner

from emc_fast.cli import app
from emc_fast.errors import DataError
from emc_fast.reporting import OURS, Race, Verdict, compare, read_run


def judged(tmp_path: Path, before: list[Race], after: list[Race], tolerance: float = 0.1) -> list[Verdict]:
    return compare([read_run(write(tmp_path / "a.json", *before))], [read_run(write(tmp_path / "b.json", *after))], tolerance)


def timed(ours: float, **rivals: float) -> Race:
    return race(seconds={OURS: ours, **rivals})


@pytest.mark.parametrize(
    ("before", "after", "state"),
    [
        (timed(1, sdpa=2), timed(3, sdpa=6), "same"),  # the machine was slower, for both
        (timed(1, sdpa=2), timed(1, sdpa=1.81), "same"),
        (timed(1, sdpa=2), timed(1, sdpa=1.79), "regressed"),
        (timed(1, sdpa=2), timed(0.5, sdpa=2), "improved"),
        (timed(1, sdpa=2, eager=3), timed(1, sdpa=9, eager=1.5), "regressed"),  # another rival is the best now
        (timed(1, sdpa=2), timed(1, sdpa=2, eager=1), "same"),  # a rival that only one run has makes nobody slower
        (timed(1, sdpa=2), timed(1, eager=1), "no common rival"),
    ],
)
def test_states(tmp_path: Path, before: Race, after: Race, state: str) -> None:
    (verdict,) = judged(tmp_path, [before], [after])
    assert verdict.state == state


def test_tolerance(tmp_path: Path) -> None:
    before, after = [timed(1, sdpa=2)], [timed(1, sdpa=1.5)]
    assert judged(tmp_path, before, after, 0.3)[0].state == "same"
    assert judged(tmp_path, before, after, 0.2)[0].state == "regressed"
    with pytest.raises(ValueError, match="tolerance"):
        judged(tmp_path, before, after, 1.0)


def test_new_and_missing(tmp_path: Path) -> None:
    verdicts = judged(tmp_path, [race("a"), race("b")], [race("b"), race("c")])
    assert {v.race.operator: v.state for v in verdicts} == {"a": "missing", "b": "same", "c": "new"}
    assert [v.change for v in verdicts if v.state != "same"] == [None, None]


def test_nothing_in_common(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no race in common"):
        judged(tmp_path, [race("a")], [race("b")])


def test_command(tmp_path: Path) -> None:
    old = write(tmp_path / "old.json", timed(1, sdpa=2), race("gone"))
    slow = write(tmp_path / "slow.json", timed(1, sdpa=1), race("fresh"))
    result = CliRunner().invoke(app, ["bench", "compare", str(old), str(slow)])
    assert result.exit_code == 1, result.output
    assert "regressed: op, 4 x 8, forward, 1 thread" in result.output
    assert "new: fresh" in result.output
    assert "missing: gone" in result.output
    assert "-50%" in result.output
    result = CliRunner().invoke(app, ["bench", "compare", str(old), str(slow), "--tolerance", "0.6"])
    assert result.exit_code == 0, result.output


def test_command_says_that_machines_differ(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.json", race()), write(tmp_path / "b.json", race(), cpu="Another")
    result = CliRunner().invoke(app, ["bench", "compare", str(a), str(b)])
    assert result.exit_code == 0
    assert "different machines" in result.output
