"""``load_clip`` and ``emc-fast view``: from what a generation left on disk to a page."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from viewer_cases import FRAMES, make_clip

from emc_fast.errors import DataError
from emc_fast.viewer import load_clip

NAMES = ["NoXI/a/Expert_video/1", "NoXI/a/Novice_video/1", "NoXI/b/Expert_video/7"]


@pytest.fixture
def generation(tmp_path):
    """Three clips of three draws, the last one shorter than the rest."""
    place = tmp_path / "generation"
    place.mkdir()
    clip = make_clip(3)
    np.save(place / "prediction_emotion.npy", np.stack([clip["reaction_emotion"] + 0.01 * n for n in range(3)]))
    np.save(place / "prediction_3dmm.npy", np.stack([clip["reaction_3dmm"]] * 3))
    for key in ("face_available", "speech_available"):
        np.save(place / f"{key}.npy", np.stack([clip[key]] * 3))
    about = {
        "names": NAMES,
        "lengths": [FRAMES, FRAMES, 61],
        "fps": 25,
        "source": {"wav": str(tmp_path / "gone.wav")},
        "mean_face_added": True,
    }
    (place / "generation.json").write_text(json.dumps(about))
    return place


def run(*arguments):
    """The command as the shell would run it, in this process: (exit code, output)."""
    from typer.testing import CliRunner

    from emc_fast.cli import app

    result = CliRunner().invoke(app, ["view", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("wanted", "index"),
    [(None, 0), (2, 2), ("2", 2), (NAMES[1], 1), ("Novice_video/1", 1), ("b/Expert_video/7", 2), ("1", 1)],
)
def test_clips_by_name_and_index(generation, wanted, index):
    found = load_clip(generation, clip=wanted)
    assert (found.index, found.name) == (index, NAMES[index])
    assert found.reaction_emotion.shape == (3, FRAMES, 25)
    assert found.length == (61 if index == 2 else FRAMES)
    assert found.recording is None


def test_draws_are_taken_in_the_order_asked(generation):
    found = load_clip(generation, draws=[2, 0])
    whole = load_clip(generation)
    assert found.draws == [2, 0]
    assert (found.reaction_emotion == whole.reaction_emotion[[2, 0]]).all()
    assert (found.reaction_3dmm == whole.reaction_3dmm[[2, 0]]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip": 3}, "clip 3: there are 3 clips, 0 to 2"),
        ({"clip": "nobody"}, "clip 'nobody': no such clip; there are 3"),
        ({"clip": "-1"}, "no such clip"),
        ({"draws": [3]}, r"draws: got \[3\], takes different indices from 0 to 2"),
        ({"draws": [0, 0]}, "different indices"),
        ({"draws": []}, "different indices"),
    ],
)
def test_wrong_choices(generation, arguments, message):
    with pytest.raises(DataError, match=message):
        load_clip(generation, **arguments)


def test_an_ambiguous_end_of_a_name(generation):
    about = json.loads((generation / "generation.json").read_text())
    about["names"] = ["a/x", "b/x", "c/y"]
    (generation / "generation.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"fits 2 clips, 0 \(a/x\), 1 \(b/x\); give the index"):
        load_clip(generation, clip="x")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "generation.json").unlink(), "generation.json: not found"),
        (lambda d: (d / "generation.json").write_text("{"), "cannot be read as JSON"),
        (lambda d: (d / "generation.json").write_text("[]"), "takes 'names' and 'lengths'"),
        (lambda d: (d / "generation.json").write_text('{"names": ["a"], "lengths": ["x"]}'), "integers as lengths"),
        (lambda d: (d / "prediction_emotion.npy").unlink(), "prediction_emotion.npy: not found"),
        (lambda d: (d / "prediction_emotion.npy").write_bytes(b"junk"), "is not an npy file; npy arrays of numbers are taken"),
        (
            lambda d: (d / "prediction_emotion.npy").write_bytes((d / "prediction_emotion.npy").read_bytes()[:5000]),
            "prediction_emotion.npy: is damaged or truncated",
        ),
        (lambda d: np.save(d / "prediction_emotion.npy", np.zeros((3, 2, 4, 24))), r"has shape \(3, 2, 4, 24\), takes \(3, any, any, 25\)"),
        (lambda d: np.save(d / "face_available.npy", np.zeros((3, 9), bool)), "face_available.npy: has shape"),
        (lambda d: np.save(d / "speaker_emotion.npy", np.zeros((5, 25))), "speaker_emotion.npy: has 5 frames, the reactions have 100"),
    ],
)
def test_damaged_generations(generation, spoil, message):
    spoil(generation)
    with pytest.raises(DataError, match=message):
        load_clip(generation)


def test_speaker_beside_a_single_clip(generation):
    np.save(generation / "speaker_emotion.npy", np.ones((FRAMES, 25), np.float32))
    found = load_clip(generation)
    assert (found.speaker_emotion == 1).all()
    assert found.speaker_3dmm is None


def test_bare_arrays(tmp_path):
    array = np.random.default_rng(0).random((2, 3, 8, 25))
    np.save(tmp_path / "mine.npy", array)
    assert (load_clip(tmp_path / "mine.npy", clip=1).reaction_emotion == array[1]).all()
    np.save(tmp_path / "one.npy", array[0])
    assert load_clip(tmp_path / "one.npy").name == "one"
    with pytest.raises(DataError, match="no such file or directory"):
        load_clip(tmp_path / "none.npy")
    np.save(tmp_path / "flat.npy", array[0, 0])
    with pytest.raises(DataError, match="takes"):
        load_clip(tmp_path / "flat.npy")


def test_the_command_writes_a_page(generation):
    code, output = run(generation, "--clip", "2", "--draws", "2,0")
    page = generation / "clip-2.html"
    assert code == 0
    assert f"written: {page}" in output.replace("\n", "")
    text = page.read_text()
    assert NAMES[2] in text
    assert '"name":"Reaction 2"' in text
    assert '"frames":61' in text
    code, _ = run(generation / "prediction_emotion.npy", "-o", generation / "own.html")
    assert code == 0
    assert (generation / "own.html").is_file()


def test_the_command_says_what_is_wrong(generation):
    with pytest.raises(DataError, match="--draws: got 'a'"):
        run(generation, "--draws", "a")
    with pytest.raises(DataError, match="does not exist"):
        run(generation, "-o", generation / "none" / "x.html")
    assert sorted(file.suffix for file in generation.iterdir()) == [".json", ".npy", ".npy", ".npy", ".npy"]


def test_a_corpus_that_is_gone_is_said(generation):
    about = json.loads((generation / "generation.json").read_text())
    about["source"] = {"data": str(generation / "moved"), "split": "val"}
    (generation / "generation.json").write_text(json.dumps(about))
    found = load_clip(generation)
    assert found.speaker_emotion is None
    assert "say where it is with --data" in found.notes[0]


def test_importing_the_command_is_cheap():
    import subprocess

    script = "import sys, emc_fast.cli.view; print(sorted({'torch', 'numpy', 'soundfile'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    from emc_fast.data import synthesize_corpus

    return synthesize_corpus(tmp_path_factory.mktemp("corpus") / "tree", train=1, val=2, test=0, frames=40, neighbours=1)


@pytest.fixture
def reacted(tree, tmp_path):
    """A generation from the validation split, the second clip's face withheld for ten frames."""
    from emc_fast.data import REACTDataset

    corpus = REACTDataset(tree, "val", progress=False)
    face = np.ones((len(corpus), 40), bool)
    face[1, 10:20] = False
    np.save(tmp_path / "prediction_emotion.npy", np.zeros((len(corpus), 2, 40, 25), np.float32))
    np.save(tmp_path / "face_available.npy", face)
    about = {"names": [str(corpus[i]["name"]) for i in range(len(corpus))], "lengths": [40] * len(corpus), "fps": 25}
    about |= {"source": {"data": str(tree), "split": "val"}, "mean_face_added": True}
    (tmp_path / "generation.json").write_text(json.dumps(about))
    return tmp_path


@pytest.mark.parametrize("absolute", [True, False])
def test_speaker_from_the_corpus(tree, reacted, absolute):
    from emc_fast.data import REACTDataset

    about = json.loads((reacted / "generation.json").read_text()) | {"mean_face_added": absolute}
    (reacted / "generation.json").write_text(json.dumps(about))
    found = load_clip(reacted, clip=1)
    sample = REACTDataset(tree, "val", progress=False)[1]
    assert (found.speaker_emotion == sample["face_emotion"].numpy()).all()
    raw = REACTDataset(tree, "val", progress=False, mean_face=np.zeros(58, np.float32))[1]["face"].numpy()
    expected = raw if absolute else sample["face"].numpy()
    assert found.speaker_3dmm == pytest.approx(expected, abs=1e-6)
    assert found.face_available.sum() == 30
    code, _ = run(reacted, "--clip", "1", "-o", reacted / "page.html")
    assert code == 0
    assert '"missing":{"face":[[10,20]],"speech":[]}' in (reacted / "page.html").read_text()


def test_another_corpus_is_refused(tree, reacted, tmp_path):
    about = json.loads((reacted / "generation.json").read_text())
    about["names"][0] = "NoXI/elsewhere/Expert_video/1"
    (reacted / "generation.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"its clip 0 is .*, the reactions are to NoXI/elsewhere"):
        load_clip(reacted)
    about["source"]["data"] = "/nowhere"
    about["lengths"][1] = 39
    (reacted / "generation.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="has 40 frames, the reactions have 39"):
        load_clip(reacted, clip=1, data=tree)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x80\x04N.", b"some words\n"])
def test_a_file_that_is_no_npy_is_called_that_and_nothing_else(tmp_path, content):
    """NumPy would take it for a pickle, and advise to load it unsafely."""
    (tmp_path / "mine.npy").write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_clip(tmp_path / "mine.npy")
    assert str(caught.value) == f"{tmp_path / 'mine.npy'}: is not an npy file; npy arrays of numbers are taken"
