"""What every test shares: one torch thread per worker when the suite is spread over processes."""

import os

import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
