"""Files of a clip: what is taken, and that nothing but a DataError comes out of a damaged one."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emc_fast.data import EMOTION_NAMES, load_audio, read_coefficients, read_emotion
from emc_fast.data.audio import mfcc
from emc_fast.data.frames import list_frames
from emc_fast.data.react2024 import read_list
from emc_fast.data.readers import load_array, read_mean_face, read_speech_emotion
from emc_fast.errors import DataError

HEADER = ",".join(EMOTION_NAMES)
ROW = ",".join(f"{i / 25:.3f}" for i in range(25))
quick = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_emotion(tmp_path):
    values = read_emotion(put(tmp_path, "a.csv", f"{HEADER}\n{ROW}\n{ROW}\n"))
    assert values.shape == (2, 25)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[1], np.arange(25) / 25, atol=1e-6)


@pytest.mark.parametrize("text", ["\ufeff{h}\r\n{r}\r\n", "{h}\n{r}", '{h}\n"0.0"{tail}\n', "{h}\n\n{r}\n\n"])
def test_emotion_as_spreadsheets_write_it(tmp_path, text):
    content = text.format(h=HEADER, r=ROW, tail=ROW[5:])
    np.testing.assert_allclose(read_emotion(put(tmp_path, "a.csv", content)), [np.arange(25) / 25], atol=1e-6)


def spelled(*names: str) -> str:
    return ",".join(names)


@pytest.mark.parametrize(
    "respell", [str, str.upper, " {} ".format, '"{}"'.format, lambda name: name.replace("AU", "AU0").replace("AU01", "au 1")]
)
def test_emotion_columns_are_found_by_their_names(tmp_path, respell):
    order = np.random.default_rng(0).permutation(25)
    table = [spelled(*(respell(EMOTION_NAMES[i]) for i in order)), spelled(*(ROW.split(",")[i] for i in order))]
    for row in (table[1], f'"{table[1].split(",")[0]}"' + "," + table[1].split(",", 1)[1]):  # read at once, and cell by cell
        values = read_emotion(put(tmp_path, "a.csv", "\n".join([table[0], row])))
        np.testing.assert_allclose(values, [np.arange(25) / 25], atol=1e-6)


def test_emotion_columns_of_other_names_count_by_their_place(tmp_path):
    for header in (spelled(*"abcdefghijklmnopqrstuvwxy"), spelled(*(f"{n}_r" if n.startswith("AU") else n for n in EMOTION_NAMES))):
        np.testing.assert_allclose(read_emotion(put(tmp_path, "a.csv", f"{header}\n{ROW}\n")), [np.arange(25) / 25], atol=1e-6)


def test_emotion_holes_are_nan(tmp_path):
    holed = ROW.split(",")
    holed[3], holed[4], holed[5] = "", "nan", "inf"
    values = read_emotion(put(tmp_path, "a.csv", f"{HEADER}\n{ROW}\n{','.join(holed)}\n"))
    assert np.isnan(values[1, 3:6]).all()
    assert np.isfinite(np.delete(values[1], [3, 4, 5])).all()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        (HEADER, "no rows"),
        (f"{HEADER}\n\n\n", "no rows"),
        (f"{ROW}\n{ROW}\n", "line 1 holds numbers"),
        (f"{ROW.replace('0.080', '')}\n{ROW}\n", "line 1 holds numbers"),
        (f'"{ROW[:5]}"{ROW[5:]}\n{ROW}\n', "line 1 holds numbers"),
        (
            f"{spelled('valence', 'arousal', *(f'{n}_r' for n in EMOTION_NAMES[:15]), *EMOTION_NAMES[17:])}\n{ROW}\n",
            "line 1 calls column 1 'valence', the name of column 16; .* these are not: AU1, AU2, .*, AU26$",
        ),
        (f"{HEADER.replace('AU2,', 'AU1,')}\n{ROW}\n", "line 1 calls column 2 'AU1', the name of column 1; .* these are not: AU2$"),
        ("a,b\n1,2\n", "has 2 columns"),
        (f"{HEADER}\n{ROW}\n{ROW},1\n", "line 3 has 26 cells"),
        (f"{HEADER}\n{ROW}\n{ROW[:-6]}\n", "line 3 has 24 cells"),
        (f"{HEADER}\n{ROW}\n{ROW.replace('0.080', 'smile')}\n", r"line 3, column 3 \(AU4\) holds 'smile'"),
        (f"{HEADER}\n# {ROW}\n", r"line 2, column 1 \(AU1\)"),
        (b"\xff\xfe\x00", "cannot be read as csv text"),
    ],
)
def test_emotion_faults(tmp_path, content, says):
    path = put(tmp_path, "8.csv", content)
    with pytest.raises(DataError, match=says) as caught:
        read_emotion(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("shape", [(7, 1, 58), (7, 58)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_coefficients(tmp_path, shape, dtype):
    array = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    values = read_coefficients(tmp_path / "a.npy")
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, array.reshape(7, 58).astype(np.float32))


def test_infinite_coefficients_are_holes(tmp_path):
    array = np.zeros((3, 58))
    array[1, 2], array[2, 0] = np.inf, 1e300
    np.save(tmp_path / "a.npy", array)
    assert np.isnan(read_coefficients(tmp_path / "a.npy")).any(1).tolist() == [False, True, True]


@pytest.mark.parametrize("shape", [(0, 58), (7, 57), (7, 2, 58), (58,), (7, 58, 1), (1, 7, 58)])
def test_coefficients_of_another_shape(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape))
    with pytest.raises(DataError, match=r"a\.npy: has shape .* \(T, 1, 58\) or \(T, 58\)"):
        read_coefficients(tmp_path / "a.npy")


def test_an_npy_that_promises_more_than_it_holds(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 58)))
    whole = (tmp_path / "a.npy").read_bytes()
    for damaged in (
        whole[:-8],
        whole[:100],
        whole[:6],
        b"",
        whole.replace(b"(2, 58)", b"(9**9,)"),
        whole.replace(b"(2, 58), ", b"(2**70,58)"),
    ):
        path = put(tmp_path, "b.npy", damaged)
        with pytest.raises(DataError, match=r"b\.npy"):
            read_coefficients(path)
    # A header that promises exabytes must be refused by the file's size, not by the allocator.
    header = whole[10:128].replace(b"(2, 58), ", b"(10000000000000000, 58), ").rstrip() + b"\n"
    path = put(tmp_path, "b.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 64)
    with pytest.raises(DataError, match="truncated"):
        read_coefficients(path)


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError):
        load_array(tmp_path / "a.npy", "numbers")
    assert not (tmp_path / "sprung").exists()


def test_arrays_of_text_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array(["x"] * 58))
    with pytest.raises(DataError, match="values of type <U1"):
        read_coefficients(tmp_path / "a.npy")


def test_mean_face(tmp_path):
    np.save(tmp_path / "m.npy", np.arange(58.0).reshape(1, 1, 58))
    np.testing.assert_array_equal(read_mean_face(tmp_path / "m.npy"), np.arange(58))
    np.save(tmp_path / "m.npy", np.full(58, np.nan))
    with pytest.raises(DataError, match="not finite"):
        read_mean_face(tmp_path / "m.npy")


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_audio_is_the_mean_of_its_channels(tmp_path, subtype, channels):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (300, channels))
    soundfile.write(tmp_path / "a.wav", wave, 22050, subtype=subtype)
    read, rate = load_audio(tmp_path / "a.wav")
    assert rate == 22050
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, wave.mean(1), atol=1e-4)


def test_audio_faults(tmp_path):
    with pytest.raises(DataError, match=r"gone\.wav: cannot be read as sound"):
        load_audio(tmp_path / "gone.wav")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    with pytest.raises(DataError, match="no samples"):
        load_audio(tmp_path / "empty.wav")
    soundfile.write(tmp_path / "cut.wav", np.zeros(1000), 16000)
    whole = (tmp_path / "cut.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:900])
    with pytest.raises(DataError, match=r"cut\.wav: is cut off: its header tells of 2000 bytes of sound, 856 are there"):
        load_audio(tmp_path / "cut.wav")
    # What a program writes into a pipe: it cannot know the length yet.
    (tmp_path / "cut.wav").write_bytes(whole[:40] + b"\xff\xff\xff\xff" + whole[44:])
    assert len(load_audio(tmp_path / "cut.wav")[0]) == 1000
    soundfile.write(tmp_path / "nan.wav", np.array([0, 0, np.nan]), 16000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"nan\.wav: sample 2 is \[nan\]; finite numbers"):
        load_audio(tmp_path / "nan.wav")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("frame", [(np.inf, -np.inf), (0, np.nan), (3e38, 3e38), (0, -1e30)])
def test_samples_of_which_nothing_can_be_computed(tmp_path, frame):
    soundfile.write(tmp_path / "a.wav", np.array([(0, 0)] * 9 + [frame] * 1000), 16000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"a\.wav: sample 9 is \["):
        load_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("rate", [1, 10, 999, 2**31 - 1])
def test_rates_that_no_recording_has(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 16000)
    whole = (tmp_path / "a.wav").read_bytes()
    path = put(tmp_path, "a.wav", whole[:24] + struct.pack("<I", rate) + whole[28:])
    with pytest.raises(DataError, match=rf"a\.wav: has a rate of {rate} Hz by its header; 1000 to 1000000 Hz are taken"):
        load_audio(path)
    with pytest.raises(ValueError, match=f"sample_rate must be 1000 to 1000000 Hz and fps positive, got {rate}"):
        mfcc(np.zeros(100), rate)
    assert mfcc(np.zeros(100), 1000).shape == (3, 78)


@pytest.mark.parametrize("numbers", [(1, 2, 3, 10, 4), (0, 1, 2), ("0001", "0002"), (1,)])
def test_frames_in_the_order_of_their_numbers(tmp_path, numbers):
    numbers = [*numbers, *range(5, 10)] if 10 in numbers else numbers
    paths = [put(tmp_path, f"{n}.png", b"") for n in numbers]
    assert list_frames(tmp_path) == sorted(paths, key=lambda path: int(path.stem))


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ((1, 2, 4, 5, 10), "frame 3 is missing, 4.png comes next; numbers without a gap, from 0 or 1, are taken"),
        ((0, 2), "frame 1 is missing, 2.png"),
        ((2, 3), "frame 1 is missing, 2.png"),
        ((1, 2, "02", 3), r"0?2\.png: is a second frame 2; one png per number is taken"),
    ],
)
def test_frames_that_would_shift_the_others(tmp_path, numbers, says):
    for number in numbers:
        put(tmp_path, f"{number}.png", b"")
    with pytest.raises(DataError, match=says) as caught:
        list_frames(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_list(tmp_path):
    path = put(tmp_path, "val.csv", ",s,l\r\n0,NoXI/a b/Expert_video/8,NoXI/a b/Novice_video/8\r\n\r\n1,NoXI\\c\\P1\\2,NoXI/c/P2/2\r\n")
    assert read_list(path) == [
        (2, ("NoXI/a b/Expert_video/8", "NoXI/a b/Novice_video/8")),
        (4, ("NoXI/c/P1/2", "NoXI/c/P2/2")),
    ]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("0,NoXI/a/P1/1", "line 2 has 2 cells"),
        ("0,NoXI/a/P1/1,NoXI/a/P2/1,x", "line 2 has 4 cells"),
        ("0,NoXI/a/P1/1,NoXI/a/P2/1\n1,,NoXI/a/P2/1", "line 3 holds ''"),
        ("0,NoXI/a/P1/1,NoXI/../../etc", r"line 2 holds 'NoXI/\.\./"),
        ("0,NoXI/a/P1/1,8", "line 2 holds '8'"),
        ("0,NoXI/a/P1/1,NoXI/a/P1/1", "both speaker and listener"),
        ("", "lists no pairs"),
    ],
)
def test_list_faults(tmp_path, rows, says):
    path = put(tmp_path, "train.csv", f",speaker,listener\n{rows}\n")
    with pytest.raises(DataError, match=says) as caught:
        read_list(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("first", ["0,NoXI/a/P1/1,NoXI/a/P2/1", "0,NoXI\\a\\P1\\1", "NoXI/a/P1/1,NoXI/a/P2/1"])
def test_a_list_without_a_header_loses_no_pair(tmp_path, first):
    path = put(tmp_path, "val.csv", f"{first}\n1,NoXI/a/P1/2,NoXI/a/P2/2\n")
    with pytest.raises(
        DataError, match=r"val\.csv: line 1 names the clip 'NoXI.*1'; a header is taken there; put 'index,speaker,listener'"
    ):
        read_list(path)


def only_data_errors(function, path):
    try:
        return function(path)
    except DataError as error:
        message = str(error)
    assert str(path) in message
    return None


READERS = [read_emotion, read_coefficients, read_speech_emotion, read_mean_face, load_audio, read_list]


@quick
@given(content=st.binary(max_size=300))
@pytest.mark.parametrize("reader", READERS)
def test_garbage(tmp_path, reader, content):
    only_data_errors(reader, put(tmp_path, "x", content))


@quick
@given(data=st.data())
@pytest.mark.parametrize("reader", READERS)
def test_damaged_files(tmp_path, reader, data):
    """A good file with a slice cut out and some bytes changed gives its shape or a DataError."""
    whole = _good_file(tmp_path, reader).read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    damaged = bytearray(whole[:start] + whole[stop:])
    for _ in range(data.draw(st.integers(0, 4)) if damaged else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    result = only_data_errors(reader, put(tmp_path, "x", bytes(damaged)))
    if result is not None and reader in (read_emotion, read_coefficients):
        assert result.ndim == 2
        assert result.shape[1] == {read_emotion: 25, read_coefficients: 58}[reader]
        assert len(result) > 0


def _good_file(folder: Path, reader) -> Path:
    path = folder / "good"
    if path.exists():
        return path
    if reader is read_emotion:
        return put(folder, "good", f"{HEADER}\n" + f"{ROW}\n" * 3)
    if reader is read_list:
        return put(folder, "good", ",s,l\n0,NoXI/a/P1/1,NoXI/a/P2/1\n1,NoXI/a/P1/2,NoXI/a/P2/2\n")
    if reader is load_audio:
        soundfile.write(path, np.linspace(-0.5, 0.5, 200), 16000, format="WAV")
        return path
    width = {read_coefficients: (2, 1, 58), read_speech_emotion: (2, 10), read_mean_face: (58,)}[reader]
    with open(path, "wb") as file:
        np.save(file, np.zeros(width, np.float32))
    return path
