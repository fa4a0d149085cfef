"""A corpus and a model as small as they can be while every stream, loss and mask takes part."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_helpers import FRAMES

from emc_fast import EMCConfig
from emc_fast.data import synthesize_corpus
from emc_fast.training import TrainConfig, train


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    synthesize_corpus(root, train=5, val=2, test=1, frames=FRAMES, seed=3)
    return root


@pytest.fixture(scope="session")
def features(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def small(small_in, tmp_path):
    return lambda out="run", **settings: small_in(tmp_path / out, **settings)


@pytest.fixture(scope="session")
def small_in(corpus, features):
    def config(out: Path, *, model=None, **settings) -> TrainConfig:
        shape = {"d_model": 16, "num_heads": 2, **(model or {})}
        defaults = {
            "epochs": 2,
            "batch_size": 4,
            "lr": 1e-3,
            "clip_length": 16,
            "validate_every": 1,
            "log_every": 2,
            "cache_dir": str(features),
        }
        return TrainConfig(data=str(corpus), out=str(out), model=EMCConfig(**shape), **(defaults | settings))

    return config


@pytest.fixture(scope="session")
def trained(corpus, features, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    train(
        TrainConfig(
            data=str(corpus),
            out=str(run),
            model=EMCConfig(d_model=16, num_heads=2),
            epochs=1,
            lr=1e-3,
            clip_length=16,
            cache_dir=str(features),
        )
    )
    return run
