"""Quantised streams come back within the stated error, masks and poses as they were."""

from __future__ import annotations

import numpy as np
import pytest

from emc_fast.viewer.pack import centre_pose, dequantise, missing_runs, quantise


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("seed", range(3))
def test_round_trip_is_within_half_a_step(bits, scale, seed):
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(57, 6)) * scale * 10.0 ** rng.integers(-2, 3, size=6) + rng.normal(size=6)).astype(np.float32)
    packed = quantise(values, bits=bits)
    step = np.ptp(values.astype(np.float64), axis=0) / (2**bits - 1)
    # Nine digits of the range's ends are what is beyond half a step.
    assert (np.abs(dequantise(packed, 57) - values) <= 0.5 * step + 1e-8 * np.abs(values).max(axis=0)).all()


def test_hidden_frames_leave_no_trace():
    values = np.random.default_rng(0).random((30, 4)).astype(np.float32)
    valid = np.ones(30, bool)
    valid[10:20] = False
    other = values.copy()
    other[10:20] = np.nan
    other[12] = 1e30
    assert quantise(values, bits=8, valid=valid) == quantise(other, bits=8, valid=valid)
    assert quantise(other, bits=8, valid=np.zeros(30, bool))["step"] == [0.0] * 4


def test_constant_channels_are_exact():
    packed = quantise(np.full((9, 2), [0.25, -3.0]), bits=8)
    assert (dequantise(packed, 9) == [0.25, -3.0]).all()


def test_widths_of_codes():
    with pytest.raises(ValueError, match="8 or 16"):
        quantise(np.zeros((2, 2)), bits=12)


def test_pose_is_relative_to_its_mean_on_the_circle():
    angles = np.array([np.pi - 0.1, -np.pi + 0.1])  # two tenths apart, across the seam
    pose = np.zeros((2, 6))
    pose[:, 0] = angles
    pose[:, 5] = [1.8, 2.0]
    centred = centre_pose(pose)
    assert centred[:, 0] == pytest.approx([-0.1, 0.1])
    assert centred[:, 5] == pytest.approx([-0.1, 0.1])
    assert centre_pose(pose, np.array([True, False]))[0] == pytest.approx(np.zeros(6), abs=1e-12)
    assert (centre_pose(pose, np.zeros(2, bool)) == 0).all()


@pytest.mark.parametrize(
    ("available", "runs"),
    [("111", []), ("000", [[0, 3]]), ("0110", [[0, 1], [3, 4]]), ("10011", [[1, 3]]), ("1", []), ("0", [[0, 1]])],
)
def test_missing_runs(available, runs):
    assert missing_runs(np.array([c == "1" for c in available])) == runs
