"""What each of the processes of `test_processes` runs: the gradients of the first step, to a file per process."""

from __future__ import annotations

import os
import sys

from safetensors.torch import save_file
from test_processes import first_gradients

from emc_fast.training import TrainConfig

if __name__ == "__main__":
    settings, out = sys.argv[1:]
    gradients = first_gradients(TrainConfig.from_json(settings))
    save_file({name: value.contiguous() for name, value in gradients.items()}, f"{out}-{os.environ['RANK']}.safetensors")
