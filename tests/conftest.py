"""What every test shares: one torch thread per worker when the suite is spread over processes, and Triton's interpreter without a GPU."""

import os

import torch

if not torch.cuda.is_available():
    # Before any kernel of Triton's is imported: it decides when it decorates. With a GPU the same tests run compiled (`-m gpu`).
    os.environ.setdefault("TRITON_INTERPRET", "1")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
