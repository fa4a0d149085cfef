"""Names and widths of the per-frame streams, in the order of the REACT files."""

from __future__ import annotations

ACTION_UNITS: tuple[str, ...] = tuple(f"AU{n}" for n in (1, 2, 4, 6, 7, 9, 10, 12, 14, 15, 17, 23, 24, 25, 26))
EXPRESSIONS: tuple[str, ...] = ("Neutral", "Happy", "Sad", "Surprise", "Fear", "Disgust", "Anger", "Contempt")

#: The 25 columns of an ``Emotion`` csv: 15 action unit occurrences, valence and arousal in [-1, 1], 8 expression probabilities.
EMOTION_NAMES: tuple[str, ...] = (*ACTION_UNITS, "valence", "arousal", *EXPRESSIONS)

#: The 10 columns of speech emotion: the same without the action units, which no microphone sees.
SPEECH_EMOTION_NAMES: tuple[str, ...] = EMOTION_NAMES[len(ACTION_UNITS) :]


def _sides(name: str) -> tuple[str, str]:
    return f"{name}Left", f"{name}Right"


#: The 58 coefficients of a 3DMM frame: 52 ARKit-like expression coefficients, then head rotation and translation.
COEFFICIENT_NAMES: tuple[str, ...] = (
    *_sides("browDown"),
    "browInnerUp",
    *_sides("browOuterUp"),
    "cheekPuff",
    *_sides("cheekSquint"),
    *_sides("eyeBlink"),
    *(side for way in ("Down", "In", "Out", "Up") for side in _sides(f"eyeLook{way}")),
    *_sides("eyeSquint"),
    *_sides("eyeWide"),
    *("jawForward", "jawLeft", "jawOpen", "jawRight"),
    "mouthClose",
    *_sides("mouthDimple"),
    *_sides("mouthFrown"),
    *("mouthFunnel", "mouthLeft"),
    *_sides("mouthLowerDown"),
    *_sides("mouthPress"),
    *("mouthPucker", "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper"),
    *_sides("mouthSmile"),
    *_sides("mouthStretch"),
    *_sides("mouthUpperUp"),
    *_sides("noseSneer"),
    "tongueOut",
    *("rotationX", "rotationY", "rotationZ"),
    *("translationX", "translationY", "translationZ"),
)

EMOTION_DIM = len(EMOTION_NAMES)  # 25
SPEECH_EMOTION_DIM = len(SPEECH_EMOTION_NAMES)  # 10
COEFFICIENT_DIM = len(COEFFICIENT_NAMES)  # 58
MFCC_DIM = 78
