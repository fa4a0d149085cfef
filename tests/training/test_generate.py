from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil

import numpy as np
import pytest
import soundfile
from training_helpers import FRAMES
from typer.testing import CliRunner

from emc_fast.cli import app
from emc_fast.data import REACTDataset
from emc_fast.errors import CheckpointError, DataError
from emc_fast.training import generate, load_model, outputs

K = 3


def digests(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def arrays(directory):
    return {path.stem: np.load(path, allow_pickle=False) for path in directory.glob("*.npy")}


@pytest.fixture
def made(trained, corpus, features, tmp_path):
    def make(name="out", **options):
        return generate(
            trained, tmp_path / name, **({"data": corpus, "num_samples": K, "cache_dir": features, "progress": False} | options)
        )

    return make


@pytest.fixture
def loose(tmp_path):
    """Loose files of one clip of 20 frames."""
    random = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", (0.1 * random.standard_normal(20 * 640)).astype(np.float32), 16000)
    np.save(tmp_path / "face.npy", random.standard_normal((20, 1, 58)).astype(np.float32))
    np.save(tmp_path / "emotion.npy", random.random((21, 25)).astype(np.float32))
    np.save(tmp_path / "speech.npy", random.random((20, 10)).astype(np.float32))
    return tmp_path


def test_a_split(made, corpus):
    out = made()
    found, said = arrays(out), json.loads((out / "generation.json").read_text())
    assert {name: (a.shape, a.dtype.name) for name, a in found.items()} == {
        "prediction_emotion": ((4, K, FRAMES, 25), "float32"),
        "prediction_3dmm": ((4, K, FRAMES, 58), "float32"),
        "face_available": ((4, FRAMES), "bool"),
        "speech_available": ((4, FRAMES), "bool"),
    }
    assert all(np.isfinite(a).all() for a in found.values())
    assert (found["prediction_emotion"][:, 0] != found["prediction_emotion"][:, 1]).any()
    assert said["lengths"] == [FRAMES] * 4
    assert said["source"] == {"data": str(corpus), "split": "val"}
    assert (said["seed"], said["missing"], said["fps"], said["mean_face_added"]) == (0, None, 25, True)
    assert len(said["names"]) == 4


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(made):
    assert digests(made("a")) == digests(made("b"))
    assert digests(made("a", overwrite=True, seed=1))["prediction_emotion.npy"] != digests(made("c"))["prediction_emotion.npy"]


@pytest.mark.parametrize("missing", [None, "face", "0.4"])
def test_the_batch_size_changes_rounding_at_most(made, missing):
    a, b = arrays(made("a", batch_size=1, missing=missing)), arrays(made("b", batch_size=3, missing=missing))
    for name in a:
        np.testing.assert_allclose(a[name].astype(float), b[name].astype(float), rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_first_reactions_do_not_depend_on_how_many_are_asked_for(made):
    few, many = arrays(made("few", num_samples=1)), arrays(made("many", num_samples=4))
    np.testing.assert_allclose(few["prediction_emotion"][:, 0], many["prediction_emotion"][:, 0], rtol=1e-4, atol=1e-5)


def test_missing_modalities(made):
    face, speech, some = (arrays(made(name, missing=name)) for name in ("face", "speech", "0.5"))
    assert not face["face_available"].any()
    assert face["speech_available"].all()
    assert not speech["speech_available"].any()
    assert ((~some["face_available"]).sum(1) + (~some["speech_available"]).sum(1) == FRAMES // 2).all()
    everything = [a["prediction_emotion"] for a in (face, speech, some)]
    assert all((a != b).any() for a, b in itertools.pairwise(everything))


def test_the_mean_face_is_added_or_not(made, corpus):
    with_mean, without = arrays(made("with")), arrays(made("without", add_mean_face=False))
    mean = REACTDataset(corpus, "val").mean_face
    np.testing.assert_array_equal(with_mean["prediction_3dmm"], without["prediction_3dmm"] + mean)
    np.testing.assert_array_equal(with_mean["prediction_emotion"], without["prediction_emotion"])


def test_one_recording(made, loose):
    out = made(data=None, wav=loose / "a.wav")
    assert arrays(out)["prediction_emotion"].shape == (1, K, 20, 25)
    assert not arrays(out)["face_available"].any()
    assert not (out / "speaker_emotion.npy").exists()
    assert json.loads((out / "generation.json").read_text())["source"] == {"wav": str(loose / "a.wav")}


def test_one_recording_with_a_face(made, loose):
    out = made(
        data=None, wav=loose / "a.wav", face=loose / "face.npy", face_emotion=loose / "emotion.npy", speech_emotion=loose / "speech.npy"
    )
    found = arrays(out)
    assert found["face_available"].all()
    np.testing.assert_allclose(found["speaker_3dmm"], np.load(loose / "face.npy")[:, 0], atol=1e-6)
    np.testing.assert_array_equal(found["speaker_emotion"], np.load(loose / "emotion.npy")[:20])
    only_face = arrays(made("face", data=None, face=loose / "face.npy", face_emotion=loose / "emotion.npy"))
    assert not only_face["speech_available"].any()


def test_frames_without_a_face_are_taken_from_the_voice(made, loose):
    face = np.load(loose / "face.npy")
    face[5:8] = np.nan
    np.save(loose / "face.npy", face)
    found = arrays(made(data=None, wav=loose / "a.wav", face=loose / "face.npy", face_emotion=loose / "emotion.npy"))
    assert (~found["face_available"][0]).nonzero()[0].tolist() == [5, 6, 7]
    assert np.isfinite(found["prediction_emotion"]).all()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (lambda d: {}, "nothing to react to"),
        (lambda d: {"speech_emotion": d / "speech.npy"}, "no stream"),
        (lambda d: {"face": d / "face.npy"}, "--face-emotion"),
        (lambda d: {"face_emotion": d / "emotion.npy", "wav": d / "a.wav"}, "--face"),
        (lambda d: {"wav": d / "none.wav"}, r"none\.wav"),
        (lambda d: {"wav": d / "face.npy"}, "sound"),
        (lambda d: {"face": truncate(d / "face.npy"), "face_emotion": d / "emotion.npy"}, r"face\.npy.*truncated"),
        (lambda d: {"face": d / "speech.npy", "face_emotion": d / "emotion.npy"}, r"speech\.npy.*58"),
        (lambda d: {"face": d / "face.npy", "face_emotion": d / "speech.npy"}, r"speech\.npy.*25"),
        (lambda d: {"wav": d / "a.wav", "speech_emotion": d / "emotion.npy"}, r"emotion\.npy.*10"),
        (lambda d: {"wav": d / "a.wav", "missing": "speech"}, "neither|nothing"),
        (lambda d: {"wav": d / "a.wav", "missing": "face"}, "no face"),
        (lambda d: {"wav": d / "a.wav", "data": d}, "both"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(made, loose, arguments, fault):
    with pytest.raises(DataError, match=fault):
        made(**({"data": None} | arguments(loose)))
    assert not [name for name in os.listdir(loose) if "out" in name]


def test_streams_of_different_lengths_are_named(made, loose):
    np.save(loose / "emotion.npy", np.zeros((25, 25), np.float32))
    with pytest.raises(DataError, match=r"speech 20 .*a\.wav"):
        made(data=None, wav=loose / "a.wav", face=loose / "face.npy", face_emotion=loose / "emotion.npy")


def test_checkpoints_that_are_none_or_of_another_configuration(trained, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_model(tmp_path / "empty")
    copy = tmp_path / "copy"
    shutil.copytree(trained / "checkpoints" / "best", copy)
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"d_model": 32}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not fit.*32"):
        load_model(copy)
    (copy / "config.json").write_text(json.dumps(settings | {"wings": 2}))
    with pytest.raises(CheckpointError, match="wings"):
        load_model(copy)
    (copy / "config.json").write_text(json.dumps(settings))
    truncate(copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_model(copy)


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_failure_in_the_middle_leaves_what_was_there(made, monkeypatch, tmp_path, failure):
    before = digests(made("out"))
    put = outputs.GenerationFiles.put

    def failing(self, clip, **values):
        if clip == 2:
            raise failure
        put(self, clip, **values)

    monkeypatch.setattr(outputs.GenerationFiles, "put", failing)
    with pytest.raises(type(failure)):
        made("out", overwrite=True, seed=9)
    assert digests(tmp_path / "out") == before
    with pytest.raises(type(failure)):
        made("new")
    assert os.listdir(tmp_path) == ["out"]


def test_a_full_disk_is_noticed_before_the_first_clip(made, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="cannot reserve"):
        made("out")
    assert os.listdir(tmp_path) == []


def test_what_is_there_is_not_overwritten_unasked(made):
    made("out")
    with pytest.raises(FileExistsError, match="--overwrite"):
        made("out")


def test_the_command(trained, corpus, features, tmp_path):
    run = CliRunner().invoke
    arguments = [
        "generate",
        str(trained),
        "--data",
        str(corpus),
        "--out",
        str(tmp_path / "out"),
        "--cache",
        str(features),
        "--num-samples",
        "2",
    ]
    result = run(app, [*arguments, "--missing", "0.3", "--no-add-mean-face"])
    assert result.exit_code == 0, result.output
    said = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert (said["missing"], said["num_samples"], said["mean_face_added"]) == (0.3, 2, False)
    assert isinstance(run(app, [*arguments, "--overwrite", "--missing", "voice"]).exception, ValueError)
