"""Every bad input is one error that names it, before any work."""

import pytest
import torch
from model_helpers import build, make_batch

from emc_fast import EMCConfig
from emc_fast.errors import DataError
from emc_fast.nn.inputs import prepare


@pytest.fixture(scope="module")
def model():
    return build()


def change(**changes):
    """A batch with some streams replaced by a function of themselves, or by a value."""
    batch = make_batch(2, 6, targets=True)
    for name, value in changes.items():
        batch[name] = value(batch[name]) if callable(value) else value
    return batch


def poison(index, value=float("nan")):
    def put(x):
        x = x.clone()
        x[index] = value
        return x

    return put


def mask(*rows):
    return torch.tensor(rows).bool()


SHAPES = [
    ({"face": None, "speech": None}, "both face and speech are missing"),
    ({"face": lambda x: x[..., :57]}, r"face takes a shape \(B, T, 58\).*got \(2, 6, 57\)"),
    ({"speech": lambda x: x[..., :70]}, r"speech takes a shape \(B, T, 78\)"),
    ({"speech": lambda x: x[0]}, r"speech takes a shape .*got \(6, 78\)"),
    ({"face_emotion": lambda x: x[..., :10]}, r"face_emotion takes a shape \(B, T, 25\)"),
    ({"speech_emotion": lambda x: x[..., :2]}, r"speech_emotion takes a shape \(B, T, 10\)"),
    ({"target_3dmm": lambda x: x[..., :52]}, r"target_3dmm takes a shape \(B, T, 58\)"),
    ({"target_emotion": None}, "needs target_3dmm and target_emotion"),
    ({"speech": lambda x: x[:, :5]}, "speech has 5 frames but face has 6"),
    ({"speech_emotion": lambda x: x[:1]}, "speech_emotion has 1 clips but face has 2"),
    ({"face": lambda x: x.long()}, "face takes a floating type; got torch.int64"),
    ({"face": lambda x: x.numpy()}, "face takes a tensor or None; got ndarray"),
    ({"face": lambda x: x[:, :0], "speech": lambda x: x[:, :0]}, "without empty dimensions"),
    ({"face_available": torch.ones(2, 6)}, "face_available takes torch.bool"),
    ({"speech_available": torch.ones(2, 6, 1).bool()}, r"speech_available takes a shape \(B, T\)"),
    ({"face": None, "face_available": torch.ones(2, 6).bool()}, "face_available is given without face"),
    ({"speech": None, "speech_available": torch.ones(2, 6).bool()}, "speech_available is given without speech"),
    ({"lengths": torch.ones(2)}, r"lengths takes int64 of shape \(B,\) = \(2,\)"),
    ({"lengths": [6, 6]}, r"lengths takes a tensor, int64 of shape \(B,\) = \(2,\), or None; got list"),
    ({"speech": lambda x: x.to("meta")}, "speech is on meta but face is on cpu"),
    ({"face": None, "speech_emotion": None}, "with speech, emotion-aware attention needs speech_emotion"),
    ({"speech": None, "face_emotion": None}, "with face, emotion-aware attention needs face_emotion"),
    ({"face_emotion": None, "speech_emotion": None}, "needs face_emotion or speech_emotion"),
]

CONTENTS = [
    ({"face": poison((1, 4, 7))}, "face has NaN or Inf in a frame marked available: sample 1, frame 4"),
    ({"speech": poison((0, 2, 0), float("inf"))}, "speech has NaN or Inf .*: sample 0, frame 2"),
    ({"face_emotion": poison((1, 0, 3))}, "face_emotion has NaN or Inf .*: sample 1, frame 0"),
    ({"speech_emotion": poison((1, 5, 9))}, "speech_emotion has NaN or Inf .*: sample 1, frame 5"),
    ({"target_3dmm": poison((0, 0, 0))}, "target_3dmm has NaN or Inf"),
    ({"target_emotion": poison((0, 1, 0))}, "target_emotion has NaN or Inf"),
    ({"lengths": torch.tensor([6, 7])}, "lengths takes values from 1 to T = 6; wrong at sample 1"),
    ({"lengths": torch.tensor([0, 6])}, "lengths takes values from 1 to T = 6; wrong at sample 0"),
    (
        {"face_available": mask([1] * 6, [0] * 6), "speech_available": mask([1] * 6, [0] * 6)},
        "face and speech are both unavailable in every frame of sample 1",
    ),
    (
        {"face_available": mask([0] * 6, [1] * 6), "speech_emotion": None},
        "sample 0 has no emotion in any frame",
    ),
    (
        {"lengths": torch.tensor([6, 2]), "face": None, "speech_available": mask([1] * 6, [0, 0, 1, 1, 1, 1])},
        "both unavailable in every frame of sample 1",
    ),
]


@pytest.mark.parametrize(("changes", "message"), SHAPES + CONTENTS, ids=lambda v: "+".join(v) if isinstance(v, dict) else "")
def test_a_bad_batch_is_one_error_that_names_it(model, changes, message):
    with pytest.raises(DataError, match=message):
        model(**change(**changes), seed=1)


@pytest.mark.parametrize(("changes", "message"), CONTENTS[:2], ids=["face", "speech"])
def test_contents_are_not_looked_at_when_told_so(model, changes, message):
    assert model(**change(**changes), seed=1, validate=False).reaction_emotion.isnan().any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"face": None}, "face is missing throughout: compensation is learned"),
        ({"speech": None}, "speech is missing throughout"),
        ({"speech_emotion": None}, "speech_emotion is missing: training"),
        ({"face_emotion": None}, "face_emotion is missing: training"),
    ],
)
def test_training_emc_needs_both_streams_and_their_emotions(changes, message):
    with pytest.raises(DataError, match=message):
        build(train=True)(**change(**changes), seed=1)


@pytest.mark.parametrize("num_samples", [0, -1, 1.0, True])
def test_num_samples_is_a_positive_integer(model, num_samples):
    with pytest.raises(ValueError, match="num_samples takes a positive integer"):
        model(**change(), num_samples=num_samples)


def test_no_emotion_is_needed_without_emotion_aware_attention():
    batch = make_batch(2, 6)
    batch = {"face": batch["face"], "speech": None}
    assert build(ea="none")(**batch, seed=1).reaction_3dmm.isfinite().all()
    assert build(emc=False)(**batch, seed=1).reaction_3dmm.isfinite().all()


def prepared(dtype, **changes):
    streams = dict.fromkeys(("face_available", "speech_available", "lengths", "target_available"))
    return prepare(EMCConfig(), **(streams | change(**changes)), training=False, validate=True, dtype=dtype)


@pytest.mark.parametrize("name", ["face", "speech", "face_emotion", "speech_emotion"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_stream_has_the_type_of_the_weights(name, dtype):
    with pytest.raises(DataError, match=rf"{name} takes torch.float32, .*; got {dtype} \(convert it with `{name}.to\(torch.float32\)`"):
        prepared(torch.float32, **{name: lambda x: x.to(dtype)})
    everything = {stream: lambda x: x.to(dtype) for stream in ("face", "speech", "face_emotion", "speech_emotion")}
    assert prepared(dtype, **everything).face.dtype == dtype


def test_autocast_takes_half_streams_but_no_double():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert prepared(torch.float32, speech=lambda x: x.half()).speech.dtype == torch.float16
        with pytest.raises(DataError, match="speech takes"):
            prepared(torch.float32, speech=lambda x: x.double())
