"""The paper's table with one command, on a corpus that is large enough to run through it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from emc_fast import reproduce
from emc_fast.cli import app
from emc_fast.reproduce import PAPER, ROWS, Measured, directions, make_plan
from emc_fast.reproduce.paper import ZEROS
from emc_fast.reproduce.report import CLAIMS


def run(*arguments):
    return CliRunner().invoke(app, ["reproduce", "table1", *map(str, arguments)])


@pytest.fixture
def quick(monkeypatch):
    """Epochs that never fit: the fewest are taken."""
    monkeypatch.setattr(reproduce.plan, "epoch_seconds", lambda config: 1e9)


def test_the_table_is_made_once_and_found_again(corpus, tmp_path, quick):
    out = tmp_path / "table"
    first = run("--data", corpus, "--out", out, "--budget", 1, "--backbones", "trans_vae", "--num-samples", 2)
    assert first.exit_code == 0, first.output
    table = json.loads((out / "table1.json").read_text())
    assert [row["row"] for row in table["rows"]] == [row.name for row in (*ROWS, *ZEROS)]
    assert all(row["epochs"] == reproduce.plan.LEAST_EPOCHS for row in table["rows"])
    assert [row["paper"] for row in table["rows"]][:5] == [list(PAPER["trans_vae", row.name]) for row in ROWS]
    values = {row["row"]: row["figures"]["frcorr"] for row in table["rows"]}
    assert len({values[name] for name in ("original", "emc", "without_ea", "no_face", "no_speech")}) == 5  # each its own model or input
    assert [d["claim"] for d in table["directions"]] == [claim for claim, *_ in CLAIMS]
    difference = next(d for d in table["directions"] if d["claim"] == "EMC is above the original")["difference"]
    assert difference == pytest.approx(values["emc"] - values["original"])
    page = (out / "table1.md").read_text()
    assert len(re.findall(r"^\| paper ", page, re.M)) == 5
    assert (out / "table1.png").read_bytes().startswith(b"\x89PNG")

    stamps = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.safetensors")}
    again = run("--data", corpus, "--out", out, "--budget", 1, "--backbones", "trans_vae", "--num-samples", 2)
    assert again.exit_code == 0, again.output
    assert again.output.count("trained already") == 3
    assert again.output.count("measured already") == 7
    assert json.loads((out / "table1.json").read_text()) == table
    assert stamps == {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.safetensors")}


def test_what_differs_from_the_plan_is_named(corpus, tmp_path, quick):
    options = {"backbones": ["trans_vae"], "size": "small", "say": lambda line: None}
    plan = make_plan(corpus, tmp_path, budget=2.0, seed=0, **options)
    assert make_plan(corpus, tmp_path, budget=2.0, seed=0, **options) == plan
    assert len({run.out for run in plan.runs.values()}) == 3
    with pytest.raises(ValueError, match=r"plan.json was made for budget 2.0, now 5.0; name another folder"):
        make_plan(corpus, tmp_path, budget=5.0, seed=0, **options)
    with pytest.raises(ValueError, match=r"plan.json was made for data .*, now .*elsewhere"):
        make_plan(tmp_path / "elsewhere", tmp_path, budget=2.0, seed=0, **options)
    refused = run("--data", corpus, "--out", tmp_path, "--budget", 1, "--backbones", "trans_vae,blender")
    assert "blender" in str(refused.exception)


def test_without_a_budget_the_published_recipe_is_taken(corpus, tmp_path):
    plan = make_plan(corpus, tmp_path, backbones=["trans_vae"], size="published", budget=None, seed=0)
    config = plan.runs["trans_vae", "emc"]
    assert (config.epochs, config.batch_size, config.lr, config.model.d_model) == (50, 4, 1e-5, 128)
    assert [plan.runs["trans_vae", name].model.emc for name in ("original", "emc", "without_ea")] == [False, True, True]
    assert plan.runs["trans_vae", "without_ea"].model.ea == "none"


def test_a_direction_is_shown_only_where_the_interval_leaves_out_zero():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=50)

    def row(which, level):
        values = (noise + level + 0.1 * rng.normal(size=50)).tolist()
        return Measured("trans_vae", which, 2, {"frcorr": float(np.mean(values))}, {"frcorr": values})

    levels = {"original": 0.0, "emc": 1.0, "without_ea": 0.5, "no_face": 0.9, "no_speech": 0.4}
    levels |= {"original_no_face": 0.9, "original_no_speech": 0.0}
    verdicts = [d.verdict for d in directions([row(which, levels[which.name]) for which in (*ROWS, *ZEROS)])]
    assert verdicts == ["shown", "shown", "shown", "the opposite is shown", "not shown", "shown"]
