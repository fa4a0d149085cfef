"""Operators on a GPU (`pytest bench/ -m gpu`): what `auto` serves against PyTorch, our other back end and the device's own limits."""

from __future__ import annotations

import pytest
import torch

from .conftest import in_short
from .gpu_cases import all_races

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, id="-".join((entry[0].operator, in_short(entry[1]), str(entry[2]).removeprefix("torch."), entry[3])))
        for entry in all_races()
    ],
)
def test_on_the_device(race, entry) -> None:
    subject, size, dtype, direction = entry
    race(subject.case(size, dtype, "cuda"), direction)
