"""A short clip whose every feature is known, and a page as the tests read it."""

from __future__ import annotations

from typing import Any

import numpy as np

FRAMES = 100
AU = {name: i for i, name in enumerate((1, 2, 4, 6, 7, 9, 10, 12, 14, 15, 17, 23, 24, 25, 26))}
BLINK_L, BLINK_R, JAW_OPEN, SMILE_L, SMILE_R = 8, 9, 24, 43, 44
MISSING_FACE, MISSING_SPEECH = (40, 60), (70, 80)


def make_clip(draws: int = 2, frames: int = FRAMES) -> dict[str, Any]:
    """Arguments of ``write_html``: reaction 0 smiles at frame 30 and blinks at 50, reaction 1 does neither."""
    rng = np.random.default_rng(3)
    emotion = np.zeros((draws, frames, 25), np.float32)
    shape = np.zeros((draws, frames, 58), np.float32)
    emotion[..., 17] = 1
    emotion[0, 20:40, AU[12]] = np.interp(np.arange(20, 40), [20, 30, 40], [0, 1, 0])
    shape[0, 45:56, [BLINK_L, BLINK_R]] = np.interp(np.arange(45, 56), [45, 50, 55], [0, 1, 0])
    shape[:, :, 52:] = (3.19, 0.045, 0.002, -0.006, -0.018, 1.838)
    shape[0, 90:, 53] += 0.3
    speaker = rng.random((frames, 25), dtype=np.float32) * 0.2
    speaker[:, AU[25]] = 0.9
    face, speech = np.ones(frames, bool), np.ones(frames, bool)
    face[slice(*MISSING_FACE)] = False
    speech[slice(*MISSING_SPEECH)] = False
    return {
        "reaction_emotion": emotion,
        "reaction_3dmm": shape,
        "speaker_emotion": speaker,
        "speaker_3dmm": shape[0] + rng.normal(0, 0.02, (frames, 58)).astype(np.float32),
        "face_available": face,
        "speech_available": speech,
        "title": "NoXI/session/Expert_video/8",
    }


class Page:
    """A page in the browser, read through its own document."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def key(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def shifted(self, key: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        ActionChains(self.driver).key_down(Keys.SHIFT).send_keys(key).key_up(Keys.SHIFT).perform()

    @property
    def frame(self) -> int:
        return self.run("return emcView.frame")

    def seek(self, frame: int) -> None:
        self.run("emcView.seek(arguments[0])", frame)

    def path(self, face: str, part: str) -> str:
        return self.run("return document.querySelector('#face-' + arguments[0] + ' .' + arguments[1]).getAttribute('d')", face, part)

    def box(self, face: str, part: str) -> dict[str, float]:
        script = "const b = document.querySelector('#face-' + arguments[0] + ' .' + arguments[1]).getBBox();"
        return self.run(script + "return {x: b.x, y: b.y, width: b.width, height: b.height}", face, part)

    def area(self, face: str, part: str) -> float:
        """Area inside a path, by the shoelace formula over points along it."""
        script = """
          const path = document.querySelector('#face-' + arguments[0] + ' .' + arguments[1]), n = 200;
          const points = Array.from({length: n}, (_, i) => path.getPointAtLength((i / n) * path.getTotalLength()));
          return Math.abs(points.reduce((sum, p, i) => sum + p.x * points[(i + 1) % n].y - p.y * points[(i + 1) % n].x, 0)) / 2;"""
        return self.run(script, face, part)

    def mouth_corner(self, face: str) -> tuple[float, float]:
        """Where the line of the mouth begins, at the viewer's left."""
        script = "const p = document.querySelector('#face-' + arguments[0] + ' .mouth-line').getPointAtLength(0); return [p.x, p.y]"
        x, y = self.run(script, face)
        return x, y

    def pixel(self, track: str, fraction: float, row: float) -> list[int]:
        """Mean colour (r, g, b) of a small patch of a track's canvas, at a fraction of its width and ``row`` CSS pixels down."""
        script = """
          const canvas = [...document.querySelectorAll('.track')].find(
            (t) => t.querySelector('.track-title').textContent === arguments[0]).querySelector('canvas');
          const k = canvas.width / canvas.clientWidth, data = canvas.getContext('2d').getImageData(
            Math.round(arguments[1] * canvas.width) - 8, Math.round(arguments[2] * k), 16, 4).data;
          const sum = [0, 0, 0];
          for (let i = 0; i < data.length; i++) if (i % 4 < 3) sum[i % 4] += data[i] / (data.length / 4);
          return sum;"""
        return self.run(script, track, fraction, row)

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]
