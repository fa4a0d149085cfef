"""The data set: order, roles, crops, holes, lengths, images, batches."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from emc_fast.data import (
    Corpus,
    React2024,
    REACTDataset,
    RoleClip,
    collate,
    load_audio,
    mfcc,
    read_coefficients,
    read_emotion,
    speech_emotion,
)
from emc_fast.data import dataset as dataset_module
from emc_fast.errors import DataError

STREAMS = {"face": 58, "speech": 78, "face_emotion": 25, "speech_emotion": 10, "target_3dmm": 58, "target_emotion": 25}


@pytest.fixture
def own(tree, tmp_path) -> Path:
    """A corpus to break."""
    shutil.copytree(tree, tmp_path / "own")
    return tmp_path / "own"


def files(root: Path, split: str, folder: str) -> list[Path]:
    return sorted(path for path in (root / split / folder).rglob("*") if path.is_file())


def first_speaker(root: Path, split: str = "val") -> RoleClip:
    corpus = React2024(root, split)
    return corpus.clips[corpus.pairs[0][0]]


def test_an_item_is_what_the_files_hold(tree):
    data = REACTDataset(tree, "val")
    item = data[1]
    speaker, listener = (data.corpus.clips[i] for i in data.corpus.pairs[1])
    mean = np.load(tree / "mean_face.npy")
    wave, rate = load_audio(speaker.audio)
    expected = {
        "face": read_coefficients(speaker.coefficients)[:60] - mean,
        "speech": mfcc(wave, rate),
        "face_emotion": read_emotion(speaker.emotion),
        "speech_emotion": speech_emotion(wave, rate),
        "target_3dmm": read_coefficients(listener.coefficients)[:60] - mean,
        "target_emotion": read_emotion(listener.emotion),
    }
    for name, width in STREAMS.items():
        assert item[name].shape == (60, width)
        assert item[name].dtype == torch.float32
        np.testing.assert_array_equal(item[name].numpy(), expected[name])
    for name in ("face_available", "speech_available", "target_available"):
        assert item[name].dtype == torch.bool
        assert item[name].all()
    assert (item["length"], item["index"], item["name"]) == (60, 1, speaker.name)


def test_mirrored_order(tree, tmp_path):
    data = REACTDataset(tree, "val", cache_dir=tmp_path, progress=False)
    assert len(data) == 8
    for i in range(4):
        np.testing.assert_array_equal(data[i]["target_emotion"], data[i + 4]["face_emotion"])
        np.testing.assert_array_equal(data[i]["face"], data[i + 4]["target_3dmm"])
    plain = REACTDataset(tree, "val", mirror=False)
    assert len(plain) == 4
    assert plain.appropriate.shape == (4, 4)
    torch.testing.assert_close(plain.appropriate, data.appropriate[:4, :4])


def test_both_sites_are_found_by_their_other_names(tree):
    corpus = React2024(tree, "train")
    recola = [clip for clip in corpus.clips if clip.name.startswith("RECOLA")]
    assert {clip.emotion.parent.name for clip in recola} == {"P1", "P2"}
    assert {clip.coefficients.parent.name for clip in recola} == {"P25", "P26"}


def test_swaps_and_crops_follow_seed_epoch_and_index_alone(tree, tmp_path):
    options = {"clip_length": 20, "random_crop": True, "swap_roles": True, "cache_dir": tmp_path, "progress": False}
    first, second = REACTDataset(tree, "val", seed=5, **options), REACTDataset(tree, "val", seed=5, **options)
    items = [first[i] for i in range(8)]
    for i in reversed(range(8)):
        again = second[i]
        assert again["name"] == items[i]["name"]
        assert torch.equal(again["speech"], items[i]["speech"])
    second.set_epoch(1)
    assert any(not torch.equal(second[i]["speech"], items[i]["speech"]) for i in range(8))
    other = REACTDataset(tree, "val", seed=6, **options)
    assert any(not torch.equal(other[i]["speech"], items[i]["speech"]) for i in range(8))


def test_a_swapped_item_carries_its_row_of_the_matrix(tree, tmp_path):
    plain = REACTDataset(tree, "val", cache_dir=tmp_path, progress=False)
    swapping = REACTDataset(tree, "val", swap_roles=True, cache_dir=tmp_path, progress=False)
    swapped = 0
    for epoch in range(4):
        swapping.set_epoch(epoch)
        for i in range(8):
            item = swapping[i]
            assert item["index"] in (i, (i + 4) % 8)
            swapped += item["index"] != i
            assert torch.equal(item["face"], plain[item["index"]]["face"])
            assert torch.equal(item["target_3dmm"], plain[item["index"]]["target_3dmm"])
    assert 4 < swapped < 28


def test_all_streams_are_cropped_alike(tree):
    whole, cropped = REACTDataset(tree, "val")[2], REACTDataset(tree, "val", clip_length=17, random_crop=True)[2]
    starts = [t for t in range(44) if torch.equal(whole["face"][t : t + 17], cropped["face"])]
    assert len(starts) == 1
    for name in STREAMS:
        assert torch.equal(whole[name][starts[0] : starts[0] + 17], cropped[name])
    assert REACTDataset(tree, "val", clip_length=1000)[0]["length"] == 60


def test_workers_give_the_same_and_see_the_epoch(tree):
    data = REACTDataset(tree, "val", clip_length=20, random_crop=True, swap_roles=True)
    loader = DataLoader(data, batch_size=4, num_workers=1, collate_fn=collate, persistent_workers=True)
    for epoch in (0, 3):
        data.set_epoch(epoch)
        for start, batch in zip((0, 4), loader, strict=True):
            expected = collate([data[i] for i in range(start, start + 4)])
            assert batch["name"] == expected["name"]
            assert torch.equal(batch["face"], expected["face"])
            assert torch.equal(batch["index"], expected["index"])


@pytest.mark.parametrize("kind", ["emotion", "coefficients"])
def test_a_missing_face_file_makes_the_face_unavailable(own, kind):
    getattr(first_speaker(own), kind).unlink()
    item = REACTDataset(own, "val")[0]
    assert not item["face_available"].any()
    assert item["speech_available"].all()
    assert not item["face"].any()
    assert not item["face_emotion"].any()
    mirrored = REACTDataset(own, "val")[4]
    assert not mirrored["target_available"].any()
    assert mirrored["face_available"].all()


def test_a_missing_wav_makes_speech_unavailable(own):
    first_speaker(own).audio.unlink()
    item = REACTDataset(own, "val")[0]
    assert not item["speech_available"].any()
    assert not item["speech"].any()
    assert not item["speech_emotion"].any()
    assert item["face_available"].all()


def test_a_speaker_without_face_and_sound_is_an_error(own):
    clip = first_speaker(own)
    clip.audio.unlink()
    clip.emotion.unlink()
    with pytest.raises(DataError, match=f"{clip.name}: the speaker has neither a face .* nor sound"):
        REACTDataset(own, "val")


def test_a_clip_that_exists_nowhere_is_an_error(own):
    clip = first_speaker(own)
    for path in (clip.audio, clip.emotion, clip.coefficients):
        path.unlink()
    with pytest.raises(DataError, match=rf"val\.csv: line 2: the clip {clip.name} exists nowhere"):
        REACTDataset(own, "val")


def test_nan_frames_are_unavailable_and_zero(own, caplog):
    clip = first_speaker(own)
    rows = np.load(clip.coefficients)
    rows[5, 0, 7], rows[9] = np.nan, np.inf
    np.save(clip.coefficients, rows)
    lines = clip.emotion.read_text().splitlines()
    lines[13] = "," + lines[13].split(",", 1)[1]  # row 12, AU1 empty
    clip.emotion.write_text("\n".join(lines))
    data = REACTDataset(own, "val")
    with caplog.at_level(logging.WARNING, "emc_fast.data"):
        item = data[0]
        data[0]
    holes = [5, 9, 12]
    assert (~item["face_available"]).nonzero().flatten().tolist() == holes
    assert not item["face"][holes].any()
    assert not item["face_emotion"][holes].any()
    assert all(item[name].isfinite().all() for name in STREAMS)
    assert len(caplog.records) == 2  # one per stream and clip, however often it is read
    assert "2 of 60 frames hold no number" in caplog.text


def test_one_frame_is_lost_silently_and_more_is_said(own, caplog):
    clip = first_speaker(own)
    with caplog.at_level(logging.WARNING, "emc_fast.data"):
        assert REACTDataset(own, "val")[0]["length"] == 60  # 61 coefficients, 60 emotions
        assert not caplog.records
        lines = clip.emotion.read_text().splitlines()
        clip.emotion.write_text("\n".join(lines[:51]))
        assert REACTDataset(own, "val")[0]["length"] == 50
    assert "61 frames are cut to 50" in caplog.text


def test_sound_that_ends_early_leaves_its_frames_unavailable(own, caplog):
    clip = first_speaker(own)
    wave, rate = load_audio(clip.audio)
    soundfile.write(clip.audio, wave[: 640 * 40 + 5], rate)
    with caplog.at_level(logging.WARNING, "emc_fast.data"):
        item = REACTDataset(own, "val")[0]
    assert item["length"] == 60
    assert item["speech_available"].tolist() == [True] * 41 + [False] * 19
    assert not item["speech"][41:].any()
    assert "ends after 41 of 60 frames" in caplog.text


@pytest.mark.parametrize(
    ("rows", "sound", "says", "there"),
    [
        (59, 60, None, 59),
        (61, 60, None, 60),
        (90, 90, None, 60),  # as long as the sound, which the picture cuts
        (60, 90, None, 60),  # as long as the picture
        (7, 60, "ends after 7 of 60 frames; the rest is unavailable", 7),
        (75, 60, "75 frames are cut to 60, the length of the clip", 60),
        (7, 20, "ends after 7 of 20 frames; the rest is unavailable", 7),
    ],
)
def test_speech_emotion_of_another_length_is_said_once(own, caplog, rows, sound, says, there):
    clip = first_speaker(own)
    wave, rate = load_audio(clip.audio)
    soundfile.write(clip.audio, np.resize(wave, 640 * sound), rate)
    path = own / "val" / "Speech_emotion" / f"{clip.name}.npy"
    path.parent.mkdir(parents=True)
    np.save(path, np.zeros((rows, 10)))
    data = REACTDataset(own, "val")
    with caplog.at_level(logging.WARNING, "emc_fast.data"):
        items = [data[0], data[0]]
    assert items[0]["speech_available"].sum() == there
    assert [r.getMessage() for r in caplog.records if ": speech_emotion: " in r.getMessage()] == (
        [f"{clip.name}: speech_emotion: {says}"] if says else []
    )


def test_a_recogniser_that_gives_nothing_is_said(own, caplog):
    with caplog.at_level(logging.WARNING, "emc_fast.data"):
        item = REACTDataset(own, "val", speech_emotion=lambda waveform, rate, *, fps: np.zeros((0, 10)))[0]
    assert not item["speech_available"].any()
    assert "speech_emotion: ends after 0 of 60 frames" in caplog.text


@pytest.mark.parametrize("cached", [False, True])
def test_precomputed_and_pluggable_speech_emotion(own, tmp_path, cached):
    clip = first_speaker(own)
    path = own / "val" / "Speech_emotion" / f"{clip.name}.npy"
    path.parent.mkdir(parents=True)
    values = np.random.default_rng(0).random((60, 10)).astype(np.float32)
    np.save(path, values)

    def recogniser(waveform, sample_rate, *, fps):
        return np.full((-(-len(waveform) // int(sample_rate / fps)), 10), 0.25)

    recogniser.cache_name = "a quarter"
    data = REACTDataset(own, "val", speech_emotion=recogniser, cache_dir=tmp_path / "cache" if cached else None, progress=False)
    np.testing.assert_array_equal(data[0]["speech_emotion"], values)
    assert (data[1]["speech_emotion"] == 0.25).all()


def test_a_cache_refuses_a_recogniser_without_a_name(tree, tmp_path):
    with pytest.raises(DataError, match="has no cache_name"):
        REACTDataset(tree, "val", speech_emotion=lambda waveform, rate, *, fps: np.zeros((60, 10)), cache_dir=tmp_path)


def test_a_recogniser_of_another_width(tree):
    data = REACTDataset(tree, "val", speech_emotion=lambda waveform, rate, *, fps: np.zeros((60, 8)))
    with pytest.raises(DataError, match=r"gave shape \(60, 8\); \(T, 10\) is taken"):
        data[0]


def test_the_mean_face_of_the_training_clips_when_none_comes_along(own, tmp_path, monkeypatch):
    (own / "mean_face.npy").unlink()
    rows = np.concatenate([read_coefficients(path) for path in files(own, "train", "3D_FV_files")])
    data = REACTDataset(own, "val", cache_dir=tmp_path / "cache", progress=False)
    np.testing.assert_allclose(data.mean_face, rows.mean(0, dtype=np.float64), atol=1e-6)
    with monkeypatch.context() as patch:
        patch.setattr(dataset_module, "mean_coefficients", None)  # kept with the cache, not computed again
        again = REACTDataset(own, "val", cache_dir=tmp_path / "cache", progress=False)
    np.testing.assert_array_equal(again.mean_face, data.mean_face)
    np.save(files(own, "train", "3D_FV_files")[0], np.full((61, 1, 58), 9.0))
    assert (REACTDataset(own, "val", cache_dir=tmp_path / "cache", progress=False).mean_face > data.mean_face).all()


def test_a_mean_face_that_cannot_be_kept_stops_no_start(own, tmp_path, monkeypatch, caplog):
    (own / "mean_face.npy").unlink()
    options = {"cache_dir": tmp_path / "cache", "progress": False}
    kept = REACTDataset(own, "val", **options).mean_face
    (file,) = (tmp_path / "cache").glob("mean_face-*.npy")
    file.unlink()  # as after `emc-fast features`, which has no use for it

    def read_only(path, array):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path.with_name("aside")))

    monkeypatch.setattr(dataset_module, "write_array", read_only)
    with caplog.at_level(logging.WARNING, "emc_fast.data"):
        data = REACTDataset(own, "val", **options)
    np.testing.assert_array_equal(data.mean_face, kept)
    assert data[0]["face"].isfinite().all()
    assert [r.getMessage() for r in caplog.records] == [
        f"{file}: mean face: cannot be kept (Read-only file system); each start computes it anew until mean_face.npy is in the tree"
    ]


def test_the_matrix_when_asked_for(own):
    assert REACTDataset(own, "val").appropriate.dtype == torch.bool
    (own / "neighbour_emotion_val.npy").unlink()
    data = REACTDataset(own, "val")
    assert data[0]["length"] == 60
    with pytest.raises(DataError, match="matrix of appropriate reactions is absent"):
        _ = data.appropriate


def test_faults_of_the_root(tmp_path, tree):
    with pytest.raises(DataError, match="is not a folder"):
        REACTDataset(tmp_path / "gone", "val")
    with pytest.raises(DataError, match=r"val\.csv: the list of the split is absent"):
        REACTDataset(tmp_path, "val")
    with pytest.raises(DataError, match="split 'dev' is not known"):
        REACTDataset(tree, "dev")
    with pytest.raises(IndexError):
        REACTDataset(tree, "val")[8]
    with pytest.raises(ValueError, match="clip_length"):
        REACTDataset(tree, "val", clip_length=0)
    with pytest.raises(ValueError, match="input"):
        REACTDataset(tree, "val", input="video")


def test_images(own):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow, the extra 'image'")
    clip = first_speaker(own)
    folder = own / "val" / "Video_files" / clip.name
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 256, 256, 3), dtype=np.uint8)
    for i, frame in enumerate(pixels):
        image.fromarray(frame).save(folder / f"{i + 1}.png")
    (folder / "._3.png").write_bytes(b"left by another system")
    data = REACTDataset(own, "val", input="image")
    item = data[0]
    assert item["face"].shape == (12, 3, 224, 224)
    expected = ((pixels[:, 16:240, 16:240] / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(item["face"], expected, atol=1e-6)  # frame 10 comes after 9, not after 1
    other = data[1]
    assert other["face"].shape == (60, 3, 224, 224)
    assert not other["face_available"].any()
    (folder / "7.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"7\.png: cannot be read as an image"):
        data[0]
    os.rename(folder / "7.png", folder / "seven.png")
    with pytest.raises(DataError, match=r"seven\.png: the name of a frame is its number"):
        data[0]


def test_images_are_resized_as_the_published_loader_does(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow, the extra 'image'")
    from emc_fast.data.frames import load_frame

    ramp = np.repeat(np.linspace(0, 255, 512).astype(np.uint8)[None, :, None], 600, 0).repeat(3, 2)
    image.fromarray(ramp).save(tmp_path / "1.png")
    frame = load_frame(tmp_path / "1.png")
    assert frame.shape == (3, 224, 224)
    centre = (np.arange(16, 240) + 0.5) * 2 / 512 * 2 - 1
    np.testing.assert_allclose(frame[0, 100], centre, atol=0.02)


class Steady:
    """A corpus of another edition: 30 fps, any length, one direction only."""

    fps, mirrored = 30.0, False

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        self.clips = []
        for i, frames in enumerate((33, 33, 90, 90)):
            np.save(folder / f"{i}.npy", rng.standard_normal((frames, 58)))
            table = "\n".join(",".join(f"{v:.3f}" for v in row) for row in rng.random((frames, 25)))
            (folder / f"{i}.csv").write_text(",".join("c" * 25) + "\n" + table)
            soundfile.write(folder / f"{i}.wav", 0.1 * rng.standard_normal(frames * 533), 16000)
            self.clips.append(RoleClip(str(i), folder / f"{i}.csv", folder / f"{i}.npy", folder / f"{i}.wav"))
        self.pairs = [(0, 1), (2, 3)]

    def mean_face(self):
        return None

    def training_clips(self):
        return self.clips

    def appropriate(self):
        return np.ones((2, 2), bool)


def test_another_corpus_behind_the_same_interface(tmp_path):
    corpus = Steady(tmp_path)
    assert isinstance(corpus, Corpus)
    data = REACTDataset(corpus, "train")
    assert (data.fps, data.speech_dim, len(data)) == (30.0, 39, 2)
    batch = collate([data[0], data[1]])
    assert batch["lengths"].tolist() == [33, 90]
    assert batch["speech"].shape == (2, 90, 39)
    assert not batch["face"][0, 33:].any()
    assert not batch["face_available"][0, 33:].any()
    assert torch.equal(batch["face"][1], data[1]["face"])
    assert batch["index"].tolist() == [0, 1]
    assert batch["name"] == ["0", "2"]


def test_collate_refuses(tree):
    with pytest.raises(DataError, match="no samples"):
        collate([])
    first, second = REACTDataset(tree, "val")[0], dict(REACTDataset(tree, "val")[1])
    second["speech"] = second["speech"][:, :39]
    with pytest.raises(DataError, match="'speech' differs in width"):
        collate([first, second])
