"""What the paper prints: table 1 of *Robust Facial Reactions Generation* (arXiv 2407.15798), and which model stands behind each row."""

from __future__ import annotations

from dataclasses import dataclass

BACKBONES = {"trans_vae": "Trans-VAE", "regnn": "REGNN", "faceais": "FaceAIS"}
"""Our names of the backbones and those of the table (which prints the last one as FaceVIS)."""

VARIANTS = {"original": "original", "emc": "EMC", "without_ea": "EMC w/o EA"}
"""The trainings of one backbone."""


@dataclass(frozen=True)
class Row:
    """A row of the table: which training it tests, and what it withholds then."""

    name: str
    title: str
    variant: str
    missing: str | None = None


ROWS = (
    Row("original", "original", "original"),
    Row("emc", "+ EMC", "emc"),
    Row("without_ea", "+ EMC w/o EA", "without_ea"),
    Row("no_face", "+ EMC, no face", "emc", "face"),
    Row("no_speech", "+ EMC, no speech", "emc", "speech"),
)
"""The five rows of each backbone in the paper's order."""

ZEROS = (
    Row("original_no_face", "original, zeros for the face", "original", "face"),
    Row("original_no_speech", "original, zeros for speech", "original", "speech"),
)
"""Two rows that the paper does not have: what compensation is worth is seen against a model that has none."""

PAPER: dict[tuple[str, str], tuple[float, float, float, float, float, float]] = {
    ("trans_vae", "original"): (0.03, 92.81, 0.0008, 0.0002, 0.0006, 43.75),
    ("trans_vae", "emc"): (0.07, 31.30, 0.0454, 0.0201, 0.0495, 42.63),
    ("trans_vae", "without_ea"): (0.03, 32.31, 0.0378, 0.0209, 0.0420, 45.61),
    ("trans_vae", "no_face"): (0.02, 42.89, 0.0022, 0.0005, 0.0072, 45.79),
    ("trans_vae", "no_speech"): (0.05, 31.83, 0.0209, 0.0179, 0.0133, 46.66),
    ("regnn", "original"): (0.19, 84.54, 0.0007, 0.0061, 0.0342, 41.35),
    ("regnn", "emc"): (0.23, 93.33, 0.0007, 0.0056, 0.0445, 39.02),
    ("regnn", "without_ea"): (0.21, 90.75, 0.0006, 0.0054, 0.0405, 39.92),
    ("regnn", "no_face"): (0.11, 83.55, 0.0006, 0.0039, 0.0127, 39.75),
    ("regnn", "no_speech"): (0.22, 92.65, 0.0006, 0.0051, 0.0408, 40.68),
    ("faceais", "original"): (0.23, 88.43, 0.1158, 0.0346, 0.1159, 44.99),
    ("faceais", "emc"): (0.27, 86.37, 0.1078, 0.0619, 0.1077, 43.82),
    ("faceais", "without_ea"): (0.23, 90.32, 0.1088, 0.0495, 0.1089, 44.89),
    ("faceais", "no_face"): (0.19, 97.60, 0.0839, 0.0295, 0.0839, 44.60),
    ("faceais", "no_speech"): (0.23, 87.85, 0.0856, 0.0235, 0.0857, 45.25),
}
"""FRCorr, FRDist, FRDiv, FRVar, FRDvs, FRSyn by (backbone, row)."""
