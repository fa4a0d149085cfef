"""The synthetic corpus: the layout, the same bytes for a seed, and a relation between speaker and listener that can be learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from emc_fast.data import EMOTION_NAMES, React2024, REACTDataset, synthesize_corpus
from emc_fast.data.synthetic import writer
from emc_fast.data.synthetic.script import delayed, drift, events, follow, lead, lowpass
from emc_fast.errors import DataError


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def small(root: Path, **options) -> Path:
    return synthesize_corpus(root, **{"train": 5, "val": 2, "test": 0, "frames": 40, "neighbours": 2, **options})


def test_the_layout(tree):
    assert (tree / "val.csv").read_text().splitlines()[1] == "0,NoXI/1000_synthetic/Expert_video/1,NoXI/1000_synthetic/Novice_video/1"
    corpus = React2024(tree, "val")
    clip = corpus.clips[0]
    assert np.load(clip.coefficients).shape == (61, 1, 58)
    assert np.load(clip.coefficients).dtype == np.float32
    lines = clip.emotion.read_text().splitlines()
    assert lines[0] == ",".join(EMOTION_NAMES)
    assert len(lines) == 61
    info = soundfile.info(clip.audio)
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (16000, 1, "PCM_16", 640 * 60)
    assert "synthetic" in (tree / "README.md").read_text()
    assert np.load(tree / "mean_face.npy").shape == (58,)
    sites = {name.name.split("/")[0] for name in React2024(tree, "train").clips}
    assert sites == {"NoXI", "RECOLA"}


def test_values_are_in_their_ranges(tree):
    for item in (REACTDataset(tree, "val")[i] for i in range(3)):
        emotion = item["face_emotion"].numpy()
        assert ((emotion[:, :15] >= 0) & (emotion[:, :15] <= 1)).all()
        assert (np.abs(emotion[:, 15:17]) <= 1).all()
        np.testing.assert_allclose(emotion[:, 17:].sum(1), 1, atol=1e-3)
        nearly_binary = (emotion[:, :15] < 0.1) | (emotion[:, :15] > 0.9)
        assert nearly_binary.mean() > 0.75
        assert item["speech"].abs().max() < 100
        assert np.abs(item["face"].numpy()[:, :52]).max() < 2


@pytest.mark.parametrize("neighbours", [1, 2, 3])
def test_the_matrix(tmp_path, neighbours):
    root = small(tmp_path / "t", neighbours=neighbours)
    matrix = np.load(root / "neighbour_emotion_train.npy")
    assert matrix.shape == (10, 10)
    assert (np.diag(matrix) == 1).all()
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(matrix[:5, :5], matrix[5:, 5:])
    assert not matrix[:5, 5:].any()
    assert sorted(matrix[:5].sum(1)) == {1: [1] * 5, 2: [1, 2, 2, 2, 2], 3: [2, 2, 3, 3, 3]}[neighbours]


def test_leaders_of_a_group_act_one_script(tmp_path):
    root = synthesize_corpus(tmp_path / "t", train=12, val=0, test=0, frames=200, neighbours=3)
    data = REACTDataset(root, "train")
    valence = np.stack([data[i]["face_emotion"][:, 15].numpy() for i in range(12)])
    alike = data.appropriate[:12, :12].numpy()
    distance = np.abs(valence[:, None] - valence[None]).mean(-1)
    assert distance[alike & ~np.eye(12, dtype=bool)].mean() < 0.6 * distance[~alike].mean()


def test_a_seed_gives_the_same_bytes(tmp_path):
    first, again, other = small(tmp_path / "a"), small(tmp_path / "b"), small(tmp_path / "c", seed=1)
    assert contents(first) == contents(again)
    assert contents(first).keys() == contents(other).keys()
    differs = [name for name, data in contents(first).items() if data != contents(other)[name]]
    assert len(differs) >= 7 * 2 * 3


def test_one_split_does_not_depend_on_another(tmp_path):
    first, other = contents(small(tmp_path / "a")), contents(small(tmp_path / "b", train=1))
    assert {name: data for name, data in first.items() if name.startswith("val/")} == {
        name: data for name, data in other.items() if name.startswith("val/")
    }


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_any_sampling_rate(tmp_path, rate):
    root = small(tmp_path / "t", sample_rate=rate, train=1, val=0)
    assert REACTDataset(root, "train")[0]["speech"].shape == (40, 78)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "mine").write_text("keep")
    with pytest.raises(DataError, match="is not an empty folder"):
        small(tmp_path / "t")
    assert contents(tmp_path) == {"t/mine": b"keep"}


def test_interrupted_it_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "_write_wav", stop)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "t")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("17458 requested and 6112 written")

    monkeypatch.setattr(writer, "_write_wav", full)
    with pytest.raises(DataError, match=r"t: the corpus cannot be written .* needs about 1 MB"):
        small(tmp_path / "t")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "bad", [{"train": -1}, {"train": 0, "val": 0}, {"frames": 4}, {"neighbours": 0}, {"lag": (5, 2)}, {"noise": -1.0}, {"sample_rate": 100}]
)
def test_bad_arguments(tmp_path, bad):
    with pytest.raises(ValueError):
        small(tmp_path / "t", **bad)
    assert not list(tmp_path.iterdir())


def test_series():
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(delayed(np.arange(5.0), 2), [0, 0, 0, 1, 2])
    np.testing.assert_array_equal(delayed(np.arange(3.0), 9), [0, 0, 0])
    np.testing.assert_allclose(lowpass(np.full(20, 3.0), 4), 3.0)
    assert np.std(drift(rng, 20000, 25, 2.0)) == pytest.approx(1, abs=0.15)
    bumps = events(rng, 1000, 25, 30, (1, 2))
    assert bumps.min() == 0
    assert 0.5 < bumps.max() <= 1


def test_the_follower_follows_by_the_lag():
    rng = np.random.default_rng(1)
    leader = lead(rng, 4000, 25)
    follower = follow(rng, leader, 25, lag=(18, 18), noise=0.1)
    lags = range(-40, 41)
    match = [np.corrcoef(leader.valence[100:-100], np.roll(follower.valence, -lag)[100:-100])[0, 1] for lag in lags]
    assert lags[int(np.argmax(match))] == pytest.approx(18, abs=3)
    assert max(match) > 0.9


@pytest.fixture(scope="module")
def learnable(tmp_path_factory):
    """The size that a demonstration can afford."""
    root = synthesize_corpus(tmp_path_factory.mktemp("learn") / "t", train=36, val=12, test=0, frames=200)
    cache = root / "cache"
    return [REACTDataset(root, split, cache_dir=cache, progress=False) for split in ("train", "val")]


def _design(data, stream):
    """Local means of a speaker stream at several lags, and over about four seconds; the listener's emotion."""
    inputs, targets = [], []
    for item in (data[i] for i in range(len(data))):
        values = item[stream].numpy().astype(np.float64)
        near, wide = (
            np.stack([np.convolve(np.pad(c, w // 2, mode="edge"), np.ones(w) / w, "valid") for c in values.T], 1) for w in (13, 101)
        )
        steps = np.arange(len(near))
        inputs.append(np.concatenate([near[np.clip(steps - lag, 0, len(near) - 1)] for lag in (-30, -15, 0, 15, 30)] + [wide], 1))
        targets.append(item["target_emotion"].numpy().astype(np.float64))
    return np.concatenate(inputs), np.concatenate(targets)


def explained(train, val, stream, penalty=1.0):
    """Share of the squared error of the mean reaction that a closed-form ridge regression takes away on validation."""
    (x, y), (u, v) = _design(train, stream), _design(val, stream)
    centre, scale = x.mean(0), x.std(0) + 1e-6
    x, u, mean = (x - centre) / scale, (u - centre) / scale, y.mean(0)
    weights = np.linalg.solve(x.T @ x + penalty * len(x) * np.eye(x.shape[1]), x.T @ (y - mean))
    return 1 - ((u @ weights + mean - v) ** 2).mean() / ((mean - v) ** 2).mean()


def test_a_linear_model_can_learn_the_reaction(learnable):
    share = {stream: explained(*learnable, stream) for stream in ("face", "face_emotion", "speech", "speech_emotion")}
    assert share["face_emotion"] > 0.4, share
    assert share["face"] > 0.3, share
    assert share["speech"] > 0.2, share  # a useful part of what the face gives
    assert share["speech_emotion"] > 0.08, share
