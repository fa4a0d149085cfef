"""What each of the processes of `test_processes` runs: the gradients of the first step of each run, to a file per process."""

from __future__ import annotations

import os
import sys

from safetensors.torch import save_file
from test_processes import first_gradients

from emc_fast.training import TrainConfig

if __name__ == "__main__":
    for settings in sys.argv[1:]:
        gradients = first_gradients(TrainConfig.from_json(settings))
        tensors = {name: value.contiguous() for name, value in gradients.items()}
        save_file(tensors, settings.replace(".json", f"-{os.environ['RANK']}.safetensors"))
