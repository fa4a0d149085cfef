"""``write_html``: one whole, self-contained, safe and reproducible file, or one clear error and nothing."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
import soundfile
import torch
from viewer_cases import FRAMES, make_clip

from emc_fast.errors import DataError
from emc_fast.viewer import write_html
from emc_fast.viewer.pack import dequantise


def payload_of(path):
    data = re.search(r'<script id="clip" type="application/json">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(data.group(1))


def test_values_survive_the_page(tmp_path, clip):
    payload = payload_of(write_html(tmp_path / "a.html", **clip))
    assert payload["frames"] == FRAMES
    assert payload["missing"] == {"face": [[40, 60]], "speech": [[70, 80]]}
    for k, reaction in enumerate(payload["reactions"]):
        assert np.abs(dequantise(reaction["emotion"], FRAMES) - clip["reaction_emotion"][k]).max() <= 0.5 / 255
        assert np.abs(dequantise(reaction["expression"], FRAMES) - clip["reaction_3dmm"][k, :, :52]).max() <= 0.5 / 255
        pose = clip["reaction_3dmm"][k, :, 52:].astype(np.float64)
        assert np.abs(dequantise(reaction["pose"], FRAMES) - (pose - pose.mean(0))).max() < 1e-5 + 0.002 * (k == 0)
    seen = clip["face_available"]
    assert np.abs(dequantise(payload["speaker"]["emotion"], FRAMES) - clip["speaker_emotion"])[seen].max() <= 0.5 / 255


def test_nothing_of_an_unavailable_face_is_in_the_page(tmp_path, clip):
    one = write_html(tmp_path / "one.html", **clip).read_bytes()
    for key in ("speaker_emotion", "speaker_3dmm"):
        clip[key] = np.where(clip["face_available"][:, None], clip[key], np.nan)
    assert write_html(tmp_path / "two.html", **clip).read_bytes() == one


def test_same_input_same_bytes(tmp_path, clip):
    tensors = {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in clip.items()}
    one, two = write_html(tmp_path / "one.html", **clip), write_html(tmp_path / "two.html", **tensors)
    assert one.read_bytes() == two.read_bytes()


def test_page_needs_no_network(tmp_path, clip):
    text = write_html(tmp_path / "a.html", **clip).read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\s\"'`)]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(link|iframe|img|object|embed|base)\b|@import|\bfetch\(|XMLHttpRequest|src\s*=\s*[\"'](?!data:)", text)
    assert "default-src 'none'" in text


def test_ten_draws_of_a_clip_stay_under_two_megabytes(tmp_path):
    clip = make_clip(10, frames=750)
    rng = np.random.default_rng(0)
    clip["reaction_emotion"] = rng.random((10, 750, 25), dtype=np.float32)
    clip["reaction_3dmm"] = rng.random((10, 750, 58), dtype=np.float32)
    assert write_html(tmp_path / "a.html", **clip).stat().st_size < 1.25 * 2**20


def test_names_are_escaped(tmp_path, clip):
    nasty = "</script><script>alert('x')</script><!-- & \" \u2028"
    text = write_html(tmp_path / "a.html", **(clip | {"title": nasty}), draw_names=[nasty, "$data ${script}"]).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert text.count("<script") == text.count("</script>") == 2
    assert payload_of(tmp_path / "a.html")["reactions"][0]["name"] == nasty
    assert payload_of(tmp_path / "a.html")["reactions"][1]["name"] == "$data ${script}"


def test_padding_is_cut_off(tmp_path, clip):
    clip["reaction_emotion"][:, 70:] = np.nan  # what lies in the padding does not matter
    payload = payload_of(write_html(tmp_path / "a.html", **clip, length=70))
    assert payload["frames"] == 70
    assert payload["missing"] == {"face": [[40, 60]], "speech": []}
    assert len(dequantise(payload["reactions"][0]["emotion"], 70)) == 70


def spoil(**changes):
    return lambda clip: clip | {key: value(clip[key]) if callable(value) else value for key, value in changes.items()}


def hole(array, *index):
    array = array.copy()
    array[index] = np.nan
    return array


FAULTS = {
    "no draws": (spoil(reaction_emotion=np.zeros((0, 5, 25))), r"reaction_emotion: got shape \(0, 5, 25\)"),
    "no frames": (spoil(reaction_emotion=np.zeros((2, 0, 25))), "at least one draw and one frame"),
    "one axis short": (spoil(reaction_emotion=np.zeros((5, 25))), r"reaction_emotion: got shape \(5, 25\), takes \(any, any, 25\)"),
    "width": (spoil(reaction_emotion=np.zeros((2, FRAMES, 24))), r"takes \(any, any, 25\)"),
    "text": (spoil(reaction_emotion=np.full((2, FRAMES, 25), "x")), "reaction_emotion: got dtype"),
    "draws differ": (spoil(reaction_3dmm=lambda a: a[:1]), r"reaction_3dmm: got shape \(1, 100, 58\), takes \(2, 100, 58\)"),
    "frames differ": (spoil(speaker_emotion=lambda a: a[:-1]), r"speaker_emotion: got shape \(99, 25\), takes \(100, 25\)"),
    "speaker width": (spoil(speaker_3dmm=lambda a: a[:, :52]), r"speaker_3dmm: got shape \(100, 52\)"),
    "mask length": (spoil(face_available=lambda a: a[:50]), r"face_available: got shape \(50,\), takes \(100\)"),
    "mask values": (spoil(speech_available=np.full(FRAMES, 0.5)), "speech_available: takes bool"),
    "nan reaction": (
        spoil(reaction_emotion=lambda a: hole(a, 1, 7, 3)),
        "reaction_emotion: not finite in 1 place.*draw 1, frame 7, channel 3",
    ),
    "inf 3dmm": (spoil(reaction_3dmm=lambda a: np.where(a > 3, np.inf, a)), "reaction_3dmm: not finite"),
    "nan speaker": (
        spoil(speaker_emotion=lambda a: hole(a, 5)),
        "speaker_emotion: not finite in 25 .*frame 5, channel 0; frames without a face",
    ),
    "length": (spoil(length=FRAMES + 1), "length: got 101"),
    "length zero": (spoil(length=0), "length: got 0"),
    "length type": (spoil(length=2.0), "length: got 2.0"),
    "fps": (spoil(fps=0), "fps: got 0"),
    "fps nan": (spoil(fps=float("nan")), "fps: got nan"),
    "no title": (spoil(title=None), "title: got None, takes a string"),
    "names": (spoil(draw_names=["only one"]), "draw_names"),
    "no such sound": (spoil(audio="/nowhere/voice.wav"), "audio: there is no file /nowhere/voice.wav"),
    "not sound": (spoil(audio=b"RIFF but no wave"), "audio: cannot read the given bytes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_one_error_and_no_file(tmp_path, clip, fault):
    change, message = FAULTS[fault]
    with pytest.raises(DataError, match=message):
        write_html(tmp_path / "a.html", **change(clip))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_sound_that_is_not_finite_has_no_loudness(tmp_path, clip, value, channels):
    wave = np.full((16000, channels), 0.1)
    wave[100, channels - 1] = value
    sound = tmp_path / "voice.wav"
    soundfile.write(sound, wave, 16000, subtype="FLOAT")
    for audio, name in ((sound, str(sound)), (sound.read_bytes(), "the given bytes")):
        with pytest.raises(DataError, match=f"^audio: {re.escape(name)} holds samples that are not finite"):
            write_html(tmp_path / "a.html", **(clip | {"audio": audio}))
    assert list(tmp_path.iterdir()) == [sound]


def test_bad_places(tmp_path, clip):
    with pytest.raises(DataError, match=r"folder .*none does not exist"):
        write_html(tmp_path / "none" / "a.html", **clip)
    with pytest.raises(DataError, match="is a folder"):
        write_html(tmp_path, **clip)


def test_a_failed_write_leaves_the_old_page(tmp_path, clip, monkeypatch):
    page = tmp_path / "a.html"
    page.write_text("old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_html(page, **clip)
    assert page.read_text() == "old"
    assert list(tmp_path.iterdir()) == [page]
