"""A small REGNN, and reactions of listeners for it to learn from."""

import torch
from model_helpers import build

D, W, STRIDE, FACE = 16, 10, 5, 12
SMALL = {"window": W, "stride": STRIDE, "perceptual_layers": 1, "channels": 3, "embedding_dropout": 0.0}


def regnn(*, options=None, **fields):
    return build(backbone="regnn", backbone_options=SMALL | (options or {}), **fields)


def with_listeners(batch, count=3, seed=3):
    shape = (*batch["target_emotion"].shape[:2], count, 25)
    other = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=batch["target_emotion"].dtype)
    return batch | {"appropriate_emotion": other}
