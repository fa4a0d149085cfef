"""``emc-fast evaluate`` on a small synthetic corpus."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from emc_fast.cli import app
from emc_fast.cli._truth import read_truth
from emc_fast.cli.evaluate import _write_json
from emc_fast.errors import DataError, EmcError
from emc_fast.metrics import evaluate

FRAMES = 60


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from emc_fast.data import synthesize_corpus

    return Path(
        synthesize_corpus(tmp_path_factory.mktemp("corpus") / "tree", train=1, val=4, test=2, frames=FRAMES, neighbours=2, sample_rate=8000)
    )


@pytest.fixture
def pred(corpus: Path, tmp_path: Path) -> Path:
    clips = len(read_truth(corpus, "val", frames=FRAMES).clips)
    np.save(tmp_path / "pred.npy", np.random.default_rng(0).random((clips, 2, FRAMES, 25), np.float32))
    return tmp_path / "pred.npy"


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_table_and_json(corpus: Path, pred: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.json"
    printed = run(pred, "--data", corpus, "--json", out, "--per-clip", "--bootstrap", 50)
    truth = read_truth(corpus, "val", frames=FRAMES)
    figures = {
        protocol: evaluate(np.load(pred), truth.target, truth.speaker, truth.appropriate, protocol=protocol)
        for protocol in ("official", "fixed")
    }
    (result,) = json.loads(out.read_text())["results"]
    for protocol, expected in figures.items():
        assert {name: entry["value"] for name, entry in result[protocol].items()} == expected
        low, high = result[protocol]["frdist"]["interval"]
        assert low < expected["frdist"] < high
        assert np.mean(result["per_clip"][protocol]["frsyn"]) == pytest.approx(expected["frsyn"])
        assert f"{expected['frdist']:.4f}" in printed
    assert result["names"] == truth.names
    assert not list(out.parent.glob(".*"))


def test_folder_of_generate_one_frame_too_many_and_comparison(corpus: Path, pred: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'emc_fast[viz]'")
    folder = tmp_path / "run"
    folder.mkdir()
    np.save(folder / "prediction_emotion.npy", np.load(pred))
    plots = tmp_path / "plots"
    printed = run(folder, pred, "--data", corpus, "--bootstrap", 0, "--plots", plots)
    assert printed.count("FRCorr") == 2
    assert len(list(plots.glob("*.png"))) == 5


def test_clip_without_emotion_is_left_out(corpus: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(corpus, tree)
    next((tree / "val" / "Emotion").rglob("*.csv")).unlink()
    whole, holed = read_truth(corpus, "val", frames=FRAMES), read_truth(tree, "val", frames=FRAMES)
    assert len(holed.clips) == whole.total - 2  # it is speaker in one clip and listener in another
    assert holed.appropriate.shape == (len(holed.clips),) * 2


def test_errors_are_messages(corpus: Path, pred: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "three.npy", np.zeros((4, FRAMES, 25), np.float32))
    np.save(tmp_path / "half.npy", np.zeros((4, 2, FRAMES, 25), np.float32))
    np.save(tmp_path / "long.npy", np.zeros((8, 2, FRAMES + 1, 25), np.float32))
    (tmp_path / "text.npy").write_text("nothing")
    for arguments, message in (
        ((tmp_path / "none.npy",), "there is no such file"),
        ((tmp_path / "text.npy",), "text.npy: is not an npy file"),
        ((tmp_path / "three.npy",), r"three.npy: has shape \(4, 60, 25\)"),
        ((tmp_path / "half.npy",), "holds 4 clips, but split val of .* has 8; the split's list is taken in both directions"),
        ((tmp_path / "long.npy",), "has 60 frames, the predictions have 61"),
        ((pred, "--per-clip"), "give --json FILE"),
        ((pred, "--matrix", tmp_path / "half.npy"), r"has shape \(4, 2, 60, 25\); the split has 8 clips"),
    ):
        with pytest.raises(DataError, match=message):
            run(*arguments, "--data", corpus)


def test_broken_predictions_are_named(corpus: Path, pred: Path, tmp_path: Path) -> None:
    whole = np.load(pred)
    (tmp_path / "cut.npy").write_bytes(pred.read_bytes()[:-100])
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "whole_numbers.npy", whole.astype(np.int32))
    np.save(tmp_path / "drawless.npy", whole[:, :0])
    holed = whole.copy()
    holed[5, 1, 7, 3] = np.nan
    np.save(tmp_path / "holed.npy", holed)
    for name, message in (
        ("cut.npy", r"cut.npy: is damaged or truncated"),
        ("empty.npy", r"empty.npy: is not an npy file"),
        ("folder", r"folder/prediction_emotion.npy: there is no such file"),
        ("objects.npy", r"objects.npy: is damaged or truncated"),
        ("whole_numbers.npy", r"whole_numbers.npy: has shape .* and dtype int32; floating \[N,K,T,25\] is taken"),
        ("drawless.npy", r"drawless.npy: pred: got shape \(8, 0, 60, 25\), which holds nothing"),
        ("holed.npy", r"holed.npy: pred: nan at clip 5, draw 1, frame 7, channel 3"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            run(pred, tmp_path / name, "--data", corpus, "--bootstrap", 0)
        assert "pickle" not in str(caught.value)
    (tmp_path / "matrix.npy").write_text("0 1")
    with pytest.raises(DataError, match=r"matrix.npy: is not an npy file"):
        run(pred, "--data", corpus, "--matrix", tmp_path / "matrix.npy")


def test_half_precision_is_measured_as_its_numbers(corpus: Path, pred: Path, tmp_path: Path) -> None:
    half = np.load(pred).astype(np.float16)
    np.save(tmp_path / "half.npy", half)
    np.save(tmp_path / "same.npy", half.astype(np.float32))
    run(tmp_path / "half.npy", tmp_path / "same.npy", "--data", corpus, "--bootstrap", 0, "--json", tmp_path / "out.json")
    first, second = json.loads((tmp_path / "out.json").read_text())["results"]
    assert first["official"] == second["official"]
    assert first["fixed"] == second["fixed"]


def test_listener_of_a_clip_that_nobody_suits(corpus: Path, pred: Path, tmp_path: Path) -> None:
    matrix = np.eye(8)
    matrix[3] = 0
    np.save(tmp_path / "matrix.npy", matrix)
    with pytest.raises(DataError, match=r"1 of 8 rows name no listener \(the first is row 3\)"):
        run(pred, "--data", corpus, "--matrix", tmp_path / "matrix.npy")


def test_a_full_disk_leaves_no_file(corpus: Path, pred: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk: some of the text is written, then no more."""

    def full(self: Path, text: str, **_: object) -> None:
        self.write_bytes(text[:10].encode())
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        run(pred, "--data", corpus, "--bootstrap", 0, "--json", tmp_path / "out.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pred.npy"]


def test_devices_and_folders_are_no_place_for_json(corpus: Path, pred: Path, tmp_path: Path) -> None:
    """A file is renamed into place; what is no file stays what it is."""
    with pytest.raises(DataError, match="is not a file"):
        run(pred, "--data", corpus, "--bootstrap", 0, "--json", tmp_path)
    with pytest.raises(DataError, match="/dev/full: is not a file"):
        run(pred, "--data", corpus, "--bootstrap", 0, "--json", "/dev/full")
    assert Path("/dev/full").is_char_device()


def test_plots_without_matplotlib(corpus: Path, pred: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emc_fast.metrics.plots.find_spec", lambda name: None)
    with pytest.raises(EmcError, match=r"pip install 'emc_fast\[viz\]'"):
        run(pred, "--data", corpus, "--plots", tmp_path / "plots")
    assert not (tmp_path / "plots").exists()


def holed_tree(corpus: Path, tree: Path) -> Path:
    """The corpus without the emotion of the second speaker of its list: clips 1 and 5 cannot be measured."""
    shutil.copytree(corpus, tree)
    (tree / "val" / "Emotion" / f"{read_truth(corpus, 'val', frames=FRAMES).names[1]}.csv").unlink()
    assert read_truth(tree, "val", frames=FRAMES).clips.tolist() == [0, 2, 3, 4, 6, 7]
    return tree


def test_clips_that_are_left_out_are_not_read(corpus: Path, pred: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'emc_fast[viz]'")
    from emc_fast import metrics

    tree = holed_tree(corpus, tmp_path / "tree")
    inner, kinds = metrics.measure_clips, []
    monkeypatch.setattr(metrics, "measure_clips", lambda p, *more, **how: kinds.append(type(p)) or inner(p, *more, **how))
    values = np.load(pred)
    values[5] = np.nan
    np.save(pred, values)
    run(pred, "--data", tree, "--bootstrap", 0, "--json", tmp_path / "out.json", "--plots", tmp_path / "plots")
    assert kinds == [np.memmap]  # not the copy of chosen clips
    truth = read_truth(tree, "val", frames=FRAMES)
    expected = evaluate(values[truth.clips], truth.target, truth.speaker, truth.appropriate)
    (result,) = json.loads((tmp_path / "out.json").read_text())["results"]
    assert {name: entry["value"] for name, entry in result["official"].items()} == expected


def test_clips_keep_their_numbers_where_others_are_left_out(corpus: Path, pred: Path, tmp_path: Path) -> None:
    tree = holed_tree(corpus, tmp_path / "tree")
    values = np.load(pred)
    values[3, 1, 7, 3] = np.nan
    np.save(tmp_path / "holed.npy", values)
    with pytest.raises(DataError, match=r"holed.npy: pred: nan at clip 3, draw 1, frame 7, channel 3"):
        run(tmp_path / "holed.npy", "--data", tree)
    matrix = np.eye(8)
    matrix[2] = 0
    matrix[2, 1] = 1  # a listener, but one that is left out
    np.save(tmp_path / "matrix.npy", matrix)
    with pytest.raises(DataError, match=r"1 of 6 rows name no listener that is measured \(the first is row 2\)"):
        run(pred, "--data", tree, "--matrix", tmp_path / "matrix.npy")
    run(pred, "--data", corpus, "--matrix", tmp_path / "matrix.npy", "--bootstrap", 0)


def test_a_hole_in_the_truth_is_named_by_its_file(corpus: Path, pred: Path, tmp_path: Path) -> None:
    tree = holed_tree(corpus, tmp_path / "tree")
    names = read_truth(tree, "val", frames=FRAMES).names
    for name, frame, column in ((names[2], 3, 16), (names[5], 9, 0)):
        file = tree / "val" / "Emotion" / f"{name}.csv"
        lines = file.read_text().splitlines()
        cells = lines[1 + frame].split(",")
        cells[column] = ""
        lines[1 + frame] = ",".join(cells)
        file.write_text("\n".join(lines) + "\n")
    message = rf"{names[2]}.csv: holds no number at frame 3, channel 16 \(arousal\) \(1 other files of val have holes too\)"
    with pytest.raises(DataError, match=message):
        run(pred, "--data", tree)


def test_each_file_is_measured_over_its_own_frames(corpus: Path, pred: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "short.npy", np.load(pred)[:, :, :40])
    results = []
    for files in ((pred, tmp_path / "short.npy"), (tmp_path / "short.npy", pred), (pred,), (tmp_path / "short.npy",)):
        printed = run(*files, "--data", corpus, "--bootstrap", 0, "--json", tmp_path / "out.json")
        results.append(json.loads((tmp_path / "out.json").read_text())["results"])
        assert "60 frames" in " ".join(printed.split()) or len(files) == 1
    together, reversed_, alone, short_alone = results
    assert together == reversed_[::-1] == alone + short_alone
    assert [result["frames"] for result in together] == [60, 40]


def test_names_of_files_are_no_markup(corpus: Path, pred: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("runs[lr=1]/p.npy", "b:tada:/p.npy", "a[/p.npy]")
    for name in names:
        Path(name).parent.mkdir()
        shutil.copy(pred, name)
    printed = run(*names, "--data", corpus, "--bootstrap", 0, "--json", "e[/v]/o.json")
    for text in (*names, "figures are in e[/v]/o.json"):
        assert text in printed


def test_features_and_synth_take_folders_that_look_like_markup(tmp_path: Path) -> None:
    tree = tmp_path / "q[" / "b]:tada:"
    made = CliRunner().invoke(
        app, ["synth", str(tree), "--clips", "1", "--val", "1", "--test", "1", "--frames", "20"], catch_exceptions=False
    )
    assert f"synthetic pairs are in {tree} " in made.output
    computed = CliRunner().invoke(app, ["features", "--data", str(tree), "--split", "val"], catch_exceptions=False)
    assert f"features are in {tree}" in computed.output


def test_figures_are_safe_before_they_are_printed(corpus: Path, pred: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise UnicodeError("a terminal that cannot show this")

    monkeypatch.setattr("rich.table.Table.__rich_console__", broken)
    with pytest.raises(UnicodeError):
        run(pred, "--data", corpus, "--bootstrap", 0, "--json", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["results"]


def test_json_has_numbers_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        _write_json(tmp_path / "out.json", {"value": float("inf")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["evaluate", "p.npy", "--data", "tree"], ["synth", "out"], ["demo"]])
def test_a_seed_is_looked_at_first(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, [*command, "--seed", "-1"])
    assert refused.exit_code == 2
    assert "'--seed'" in refused.output
    assert not list(tmp_path.iterdir())
