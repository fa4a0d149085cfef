from __future__ import annotations

import numpy as np
import pytest

from emc_fast.data import REACTDataset
from emc_fast.metrics import frcorr
from emc_fast.training import MeanReaction, load_model, validate
from emc_fast.training.baselines import frcorr_of_lengths


@pytest.fixture
def val(corpus, features):
    return REACTDataset(corpus, "val", cache_dir=features)


class Oracle:
    """Repeats what the corpus says, clip by clip."""

    def __init__(self, corpus, shift=0.0):
        self.clips = iter([corpus[i] for i in range(len(corpus))])
        self.shift = shift

    def react(self, frames, num_samples):
        clip = next(self.clips)
        return tuple(np.repeat(clip[name].numpy()[None] + self.shift, num_samples, 0) for name in ("target_emotion", "target_3dmm"))


def test_a_perfect_answer_has_no_error_and_the_most_agreement(val):
    numbers = validate(Oracle(val), val, num_samples=2)
    assert numbers["mse_emotion"] == numbers["mse_3dmm"] == 0
    target = np.stack([val[i]["target_emotion"].numpy() for i in range(len(val))])
    assert numbers["frcorr"] == pytest.approx(frcorr(np.repeat(target[:, None], 2, 1), target, val.appropriate.numpy()))


def test_a_shift_is_the_error_that_it_is(val):
    numbers = validate(Oracle(val, 0.5), val, num_samples=2)
    assert numbers["mse_emotion"] == pytest.approx(0.25, rel=1e-5)
    assert numbers["mse_3dmm"] == pytest.approx(0.25, rel=1e-5)


def test_the_mean_reaction_is_the_best_constant(corpus, val):
    train = REACTDataset(corpus, "train")
    mean = MeanReaction(train)
    everything = np.concatenate([train[i]["target_emotion"].numpy() for i in range(len(train))])
    np.testing.assert_allclose(mean.emotion, everything.mean(0), rtol=1e-5, atol=1e-6)
    at_home = validate(mean, train, num_samples=1)
    assert at_home["mse_emotion"] == pytest.approx(everything.var(0).mean(), rel=1e-4)
    assert validate(mean, val, num_samples=3)["frcorr"] == pytest.approx(0, abs=1e-9)


def test_a_model_is_measured_on_what_it_generates(trained, val):
    model = load_model(trained)
    numbers = validate(model, val, num_samples=2, clips=3)
    assert set(numbers) == {"mse_emotion", "mse_3dmm", "frcorr"}
    assert all(np.isfinite(list(numbers.values())))
    again = validate(model, val, num_samples=2, clips=3, batch_size=1)
    assert numbers == pytest.approx(again, rel=1e-3, abs=1e-5)
    assert validate(model, val, num_samples=2, clips=3, missing="face") != numbers


def test_clips_of_different_lengths_are_compared_over_the_shorter():
    random = np.random.default_rng(0)
    prediction, target = random.random((3, 2, 12, 25)).astype(np.float32), random.random((3, 12, 25)).astype(np.float32)
    appropriate, lengths = np.eye(3, dtype=bool), np.array([12, 8, 5])
    alone = [frcorr(prediction[i : i + 1, :, : lengths[i]], target[i : i + 1, : lengths[i]], appropriate[:1, :1]) for i in range(3)]
    assert frcorr_of_lengths(prediction, target, appropriate, lengths) == pytest.approx(np.mean(alone))
    everyone = np.ones((3, 3), bool)
    assert frcorr_of_lengths(prediction, target, everyone, np.full(3, 12)) == pytest.approx(frcorr(prediction, target, everyone))
