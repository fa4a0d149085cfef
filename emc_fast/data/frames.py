"""Face images of a clip: a folder of numbered png files, as the published loader prepares them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

RESIZE, CROP = 256, 224


def list_frames(folder: str | Path) -> list[Path]:
    """The png files of a clip in the order of their numbers (``2.png`` before ``10.png``).

    Raises:
        DataError: the folder is unreadable, holds no png, or a png whose name is not a number, or a number is missing or there twice.
    """
    folder = Path(folder)
    try:
        paths = [path for path in folder.iterdir() if path.suffix.lower() == ".png" and not path.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error})") from error
    if not paths:
        raise DataError(f"{folder}: holds no png; frames 1.png, 2.png, ... are taken (extract them from a video first)")
    for path in paths:
        if not path.stem.isdecimal():
            raise DataError(f"{path}: the name of a frame is its number (1.png, 2.png, ...)")
    paths.sort(key=lambda path: int(path.stem))
    # Frame t is the t-th file: after a gap all frames would go with the sound and emotion of earlier ones.
    for wanted, path in enumerate(paths, start=min(int(paths[0].stem), 1)):
        number = int(path.stem)
        if number > wanted:
            raise DataError(f"{folder}: frame {wanted} is missing, {path.name} comes next; numbers without a gap, from 0 or 1, are taken")
        if number < wanted:
            raise DataError(f"{path}: is a second frame {number}; one png per number is taken")
    return paths


def load_frame(path: str | Path) -> NDArray[np.float32]:
    """One image: shorter side to 256 (bilinear), centre 224 x 224, RGB in [-1, 1].

    Returns:
        float32 ``(3, 224, 224)``.

    Raises:
        DataError: Pillow is absent, or the file is not an image that it can read.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("reading face images needs Pillow: pip install 'emc_fast[image]'") from error
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
            width, height = image.size
            scale = RESIZE / min(width, height)
            # The longer side is rounded down, as torchvision's Resize does.
            size = (RESIZE, int(RESIZE * height / width)) if width <= height else (int(RESIZE * width / height), RESIZE)
            if scale != 1:
                image = image.resize(size, Image.Resampling.BILINEAR)
            left, top = round((size[0] - CROP) / 2), round((size[1] - CROP) / 2)
            pixels = np.asarray(image.crop((left, top, left + CROP, top + CROP)), dtype=np.float32)
    except Exception as error:  # decoders raise what they like on damaged files
        raise DataError(f"{path}: cannot be read as an image ({error})") from error
    return np.ascontiguousarray(((pixels / 255 - 0.5) / 0.5).transpose(2, 0, 1))
