"""The page in a real browser: it plays, follows keys and pointer, and what it draws follows the data."""

from __future__ import annotations

import io
import wave

import numpy as np
import pytest
from viewer_cases import AU, BLINK_L, FRAMES, JAW_OPEN, SMILE_L, SMILE_R, make_clip

pytest.importorskip("selenium", reason="runs where the extra 'test' is installed, which brings selenium")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

pytestmark = pytest.mark.chromium


def distance(one, other):
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


def tone(seconds=4.0, rate=16000):
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        t = np.arange(int(seconds * rate)) / rate
        file.writeframes((8000 * np.sin(2 * np.pi * 220 * t)).astype("<i2").tobytes())
    return sound.getvalue()


def test_plays_and_stops_with_the_space_bar(show, clip):
    page = show(**clip)
    page.key(Keys.SPACE)
    WebDriverWait(page.driver, 5).until(lambda _: page.frame > 3)
    page.key(Keys.SPACE)
    stopped = page.frame
    assert not page.run("return emcView.playing")
    assert page.run("return new Promise((done) => setTimeout(() => done(emcView.frame), 200))") == stopped
    assert page.driver.find_element(By.ID, "announce").text.startswith("Paused at")
    assert page.complaints() == []


def test_plays_to_the_end_and_then_from_the_start(show, clip):
    page = show(**clip)
    page.seek(FRAMES - 5)
    page.driver.find_element(By.ID, "play").click()
    WebDriverWait(page.driver, 5).until(lambda _: not page.run("return emcView.playing"))
    assert page.frame == FRAMES - 1
    page.driver.find_element(By.ID, "play").click()
    WebDriverWait(page.driver, 5).until(lambda _: 0 < page.frame < FRAMES - 5)
    page.run("emcView.pause()")


def test_runs_at_the_clips_own_pace(show, clip):
    page = show(**clip, fps=50.0)
    script = """
      const start = performance.now();
      emcView.play();
      return new Promise((done) => setTimeout(() => { emcView.pause(); done([emcView.frame, performance.now() - start]) }, 800));"""
    frame, elapsed = page.run(script)
    assert 0.5 * 50 <= frame / (elapsed / 1000) <= 1.1 * 50


def test_keys_step_jump_and_stay_inside(show, clip):
    page = show(**clip)
    for press, expected in (
        (lambda: page.key(Keys.ARROW_LEFT), 0),
        (lambda: page.key(Keys.ARROW_RIGHT), 1),
        (lambda: page.shifted(Keys.ARROW_RIGHT), 26),
        (lambda: page.key(Keys.ARROW_LEFT), 25),
        (lambda: page.shifted(Keys.ARROW_LEFT), 0),
        (lambda: page.key(Keys.END), FRAMES - 1),
        (lambda: page.key(Keys.ARROW_RIGHT), FRAMES - 1),
        (lambda: page.key(Keys.HOME), 0),
    ):
        press()
        assert page.frame == expected


def test_slider_takes_focus_and_moves_once_per_key(show, clip):
    page = show(**clip)
    slider = page.driver.find_element(By.ID, "scrub")
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.run("return document.activeElement.id") == "scrub"
    assert page.frame == 2
    assert slider.get_attribute("aria-valuetext") == f"0.08 s · frame 2 of {FRAMES}"
    assert slider.get_attribute("max") == str(FRAMES - 1)


def test_dragging_over_the_strips_moves_the_playhead(show, clip):
    page = show(**clip)
    canvas = page.driver.find_element(By.CSS_SELECTOR, ".track canvas")
    left, width = canvas.rect["x"], canvas.rect["width"]
    drag = ActionChains(page.driver).move_to_element_with_offset(canvas, int(width / 4 - width / 2), 0).click_and_hold()
    drag.perform()
    assert abs(page.frame - FRAMES // 4) <= 1
    ActionChains(page.driver).move_by_offset(int(width / 2), 0).release().perform()
    assert abs(page.frame - 3 * FRAMES // 4) <= 1
    playhead = page.driver.find_element(By.ID, "playhead").rect
    assert playhead["x"] + playhead["width"] / 2 == pytest.approx(left + width * (page.frame + 0.5) / FRAMES, abs=1.5)
    assert float(page.driver.find_element(By.ID, "scrub").get_attribute("value")) == page.frame


@pytest.mark.parametrize("source", ["AU12", "mouthSmile"])
def test_mouth_corners_follow_the_smile(show, clip, source):
    emotion, shape = np.zeros((1, 3, 25), np.float32), np.zeros((1, 3, 58), np.float32)
    for frame, value in ((1, 0.5), (2, 1.0)):
        if source == "AU12":
            emotion[0, frame, AU[12]] = value
        else:
            shape[0, frame, [SMILE_L, SMILE_R]] = value
    page = show(reaction_emotion=emotion, reaction_3dmm=shape)
    corners = []
    for frame in range(3):
        page.seek(frame)
        corners.append(page.mouth_corner("r0"))
    (x0, y0), (x1, y1), (x2, y2) = corners
    assert y0 > y1 + 3 > y2 + 6, "the corner rises"
    assert x0 > x1 + 2 > x2 + 4, "and goes out"


def test_one_sided_smile_lifts_one_corner(show):
    shape = np.zeros((1, 2, 58), np.float32)
    shape[0, 1, SMILE_R] = 1  # the person's right is the viewer's left
    page = show(reaction_emotion=np.zeros((1, 2, 25)), reaction_3dmm=shape)
    ends = """
      const line = document.querySelector('#face-r0 .mouth-line');
      return [0, line.getTotalLength()].map((place) => line.getPointAtLength(place).y);"""
    before = page.run(ends)
    page.seek(1)
    after = page.run(ends)
    assert after[0] < before[0] - 6
    assert after[1] == pytest.approx(before[1], abs=0.5)


def test_eyes_close_jaw_drops_brows_rise_head_turns(show, clip):
    emotion, shape = np.zeros((1, 6, 25), np.float32), np.zeros((1, 6, 58), np.float32)
    shape[0, 1, BLINK_L : BLINK_L + 2] = 1
    shape[0, 2, JAW_OPEN] = 1
    emotion[0, 3, [AU[1], AU[2]]] = 1
    shape[0, 4, 53], shape[0, 5, 53] = 0.3, -0.3
    page = show(reaction_emotion=emotion, reaction_3dmm=shape)
    rest = {part: page.box("r0", part) for part in ("mouth", "brow-L", "nose")}
    open_eyes = {side: page.area("r0", f"opening-{side}") for side in "LR"}
    page.seek(1)
    for side in "LR":
        assert page.area("r0", f"opening-{side}") < 0.15 * open_eyes[side]
    page.seek(2)
    assert page.box("r0", "mouth")["height"] > rest["mouth"]["height"] + 15
    page.seek(3)
    assert page.box("r0", "brow-L")["y"] < rest["brow-L"]["y"] - 5
    page.seek(4)
    assert page.box("r0", "nose")["x"] < rest["nose"]["x"] - 10, "positive yaw goes to the viewer's left"
    page.seek(5)
    assert page.box("r0", "nose")["x"] > rest["nose"]["x"] + 10


def test_every_action_unit_and_coefficient_moves_something(show):
    frames = 1 + 15 + 8 + 52
    emotion, shape = np.zeros((1, frames, 25), np.float32), np.zeros((1, frames, 58), np.float32)
    for i in range(15):
        emotion[0, 1 + i, i] = 1
    for i in range(8):
        emotion[0, 16 + i, 17 + i] = 1
    for i in range(52):
        shape[0, 24 + i, i] = 1
    shape[0, :, JAW_OPEN] = np.maximum(shape[0, :, JAW_OPEN], 0.4)  # the tongue shows, and lips can close, only in an open mouth
    page = show(reaction_emotion=emotion, reaction_3dmm=shape)
    script = """
      const out = [], face = document.getElementById('face-r0');
      for (let t = 0; t < emcView.clip.frames; t++) { emcView.seek(t); out.push(face.innerHTML); }
      return out;"""
    drawn = page.run(script)
    still = {i for i in range(1, frames) if drawn[i] == drawn[0]}
    neutral, jaw_forward, shrug_upper = 16, 24 + 22, 24 + 42  # a frontal drawing has no depth to show these two
    assert still == {neutral, jaw_forward, shrug_upper}


def test_faces_show_what_their_own_draw_does(show, clip):
    page = show(**clip)
    page.seek(30)
    assert page.mouth_corner("r0")[1] < page.mouth_corner("r1")[1] - 5
    page.key("0")
    assert page.run("return document.querySelector('#face-r0').checkVisibility()") is False
    assert page.run("return document.querySelector('#face-r1').checkVisibility()") is True
    titles = page.run("return [...document.querySelectorAll('.track-title')].map((t) => t.textContent)")
    assert "Reaction 1" in titles
    assert "Reaction 0" not in titles
    page.key("1")  # the last one stays
    assert page.run("return document.querySelector('#face-r1').checkVisibility()") is True
    page.driver.find_element(By.CSS_SELECTOR, "[data-draw='0']").click()
    assert page.driver.find_element(By.CSS_SELECTOR, "[data-draw='0']").get_attribute("aria-pressed") == "true"
    assert page.mouth_corner("r0")[1] < page.mouth_corner("r1")[1] - 5


def test_choice_of_source_changes_the_face(show, clip):
    page = show(**clip)
    page.seek(30)
    heights = {}
    for source in ("both", "3dmm", "au"):
        page.run("const s = document.getElementById('source'); s.value = arguments[0]; s.dispatchEvent(new Event('change'))", source)
        heights[source] = page.mouth_corner("r0")[1]
    assert heights["3dmm"] > heights["both"] + 5, "the smile is in the action units alone"
    assert heights["au"] == pytest.approx(heights["both"], abs=1)


@pytest.mark.parametrize("dark", [False, True])
def test_missing_frames_are_shaded(show, clip, dark):
    page = show(**clip, dark=dark)
    for track, row in (("Valence", 20), ("Speaker", 120), ("Reaction 0", 120), ("Reaction 1", 120)):
        seen, no_face, no_speech = (page.pixel(track, fraction, row) for fraction in (0.1, 0.5, 0.75))
        assert distance(no_face, seen) > 25, track
        assert distance(no_speech, seen) > 25, track
        assert no_face[0] > no_face[2] + 5, f"{track}: orange where the face is missing"
        assert no_speech[2] > no_speech[1] + 5, f"{track}: violet where speech is missing"


def test_missing_face_and_speech_are_labelled(show, clip):
    page = show(**clip)
    states = "return [...document.querySelectorAll('.inputs li')].map((item) => item.textContent)"
    veiled = "return getComputedStyle(document.querySelector('#face-speaker .veil')).display !== 'none'"
    assert page.run(states) == ["face", "speech"]
    assert page.run(veiled) is False
    resting = None
    for frame in (40, 59):
        page.seek(frame)
        assert page.run(states) == ["face missing", "speech"]
        assert page.run(veiled) is True
        assert page.run("return document.querySelector('#face-speaker .veil-label').textContent") == "face missing"
        resting = resting or page.path("speaker", "mouth-line")
        assert page.path("speaker", "mouth-line") == resting, "nothing moves in a face that is not known"
    page.seek(75)
    assert page.run(states) == ["face", "speech missing"]


def test_without_a_face_in_the_whole_clip(show, clip):
    none = clip | {"speaker_emotion": None, "speaker_3dmm": None, "face_available": np.zeros(FRAMES, bool)}
    page = show(**none)
    assert page.run("return document.querySelector('#face-speaker').classList.contains('missing')")
    page = show(**(none | {"face_available": None}))
    assert page.run("return document.querySelector('#face-speaker .veil-label').textContent") == "face not recorded"
    page = show(reaction_emotion=clip["reaction_emotion"])
    assert page.run("return document.querySelector('#face-speaker')") is None
    assert "no 3DMM" in page.driver.find_element(By.ID, "facts").text
    assert page.complaints() == []


@pytest.mark.parametrize(("draws", "width", "dark"), [(10, 1100, False), (1, 1920, True), (10, 390, False), (1, 390, True)])
def test_fits_any_number_of_draws_and_widths(show, draws, width, dark):
    page = show(**make_clip(draws), width=width, dark=dark)
    page.run("if (arguments[0] > 1) emcView.showAll()", draws)
    assert page.run("return document.querySelectorAll('.track.strip').length") == draws + 1
    assert page.run("return [...document.querySelectorAll('#reactions svg.face')].filter((f) => f.checkVisibility()).length") == draws
    assert page.run("return document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out to the side"
    assert page.run("return document.getElementById('draws').checkVisibility()") is (draws > 1)
    page.seek(50)
    assert page.complaints() == []


LUMINANCE = """
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const luminance = (element, key) => {
    const [r, g, b] = getComputedStyle(element)[key].match(/[0-9.]+/g).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const paper = luminance(document.body, 'backgroundColor'), card = luminance(document.getElementById('timeline'), 'backgroundColor');
  const label = luminance(document.querySelector('.row-label'), 'color');
  return {paper, text: contrast(luminance(document.body, 'color'), paper), label: contrast(label, card)};"""


def test_dark_and_light_differ_and_are_legible(show, clip):
    found = {dark: show(**clip, dark=dark).run(LUMINANCE) for dark in (False, True)}
    assert found[False]["paper"] > 0.8 > 0.1 > found[True]["paper"]
    for contrast in found.values():
        assert contrast["text"] > 7
        assert contrast["label"] > 4.5


def test_names_stay_text(show, clip):
    name = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"
    page = show(**(clip | {"title": name}), draw_names=[name, "$title"])
    assert page.run("return window.broken") is None
    assert page.driver.find_element(By.TAG_NAME, "h1").text == name
    assert page.driver.title == name
    names = page.run("return [...document.querySelectorAll('#reactions .name')].map((n) => n.textContent)")
    assert names == [name, "$title"]
    assert page.complaints() == []


def test_sound_plays_with_the_faces(show, clip):
    page = show(**clip, audio=tone())
    mute = page.driver.find_element(By.ID, "mute")
    assert mute.is_displayed()
    page.key("m")
    assert mute.get_attribute("aria-pressed") == "true"
    page.key(Keys.SPACE)
    WebDriverWait(page.driver, 8).until(lambda _: page.frame > 10)
    page.key(Keys.SPACE)
    assert page.complaints() == []


def test_playing_on_behind_the_end_of_the_sound(show, clip):
    page = show(**clip, audio=tone(1.0))
    page.seek(60)
    page.key(Keys.SPACE)
    WebDriverWait(page.driver, 5).until(lambda _: page.frame != 60)
    assert page.frame > 60
    page.seek(5)
    WebDriverWait(page.driver, 5).until(lambda _: page.frame != 5)
    page.key(Keys.SPACE)
    assert 5 < page.frame < 60
    assert page.complaints() == []


def test_a_span_of_the_clip_turns_pages(show):
    page = show(**make_clip(1, frames=500))
    page.run("const z = document.getElementById('zoom'); z.value = '5'; z.dispatchEvent(new Event('change'))")
    for frame in (0, 124, 130, 499, 250):
        page.seek(frame)
        head, canvas = page.driver.find_element(By.ID, "playhead").rect, page.driver.find_element(By.CSS_SELECTOR, ".track canvas").rect
        assert canvas["x"] - 1 <= head["x"] + head["width"] / 2 <= canvas["x"] + canvas["width"] + 1


def test_the_pointer_reads_values(show, clip):
    page = show(**clip)
    strip = page.driver.find_elements(By.CSS_SELECTOR, ".track.strip canvas")[1]
    row = 11 * (AU[12] + 0.5) - strip.rect["height"] / 2
    page.run("arguments[0].scrollIntoView({block: 'center'})", strip)
    across = (30.5 / FRAMES - 0.5) * strip.rect["width"]
    ActionChains(page.driver).move_to_element_with_offset(strip, round(across), round(row)).perform()
    assert page.driver.find_element(By.ID, "readout").text == "AU12 lip corner puller: 1.00 · 1.20 s"


def test_twenty_thousand_frames_of_ten_draws(show):
    page = show(**make_clip(10, frames=20000))
    page.run("emcView.showAll()")
    assert page.run("const t = performance.now(); emcView.showAll(); return performance.now() - t") < 5000
    page.key(Keys.END)
    assert page.frame == 19999
    step = "const t = performance.now(); for (let i = 0; i < 20; i++) emcView.seek(i * 997); return (performance.now() - t) / 20"
    assert page.run(step) < 200, "a step must not draw the strips anew"
    assert page.complaints() == []
