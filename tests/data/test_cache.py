"""The feature cache: same numbers as the files, never half-written, rebuilt where stale."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from killer import Killer
from rich.console import Console

from emc_fast.data import FeatureCache, React2024, REACTDataset
from emc_fast.data import cache as cache_module
from emc_fast.data import jobs as jobs_module
from emc_fast.data.streams import FeatureOptions, read_streams
from emc_fast.errors import DataError


@pytest.fixture
def clips(tree):
    return React2024(tree, "val").clips


@pytest.fixture
def reads(monkeypatch):
    """Names of the clips whose files are read."""
    seen: list[str] = []

    def counted(clip, options):
        seen.append(clip.name)
        return read_streams(clip, options)

    monkeypatch.setattr(jobs_module, "read_streams", counted)
    return seen


def build(folder, clips, **options) -> FeatureCache:
    return FeatureCache.build(folder, clips, progress=False, **options)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def same(cache: FeatureCache, clips) -> None:
    for clip in clips:
        expected, found = read_streams(clip, FeatureOptions()), cache.streams(clip)
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


def test_holds_what_the_files_give(tmp_path, clips, reads):
    cache = build(tmp_path / "c", clips)
    assert len(cache) == len(clips) == len(reads)
    same(cache, clips)
    reads.clear()
    again = build(tmp_path / "c", clips)
    assert reads == []
    same(again, clips)
    with pytest.raises((ValueError, RuntimeError)):
        again.streams(clips[0])["mfcc"][0] = 0  # mapped read-only: nobody can spoil another epoch


def test_items_are_equal_with_and_without(tmp_path, tree):
    plain = REACTDataset(tree, "val", clip_length=30, random_crop=True)
    cached = REACTDataset(tree, "val", clip_length=30, random_crop=True, cache_dir=tmp_path, progress=False)
    for i in range(3):
        for key, value in plain[i].items():
            np.testing.assert_array_equal(value, cached[i][key])


def test_missing_files_stay_missing(tmp_path, tree):
    shutil.copytree(tree, tmp_path / "t")
    clip = React2024(tmp_path / "t", "val").clips[0]
    clip.audio.unlink()
    clips = React2024(tmp_path / "t", "val").clips
    cache = build(tmp_path / "c", clips)
    assert cache.streams(clips[0]).keys() == {"emotion", "coefficients"}


def test_a_changed_file_is_read_again_and_no_other(tmp_path, tree, reads):
    shutil.copytree(tree, tmp_path / "t")
    clips = React2024(tmp_path / "t", "val").clips
    build(tmp_path / "c", clips)
    reads.clear()
    np.save(clips[2].coefficients, np.ones((9, 58)))
    os.utime(clips[4].audio, ns=(1, 1))
    cache = build(tmp_path / "c", clips)
    assert sorted(reads) == sorted([clips[2].name, clips[4].name])
    assert (cache.streams(clips[2])["coefficients"] == 1).all()
    same(cache, clips)
    assert len(list((tmp_path / "c").glob("gen-*"))) == 1


def test_other_options_are_another_cache(tmp_path, tree):
    def recogniser(waveform, sample_rate, *, fps):
        return np.zeros((60, 10), np.float32)

    recogniser.cache_name = "nothing"
    REACTDataset(tree, "val", cache_dir=tmp_path, progress=False)
    data = REACTDataset(tree, "val", cache_dir=tmp_path, speech_emotion=recogniser, progress=False)
    assert not data[0]["speech_emotion"].any()
    assert len(list(tmp_path.glob("val-*"))) == 2


@pytest.mark.parametrize("damage", ["index", "stream", "generation", "format", "exchanged", "overlapping"])
def test_a_damaged_cache_is_built_anew(tmp_path, clips, damage):
    folder = tmp_path / "c"
    build(folder, clips)
    index = json.loads((folder / "index.json").read_text())
    if damage == "index":
        (folder / "index.json").write_text("{")
    elif damage == "stream":
        os.truncate(folder / index["generation"] / "mfcc.f32", 100)
    elif damage == "generation":
        shutil.rmtree(folder / index["generation"])
    elif damage in ("exchanged", "overlapping"):  # the totals are as before
        one, two, *_ = (clip["rows"] for clip in index["clips"].values())
        one["mfcc"][0], two["mfcc"][0] = (two["mfcc"][0], one["mfcc"][0]) if damage == "exchanged" else (0, 1)
        (folder / "index.json").write_text(json.dumps(index))
    else:
        (folder / "index.json").write_text(json.dumps({**index, "format": 0}))
    same(build(folder, clips), clips)


def test_several_processes_write_the_same_bytes(tmp_path, clips):
    one, two = tmp_path / "1", tmp_path / "2"
    build(one, clips)
    build(two, clips, processes=2)
    strip = lambda files: {name.split("/", 1)[-1]: data for name, data in files.items() if name.endswith(".f32")}  # noqa: E731
    assert strip(snapshot(one)) == strip(snapshot(two))


def test_faults_are_all_named_and_the_good_clips_kept(tmp_path, tree, reads):
    shutil.copytree(tree, tmp_path / "t")
    clips = React2024(tmp_path / "t", "val").clips
    clips[1].audio.write_bytes(b"RIFF")
    clips[3].emotion.write_text("")
    sound = clips[5].audio.read_bytes()
    clips[5].audio.write_bytes(sound[:24] + b"\x0a\0\0\0" + sound[28:])  # 10 Hz
    with pytest.raises(DataError, match="3 of 8 clips cannot be used") as caught:
        build(tmp_path / "c", clips)
    for path in (clips[1].audio, clips[3].emotion, clips[5].audio):
        assert str(path) in str(caught.value)
    reads.clear()
    good = [clip for i, clip in enumerate(clips) if i not in (1, 3, 5)]
    same(build(tmp_path / "c", good), good)
    assert reads == []


def test_interrupted_it_keeps_whole_clips_and_goes_on(tmp_path, clips, monkeypatch, reads):
    def interrupt(clip, options):
        if len(reads) == 3:
            raise KeyboardInterrupt
        reads.append(clip.name)
        return read_streams(clip, options)

    monkeypatch.setattr(jobs_module, "read_streams", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "c", clips)
    monkeypatch.setattr(jobs_module, "read_streams", lambda clip, options: (reads.append(clip.name), read_streams(clip, options))[1])
    same(build(tmp_path / "c", clips), clips)
    assert len(reads) == len(clips)  # the three were not read twice


def test_a_full_disk_is_one_clear_error_and_changes_nothing(tmp_path, tree, monkeypatch):
    shutil.copytree(tree, tmp_path / "t")
    clips = React2024(tmp_path / "t", "val").clips
    build(tmp_path / "c", clips)
    before = snapshot(tmp_path / "c")
    os.utime(clips[0].audio, ns=(1, 1))

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="the disk is full"):
        build(tmp_path / "c", clips)
    assert snapshot(tmp_path / "c") == before


def test_killed_it_leaves_the_old_cache(tmp_path, tree):
    """A real SIGKILL in the middle of a build: the next one starts from a whole cache and clears the debris."""
    clips = React2024(tree, "val").clips
    build(tmp_path / "c", clips[:2])
    before = snapshot(tmp_path / "c")
    script = (
        "import sys, time; from emc_fast.data import React2024, FeatureCache; from emc_fast.data import jobs\n"
        "real = jobs.read_streams\n"
        "def slow(clip, options):\n    print('reading', flush=True); time.sleep(0.3); return real(clip, options)\n"
        "jobs.read_streams = slow\n"
        "FeatureCache.build(sys.argv[2], React2024(sys.argv[1], 'val').clips, progress=False)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tree), str(tmp_path / "c")], stdout=subprocess.PIPE)
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    after = snapshot(tmp_path / "c")
    assert {name: after[name] for name in before} == before
    same(build(tmp_path / "c", clips), clips)
    assert len(list((tmp_path / "c").glob("gen-*"))) == 1


def test_two_builders_wait_for_each_other(tmp_path, tree):
    script = (
        "import sys; from emc_fast.data import REACTDataset; REACTDataset(sys.argv[1], 'val', cache_dir=sys.argv[2], progress=False)[0]"
    )
    command = [sys.executable, "-c", script, str(tree), str(tmp_path)]
    running = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    (folder,) = tmp_path.glob("val-*")
    assert len(list(folder.glob("gen-*"))) == 1


def test_a_pickled_cache_takes_no_data_along(tmp_path, clips):
    cache = build(tmp_path / "c", clips)
    cache.streams(clips[0])
    packed = pickle.dumps(cache)
    assert len(packed) < 20_000
    same(pickle.loads(packed), clips)


def test_a_renewed_cache_does_not_disturb_who_has_it_open(tmp_path, tree):
    shutil.copytree(tree, tmp_path / "t")
    clips = React2024(tmp_path / "t", "val").clips
    cache = build(tmp_path / "c", clips)
    packed = pickle.dumps(cache)
    os.utime(clips[0].audio, ns=(1, 1))
    build(tmp_path / "c", clips)
    same(cache, clips)
    with pytest.raises(DataError, match="another process has renewed the cache"):
        pickle.loads(packed).streams(clips[0])


def test_a_fresh_cache_serves_without_its_lock(tmp_path, clips, monkeypatch):
    build(tmp_path / "c", clips)
    monkeypatch.setattr(cache_module, "_locked", None)  # as on a read-only disk
    same(build(tmp_path / "c", clips), clips)


def test_a_worker_that_dies_is_one_clear_error(tmp_path, clips):
    with pytest.raises(DataError, match="a worker process ended by itself"):
        build(tmp_path / "c", clips, options=FeatureOptions(speech_emotion=Killer()), processes=2)


def test_a_script_without_a_main_guard_fails_instead_of_waiting_for_itself(tmp_path, tree):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from emc_fast.data import React2024, FeatureCache\n"
        "FeatureCache.build(sys.argv[2], React2024(sys.argv[1], 'val').clips, progress=False, processes=2)\n"
    )
    command = [sys.executable, str(script), str(tree), str(tmp_path / "c")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "if __name__ == '__main__':" in done.stderr


def test_the_bar_tells_how_far_it_is(tmp_path, clips):
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    FeatureCache.build(tmp_path / "c", clips, console=console, title="features of val")
    assert "features of val" in text.getvalue()
    assert "8/8" in text.getvalue()


def test_an_epoch_reads_no_source_file(tmp_path, tree):
    shutil.copytree(tree, tmp_path / "t")
    data = REACTDataset(tmp_path / "t", "val", cache_dir=tmp_path / "c", progress=False)
    expected = [data[i]["speech"].clone() for i in range(len(data))]
    shutil.rmtree(tmp_path / "t")
    for i, speech in enumerate(expected):
        np.testing.assert_array_equal(data[i]["speech"], speech)
