/* Puts the page together: what is shown, where the playhead is, and everything that moves it. */

const clip = loadClip(JSON.parse(document.getElementById("clip").textContent));
const el = (id) => document.getElementById(id);
const state = { frame: 0, playing: false, speed: 1, shown: new Set(), source: "both", zoom: 0 };
const span = new Span(clip.frames);
const hasShape = [clip.speaker, ...clip.reactions].some((person) => person && person.expression);
const sound = clip.sound ? new Audio(clip.sound) : null;
let colours = palette();
let tracks = [];
let clock = null; /* while playing: { at: performance time, frame } */

clip.reactions.slice(0, 3).forEach((_, k) => state.shown.add(k));

/* Cards with a face each. */
function makeCard(host, person, id, colour, speaker) {
  const card = document.createElement("figure");
  card.className = speaker ? "card speaker-card" : "card";
  card.style.setProperty("--mark", colour);
  const stand = document.createElement("div");
  stand.className = "host";
  const caption = document.createElement("figcaption"),
    name = document.createElement("span"),
    mood = document.createElement("span");
  name.className = "name";
  name.textContent = person.name;
  mood.className = "mood";
  caption.append(name, mood);
  card.append(stand, caption);
  host.append(card);
  const face = new Face(stand, id);
  face.svg.setAttribute("aria-label", `Face of ${person.name}`);
  return { card, face, mood, person };
}

const speakerCard = clip.speaker ? makeCard(el("speaker"), clip.speaker, "speaker", "var(--speaker)", true) : null;
const reactionCards = clip.reactions.map((person, k) => makeCard(el("reactions"), person, `r${k}`, `var(--draw-${k % 10})`, false));
const inputs = {};
if (speakerCard) {
  const list = document.createElement("ul");
  list.className = "inputs";
  for (const key of ["face", "speech"]) {
    inputs[key] = document.createElement("li");
    inputs[key].className = `${key}-state`;
    list.append(inputs[key]);
  }
  speakerCard.card.append(list);
} else {
  el("stage").classList.add("alone");
}

function drawCard({ face, mood, person, card }) {
  if (card.hidden) return;
  const missing = !person.knows(state.frame);
  face.update(
    missing ? restingControls() : controlsOf(person, state.frame, state.source),
    missing ? { pitch: 0, yaw: 0, roll: 0, x: 0, y: 0, scale: 1 } : poseOf(person, state.frame, state.source),
    missing,
  );
  face.parts["veil-label"].textContent = inRuns(clip.missing.face, state.frame) ? "face missing" : "face not recorded";
  const feeling = !missing && person.emotion ? moodOf(person.emotion.at(state.frame)) : null;
  mood.textContent = feeling ? `${feeling.name} ${feeling.value.toFixed(2)}` : "";
}

/* Everything that depends on the frame alone: cheap enough for every animation frame. */
function drawFrame() {
  if (span.follow(state.frame, state.zoom ? Math.round(state.zoom * clip.fps) : clip.frames)) drawTracks();
  if (speakerCard) {
    drawCard(speakerCard);
    for (const key in inputs) {
      const gone = inRuns(clip.missing[key], state.frame);
      inputs[key].className = `${key}-state${gone ? " gone" : ""}`;
      inputs[key].textContent = gone ? `${key} missing` : key;
    }
  }
  reactionCards.forEach(drawCard);
  drawPlane(el("plane"), colours, clip, state.frame, people().reverse());
  const seconds = state.frame / clip.fps,
    text = `${seconds.toFixed(2)} s · frame ${state.frame} of ${clip.frames}`;
  el("scrub").value = state.frame;
  el("scrub").setAttribute("aria-valuetext", text);
  el("clock").textContent = text;
  placePlayhead();
}

function placePlayhead() {
  const canvas = tracks[0].track.canvas;
  el("playhead").style.left = `${canvas.offsetLeft + span.x(state.frame + 0.5, canvas.clientWidth)}px`;
}

function people() {
  const shown = [...state.shown].sort((a, b) => a - b);
  const list = shown.map((k) => ({ person: clip.reactions[k], colour: colours.draws[k % 10], bold: false, index: k }));
  return clip.speaker ? [{ person: clip.speaker, colour: colours.speaker, bold: true }, ...list] : list;
}

/* The tracks are made anew when the choice of draws changes. */
function buildTracks() {
  const panel = el("tracks");
  panel.replaceChildren();
  tracks = [];
  const add = (options, draw) => tracks.push({ track: new Track(panel, options), draw, options });
  add(
    {
      kind: "inputs-track",
      name: "Inputs",
      height: 60,
      label: "Frames in which the speaker's face and speech were available, over time",
      rows: [
        { text: "face", top: 1, height: 14 },
        { text: "speech", top: 21, height: 14 },
      ],
    },
    (track) => drawInputs(track, colours, clip, span),
  );
  for (const channel of [VALENCE, AROUSAL]) {
    const word = CHANNELS[channel][0];
    add(
      {
        kind: "curves",
        name: word[0].toUpperCase() + word.slice(1),
        height: 64,
        label: `${word} over time, from -1 to 1`,
        rows: [
          { text: "1", top: 1, height: 12 },
          { text: "0", top: 26, height: 12 },
          { text: "−1", top: 51, height: 12 },
        ],
      },
      (track) => drawCurves(track, colours, clip, span, channel, people()),
    );
  }
  const rowHeight = state.shown.size > 3 ? 8 : 11,
    layout = stripLayout(rowHeight);
  for (const { person, index } of people()) {
    if (!person.emotion && index === undefined) continue;
    const rows = [];
    for (const { from, to, top } of layout.blocks) {
      for (let row = from; row < to; row++) {
        /* At eight pixels a row there is room for every other label. */
        if (rowHeight > 8 || (row - from) % 2 === 0)
          rows.push({ text: CHANNELS[row][0], top: top + (row - from) * rowHeight, height: rowHeight });
      }
    }
    add(
      {
        kind: rowHeight > 8 ? "strip" : "strip dense",
        name: person.name,
        height: layout.height,
        rows,
        person,
        layout,
        rowHeight,
        colour: index === undefined ? "var(--speaker)" : `var(--draw-${index % 10})`,
        label: `${person.name}: heat strip of ${CHANNELS.length} attributes over ${clip.frames} frames`,
      },
      (track) => drawStrip(track, colours, clip, span, person, layout, rowHeight),
    );
  }
}

function drawTracks() {
  for (const { track, draw } of tracks) draw(track);
}

function refresh() {
  reactionCards.forEach(({ card }, k) => (card.hidden = !state.shown.has(k)));
  const n = state.shown.size;
  el("reactions").style.setProperty("--columns", n <= 5 ? n : Math.ceil(n / 2) > 5 ? 6 : 5);
  el("reactions").classList.toggle("many", n > 3);
  /* Up to three reactions stand beside the speaker in the same size; more share the room on two rows. */
  const speaker = !clip.speaker ? "" : n > 3 ? "minmax(190px, 0.34fr) " : "minmax(0, 1fr) ";
  el("stage").style.setProperty("--stage", `${speaker}minmax(0, ${n > 3 ? 1 : n}fr) minmax(210px, ${n > 3 ? 0.34 : 1}fr)`);
  for (const button of el("draws").querySelectorAll("[data-draw]"))
    button.setAttribute("aria-pressed", state.shown.has(Number(button.dataset.draw)));
  buildTracks();
  span.follow(state.frame, state.zoom ? Math.round(state.zoom * clip.fps) : clip.frames);
  drawTracks();
  drawFrame();
}

function toggle(k) {
  if (k < 0 || k >= clip.reactions.length) return;
  if (!state.shown.has(k)) state.shown.add(k);
  else if (state.shown.size > 1) state.shown.delete(k);
  refresh();
}

function showAll() {
  const all = state.shown.size === clip.reactions.length;
  state.shown = new Set(clip.reactions.map((_, k) => k).slice(0, all ? 1 : undefined));
  refresh();
}

/* Time. The wall clock leads; where there is sound, its own clock leads, because ears notice more than eyes. */
function seek(frame) {
  state.frame = clamp(Math.round(frame), 0, clip.frames - 1);
  if (clock) clock = { at: performance.now(), frame: state.frame };
  followSound();
  drawFrame();
}

/* Puts the sound where the playhead is. Behind its end it must rest: a finished sound that is told to play begins again. */
function followSound() {
  if (!sound) return;
  const time = state.frame / clip.fps;
  if (!state.playing || time >= sound.duration) {
    sound.pause();
    return;
  }
  sound.currentTime = time;
  sound.playbackRate = state.speed;
  /* A browser may refuse sound; the faces play on without it. */
  sound.play().catch(() => {});
}

function play() {
  if (state.playing) return;
  if (state.frame >= clip.frames - 1) seek(0);
  state.playing = true;
  clock = { at: performance.now(), frame: state.frame };
  followSound();
  showPlaying();
  requestAnimationFrame(tick);
}

function pause() {
  state.playing = false;
  clock = null;
  followSound();
  showPlaying();
  const moods = people().filter(({ person }) => person.emotion && person.knows(state.frame));
  el("announce").textContent =
    `Paused at ${(state.frame / clip.fps).toFixed(1)} s. ` +
    moods.map(({ person }) => `${person.name}: ${moodOf(person.emotion.at(state.frame)).name}.`).join(" ");
}

function tick(now) {
  if (!state.playing) return;
  let frame = clock.frame + (Math.max(0, now - clock.at) / 1000) * clip.fps * state.speed;
  if (sound && !sound.paused && !sound.ended) {
    const heard = sound.currentTime * clip.fps;
    if (Math.abs(heard - frame) > 3) {
      frame = heard;
      clock = { at: now, frame };
    }
  }
  const whole = Math.floor(frame);
  if (whole >= clip.frames - 1) {
    state.frame = clip.frames - 1;
    drawFrame();
    pause();
    return;
  }
  if (whole !== state.frame) {
    state.frame = whole;
    drawFrame();
  }
  requestAnimationFrame(tick);
}

function showPlaying() {
  el("play")
    .querySelector("path")
    .setAttribute("d", state.playing ? "M6 4h4v16H6zM14 4h4v16h-4z" : "M7 3.5v17l14-8.5z");
  el("play").setAttribute("aria-label", state.playing ? "Pause" : "Play");
}

/* Controls. */
el("play").addEventListener("click", () => (state.playing ? pause() : play()));
el("back").addEventListener("click", (event) => seek(state.frame - (event.shiftKey ? Math.round(clip.fps) : 1)));
el("next").addEventListener("click", (event) => seek(state.frame + (event.shiftKey ? Math.round(clip.fps) : 1)));
el("scrub").max = clip.frames - 1;
el("scrub").addEventListener("input", () => seek(Number(el("scrub").value)));
el("speed").addEventListener("change", () => {
  state.speed = Number(el("speed").value);
  if (sound) sound.playbackRate = state.speed;
  if (clock) clock = { at: performance.now(), frame: state.frame };
});
el("zoom").addEventListener("change", () => {
  state.zoom = Number(el("zoom").value);
  drawFrame();
});
el("source").addEventListener("change", () => {
  state.source = el("source").value;
  drawFrame();
});
el("source-label").hidden = !hasShape;
el("mute").hidden = !sound;
el("mute").addEventListener("click", () => {
  sound.muted = !sound.muted;
  el("mute").setAttribute("aria-pressed", sound.muted);
});

function keydown(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const on = event.target,
    second = Math.max(1, Math.round(clip.fps));
  if (on.tagName === "SELECT") return;
  const step = event.shiftKey ? second : 1;
  const keys = {
    " ": () => (on.tagName === "BUTTON" ? false : state.playing ? pause() : play()),
    ArrowLeft: () => seek(state.frame - step),
    ArrowRight: () => seek(state.frame + step),
    Home: () => seek(0),
    End: () => seek(clip.frames - 1),
    a: showAll,
    m: () => sound && el("mute").click(),
  };
  const action = /^[0-9]$/.test(event.key) ? () => toggle(Number(event.key)) : keys[event.key];
  if (action && action() !== false) event.preventDefault();
}
document.addEventListener("keydown", keydown);

/* Scrubbing on the tracks, and the value under the pointer. */
function frameUnder(event) {
  const box = tracks[0].track.canvas.getBoundingClientRect();
  return { frame: span.frame(clamp((event.clientX - box.left) / box.width, 0, 0.999999)), inside: event.clientX >= box.left };
}

function describe(event, frame) {
  const hit = tracks.find(({ track }) => track.canvas === event.target && track.element.classList.contains("strip"));
  if (!hit || !hit.options.person.knows(frame)) return "";
  const y = event.clientY - hit.track.canvas.getBoundingClientRect().top,
    { layout, rowHeight, person } = hit.options;
  const block = layout.blocks.find(({ from, to, top }) => y >= top && y < top + (to - from) * rowHeight);
  if (!block || !person.emotion) return "";
  const row = block.from + Math.floor((y - block.top) / rowHeight);
  return `${CHANNELS[row][0]} ${CHANNELS[row][1]}: ${person.emotion.value(row, frame).toFixed(2)} · ${(frame / clip.fps).toFixed(2)} s`;
}

let dragging = false;
el("timeline").addEventListener("pointerdown", (event) => {
  const { frame, inside } = frameUnder(event);
  if (!inside || event.button) return;
  dragging = true;
  el("timeline").setPointerCapture(event.pointerId);
  seek(frame);
});
el("timeline").addEventListener("pointermove", (event) => {
  const { frame, inside } = frameUnder(event);
  if (dragging && frame !== state.frame) seek(frame);
  const text = dragging || !inside ? "" : describe(event, frame),
    tip = el("readout");
  tip.style.display = text ? "block" : "none";
  if (!text) return;
  tip.textContent = text;
  const box = el("timeline").getBoundingClientRect();
  tip.style.left = `${clamp(event.clientX - box.left + 14, 0, box.width - tip.offsetWidth - 4)}px`;
  tip.style.top = `${event.clientY - box.top - 34}px`;
});
for (const kind of ["pointerup", "pointercancel"]) el("timeline").addEventListener(kind, () => (dragging = false));
el("timeline").addEventListener("pointerleave", () => (el("readout").style.display = "none"));

/* Chips, legend, headline. */
clip.reactions.forEach((person, k) => {
  const chip = document.createElement("button");
  chip.type = "button";
  chip.dataset.draw = k;
  chip.textContent = k;
  chip.title = person.name;
  chip.setAttribute("aria-label", person.name);
  chip.style.setProperty("--mark", `var(--draw-${k % 10})`);
  chip.addEventListener("click", () => toggle(k));
  el("draws").append(chip);
});
const every = document.createElement("button");
every.type = "button";
every.textContent = "all";
every.title = "All reactions or the first only (a)";
every.addEventListener("click", showAll);
el("draws").append(every);
el("draws").hidden = clip.reactions.length < 2;

function buildLegend() {
  const css = (stops) => `linear-gradient(90deg, ${stops.join(", ")})`;
  const entries = [
    ["ramp", "AU, expression 0 to 1", css(colours.stops.sequential)],
    ["ramp", "valence, arousal −1 to 1", css(colours.stops.diverging)],
  ];
  if (clip.missing.face.length) entries.push(["no-face", "face missing", ""]);
  if (clip.missing.speech.length) entries.push(["no-speech", "speech missing", ""]);
  el("legend").replaceChildren(
    ...entries.map(([kind, text, background]) => {
      const item = document.createElement("li"),
        swatch = document.createElement("span");
      swatch.className = `swatch ${kind}`;
      if (background) swatch.style.background = background;
      item.append(swatch, text);
      return item;
    }),
  );
}

const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
el("facts").textContent =
  `${(clip.frames / clip.fps).toFixed(1)} s · ${plural(clip.frames, "frame")} at ${Number(clip.fps.toFixed(3))} fps · ` +
  `${plural(clip.reactions.length, "reaction")}${hasShape ? "" : " · no 3DMM: faces from action units"}`;

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  colours = palette();
  buildLegend();
  drawTracks();
  drawFrame();
});
let settled = 0;
addEventListener("resize", () => {
  cancelAnimationFrame(settled);
  settled = requestAnimationFrame(() => {
    drawTracks();
    drawFrame();
  });
});

buildLegend();
showPlaying();
refresh();

/* For scripts that steer the page, such as a recording of a talk's figure: emcView.seek(100), emcView.play(). */
window.emcView = {
  seek,
  play,
  pause,
  toggle,
  showAll,
  get frame() {
    return state.frame;
  },
  get playing() {
    return state.playing;
  },
  clip,
};
