"""Memory of a training step and of the generation of K = 10 reactions, for every backbone, beside the same on the definitions.

The peak of what a step takes beyond what lies there before it (weights, optimizer state, inputs, libraries), gradients included. Each is
measured in a process of its own, where the second of two equal steps is looked at, after what the first has left was given back.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# (backbone, clips, frames): of training; small models are those of the demonstration, published ones with --full
CASES = ([("trans_vae", 4, 256), ("regnn", 16, 50), ("faceais", 8, 48)], [("trans_vae", 4, 750), ("regnn", 128, 50), ("faceais", 16, 288)])
GENERATED = (1, 750, 10)
"""Clips, frames and draws of the generation."""

_STEP = """
import ctypes, json, sys
import torch
from emc_fast import EMCConfig, EMCModel
from emc_fast.ops import use_backend
from emc_fast.training.presets import RECIPES, SMALL

given = json.loads(sys.argv[1])
torch.set_num_threads(given["threads"])
torch.manual_seed(0)
fields = {"backbone": given["backbone"]} | (RECIPES if given["published"] else SMALL)[given["backbone"]].get("model", {})
model = EMCModel(EMCConfig(**fields))
training = given["task"] == "training step"
widths = {"face": 58, "speech": 78, "face_emotion": 25, "speech_emotion": 10}
widths |= {"target_3dmm": 58, "target_emotion": 25} if training else {}
inputs = {name: torch.randn(given["clips"], given["frames"], width) for name, width in widths.items()}
if training and given["backbone"] == "regnn":
    inputs["appropriate_emotion"] = torch.randn(given["clips"], given["frames"], 10, 25)
model.train(training)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])


def step():
    if not training:
        with torch.no_grad():
            model(**inputs, num_samples=given["draws"], seed=3)
        return
    optimizer.zero_grad()
    model(**inputs, seed=3).losses["total"].backward()
    optimizer.step()


def status(name):
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith(name)).split()[1])


with use_backend(given["backend"]):
    step()
    optimizer.zero_grad()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = status("VmRSS")
    step()
print((status("VmHWM") - before) / 1024)
"""


def measure(**given: object) -> float:
    """MiB of a step in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _STEP, json.dumps(given)], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.parametrize("place", range(3), ids=[backbone for backbone, *_ in CASES[0]])
@pytest.mark.parametrize("task", ["training step", "generation"])
def test_memory(request: pytest.FixtureRequest, place: int, task: str) -> None:
    published = request.config.getoption("--full")
    backbone, clips, frames = CASES[published][place]
    draws = 1
    if task == "generation":
        clips, frames, draws = GENERATED
    given = {"backbone": backbone, "clips": clips, "frames": frames, "draws": draws, "task": task, "published": published}
    threads = request.config.getoption("--threads")
    mine, definition = (measure(**given, threads=threads, backend=backend) for backend in ("auto", "reference"))
    size = f"{clips} x {frames}" + (f", K={draws}" if draws > 1 else "")
    print(
        f"\n{backbone} {'as published' if published else 'small'}, {task}, {size}: {mine:.0f} MiB, on the definitions {definition:.0f} MiB"
    )
