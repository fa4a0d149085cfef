from __future__ import annotations

from pathlib import Path

import pytest

from emc_fast.data import synthesize_corpus


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic corpus that no test may change."""
    root = tmp_path_factory.mktemp("corpus") / "tree"
    return synthesize_corpus(root, train=32, val=4, test=2, frames=60, neighbours=2, seed=3)
