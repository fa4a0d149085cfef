from __future__ import annotations

import numpy as np
import pytest

from emc_fast.training.missing import RUN_FRAMES, missing_runs, parse_missing, withhold


@pytest.mark.parametrize("frames", [1, 2, 40, 750])
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.9, 1.0])
def test_the_fraction_is_exact_and_never_takes_both(frames, fraction):
    for clip in range(20):
        face, speech = missing_runs(frames, fraction, seed=3, clip=clip)
        assert not (face & speech).any()
        assert (face | speech).sum() == round(fraction * frames)


def test_runs_are_whole_spread_over_the_clip_and_of_both_modalities():
    drawn = [missing_runs(750, 0.3, seed=0, clip=clip) for clip in range(200)]
    face = np.array([f for f, _ in drawn])
    either = np.array([f | s for f, s in drawn])
    assert face.mean() == pytest.approx(0.15, abs=0.02)
    starts = (either[:, 1:] & ~either[:, :-1]).sum() + either[:, 0].sum()
    assert either.sum() / starts > 0.8 * RUN_FRAMES  # runs may touch and be cut at the end, they do not flicker
    thirds = either.mean(0).reshape(3, 250).mean(1)
    assert thirds == pytest.approx([0.3] * 3, abs=0.04)


def test_it_is_a_function_of_seed_and_clip():
    first = missing_runs(100, 0.4, seed=1, clip=2)
    assert all((a == b).all() for a, b in zip(first, missing_runs(100, 0.4, seed=1, clip=2), strict=True))
    assert any((a != b).any() for a, b in zip(first, missing_runs(100, 0.4, seed=1, clip=3), strict=True))
    assert any((a != b).any() for a, b in zip(first, missing_runs(100, 0.4, seed=2, clip=2), strict=True))


def test_what_the_corpus_lacks_is_not_made_worse():
    face = np.ones(200, bool)
    speech = np.zeros(200, bool)
    speech[:50] = True
    left_face, left_speech = withhold(face, speech, 0.8, seed=0, clip=0)
    assert (left_face | left_speech).all()
    assert left_face[50:].all()
    assert not left_face[:50].all() or not left_speech[:50].all()
    assert not withhold(face, speech, "face", seed=0, clip=0)[0].any()
    assert all(a is b for a, b in zip(withhold(face, speech, None, seed=0, clip=0), (face, speech), strict=True))


@pytest.mark.parametrize("bad", ["", "voice", "0", "1.5", "-0.1", "nan", 0.0, 2])
def test_other_values_are_refused(bad):
    with pytest.raises(ValueError, match="missing is"):
        parse_missing(bad)


def test_values_that_are_taken():
    assert [parse_missing(v) for v in (None, "face", "speech", "0.3", 1, 0.5)] == [None, "face", "speech", 0.3, 1.0, 0.5]
