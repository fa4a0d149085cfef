/* The tracks that share the time axis: availability, valence and arousal curves, heat strips. Each is a canvas that is drawn only
 * when something about it changes; the playhead is one element laid over all of them. */

/* Colour ramps, monotone in lightness so that they also read in grey. Diverging: blue to orange, safe for red-green blindness. */
const RAMPS = {
  light: {
    sequential: ["#f3f5f6", "#cfe3e4", "#8fc3c9", "#4797a8", "#1d6784", "#123f63", "#0b2342"],
    diverging: ["#1b4f9c", "#6f9fd8", "#c9d9ee", "#f3f2ef", "#f6d3ae", "#e08f3c", "#a9500a"],
  },
  dark: {
    sequential: ["#1b222c", "#1c3a55", "#1f5d7d", "#2b869b", "#57b1aa", "#a3d6b0", "#f4f3c4"],
    diverging: ["#8fc0ff", "#4a84cf", "#264a78", "#232a34", "#7a4717", "#cf8130", "#ffcb87"],
  },
};

function ramp(stops) {
  const rgb = stops.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  const table = new Uint8ClampedArray(256 * 4);
  for (let i = 0; i < 256; i++) {
    const place = (i / 255) * (rgb.length - 1),
      k = Math.min(rgb.length - 2, Math.floor(place));
    for (let j = 0; j < 3; j++) table[4 * i + j] = mix(rgb[k][j], rgb[k + 1][j], place - k);
    table[4 * i + 3] = 255;
  }
  return table;
}

function palette() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const css = getComputedStyle(document.documentElement);
  const colour = (name) => css.getPropertyValue(name).trim();
  const ramps = RAMPS[dark ? "dark" : "light"];
  return {
    sequential: ramp(ramps.sequential),
    diverging: ramp(ramps.diverging),
    stops: ramps,
    ink: colour("--ink"),
    muted: colour("--muted"),
    rule: colour("--rule"),
    empty: colour("--empty"),
    well: colour("--well"),
    face: colour("--no-face"),
    speech: colour("--no-speech"),
    speaker: colour("--speaker"),
    draws: Array.from({ length: 10 }, (_, i) => colour(`--draw-${i}`)),
  };
}

/* Diagonal hatch, leaning one way for the face and the other way for speech, so that both can lie over each other. */
function hatch(context, colour, lean, ratio) {
  const size = Math.round(8 * ratio),
    tile = document.createElement("canvas");
  tile.width = tile.height = size;
  const pen = tile.getContext("2d");
  pen.strokeStyle = colour;
  pen.lineWidth = 1.25 * ratio;
  pen.beginPath();
  for (const shift of [-size, 0, size]) {
    pen.moveTo(shift, lean > 0 ? size : 0);
    pen.lineTo(shift + size, lean > 0 ? 0 : size);
  }
  pen.stroke();
  return context.createPattern(tile, "repeat");
}

/* What part of the clip is in view: frames [from, to). */
class Span {
  constructor(frames) {
    this.frames = frames;
    this.from = 0;
    this.to = frames;
  }

  /* Show `width` frames around `frame`; turns a page rather than gliding, so that strips stay still while they are read. */
  follow(frame, width) {
    const size = clamp(width, 2, this.frames);
    const outside = frame < this.from || frame >= this.to;
    if (this.to - this.from === size && !outside) return false;
    const wanted = this.to - this.from === size ? frame - size * 0.05 : frame - size / 2;
    this.from = clamp(Math.round(wanted), 0, this.frames - size);
    this.to = this.from + size;
    return true;
  }

  x(frame, width) {
    return ((frame - this.from) / (this.to - this.from)) * width;
  }

  frame(fraction) {
    return clamp(Math.floor(this.from + fraction * (this.to - this.from)), 0, this.frames - 1);
  }
}

class Track {
  constructor(panel, { kind, name, height, label, colour, rows }) {
    this.height = height;
    this.element = document.createElement("div");
    this.element.className = `track ${kind}`;
    this.gutter = document.createElement("div");
    this.gutter.className = "gutter";
    const title = document.createElement("span");
    title.className = "track-title";
    title.textContent = name;
    if (colour) title.style.setProperty("--mark", colour);
    this.gutter.append(title);
    for (const row of rows || []) {
      const text = document.createElement("span");
      text.className = "row-label";
      text.textContent = row.text;
      text.style.top = `${row.top}px`;
      text.style.height = `${row.height}px`;
      this.gutter.append(text);
    }
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", label);
    this.canvas.style.height = `${height}px`;
    this.gutter.style.height = `${height}px`;
    this.element.append(this.gutter, this.canvas);
    panel.append(this.element);
  }

  /* Size the canvas for the screen and hand out a pen in CSS pixels. */
  open() {
    const ratio = Math.min(devicePixelRatio || 1, 2);
    this.ratio = ratio;
    this.width = Math.max(1, this.canvas.clientWidth);
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    return pen;
  }

  /* Shade the frames in which a modality was missing. */
  shade(pen, colours, clip, span, top, height) {
    for (const [key, lean] of [
      ["face", 1],
      ["speech", -1],
    ]) {
      const pattern = hatch(pen, colours[key], lean, this.ratio);
      for (const [start, end] of clip.missing[key]) {
        const x0 = clamp(span.x(start, this.width), 0, this.width),
          x1 = clamp(span.x(end, this.width), 0, this.width);
        if (x1 <= x0) continue;
        const wide = Math.max(x1 - x0, 1);
        pen.globalAlpha = 0.1;
        pen.fillStyle = colours[key];
        pen.fillRect(x0, top, wide, height);
        pen.globalAlpha = 0.36;
        pen.save();
        pen.setTransform(1, 0, 0, 1, 0, 0);
        pen.fillStyle = pattern;
        pen.fillRect(x0 * this.ratio, top * this.ratio, wide * this.ratio, height * this.ratio);
        pen.restore();
        pen.globalAlpha = 1;
      }
    }
  }
}

/* Where the 25 rows of a heat strip lie: three groups, a little apart. */
function stripLayout(rowHeight) {
  const gap = 4,
    groups = [
      [0, AU_COUNT],
      [VALENCE, EXPRESSIONS],
      [EXPRESSIONS, CHANNELS.length],
    ];
  const blocks = groups.map(([from, to], i) => ({ from, to, top: from * rowHeight + i * gap }));
  return { blocks, height: CHANNELS.length * rowHeight + 2 * gap };
}

function drawStrip(track, colours, clip, span, person, layout, rowHeight) {
  const pen = track.open();
  const columns = Math.max(1, Math.min(span.to - span.from, track.canvas.width));
  const image = new ImageData(columns, CHANNELS.length);
  const unknown = colours.empty.match(/\w\w/g).map((h) => parseInt(h, 16));
  for (let x = 0; x < columns; x++) {
    const start = span.from + Math.floor((x * (span.to - span.from)) / columns);
    const end = Math.max(start + 1, span.from + Math.floor(((x + 1) * (span.to - span.from)) / columns));
    for (let row = 0; row < CHANNELS.length; row++) {
      const at = 4 * (row * columns + x);
      const value = person.emotion ? person.mean(row, start, end) : NaN;
      if (Number.isNaN(value)) {
        image.data.set([unknown[0], unknown[1], unknown[2], 255], at);
        continue;
      }
      const signed = row === VALENCE || row === AROUSAL;
      const index = 4 * Math.round(255 * clamp(signed ? (value + 1) / 2 : value, 0, 1));
      const table = signed ? colours.diverging : colours.sequential;
      image.data.set([table[index], table[index + 1], table[index + 2], 255], at);
    }
  }
  const sheet = document.createElement("canvas");
  sheet.width = columns;
  sheet.height = CHANNELS.length;
  sheet.getContext("2d").putImageData(image, 0, 0);
  pen.imageSmoothingEnabled = false;
  for (const { from, to, top } of layout.blocks) {
    pen.drawImage(sheet, 0, from, columns, to - from, 0, top, track.width, (to - from) * rowHeight);
    track.shade(pen, colours, clip, span, top, (to - from) * rowHeight);
  }
}

/* One of valence and arousal over time, the speaker and every shown reaction in its colour. */
function drawCurves(track, colours, clip, span, channel, people) {
  const pen = track.open(),
    pad = 7;
  const y = (value) => mix(track.height - pad, pad, (clamp(value, -1, 1) + 1) / 2);
  pen.fillStyle = colours.well;
  pen.fillRect(0, 0, track.width, track.height);
  track.shade(pen, colours, clip, span, 0, track.height);
  pen.lineWidth = 1;
  for (const level of [-1, 0, 1]) {
    pen.strokeStyle = colours.rule;
    pen.setLineDash(level ? [2, 4] : []);
    pen.beginPath();
    pen.moveTo(0, y(level));
    pen.lineTo(track.width, y(level));
    pen.stroke();
  }
  pen.setLineDash([]);
  pen.lineJoin = "round";
  const bin = Math.max(1, Math.ceil((span.to - span.from) / (track.width * 1.5)));
  for (const { person, colour, bold } of people) {
    if (!person.emotion) continue;
    pen.strokeStyle = colour;
    pen.lineWidth = bold ? 2.2 : 1.5;
    pen.beginPath();
    let down = false;
    for (let t = span.from; t < span.to; t += bin) {
      const end = Math.min(t + bin, span.to);
      const value = person.mean(channel, t, end);
      if (Number.isNaN(value)) {
        down = false;
        continue;
      }
      const px = span.x((t + end) / 2, track.width),
        py = y(value);
      if (down) pen.lineTo(px, py);
      else pen.moveTo(px, py);
      down = true;
    }
    pen.stroke();
  }
}

/* What the model had to go by: a bar for the face, a bar (or the voice's loudness) for speech, and the time scale below. */
function drawInputs(track, colours, clip, span) {
  const pen = track.open(),
    rows = [
      ["face", 0],
      ["speech", 20],
    ];
  for (const [key, top] of rows) {
    pen.fillStyle = colours.speaker;
    pen.globalAlpha = 0.28;
    if (key === "speech" && clip.level) {
      pen.globalAlpha = 0.75;
      const columns = Math.round(track.width);
      for (let x = 0; x < columns; x++) {
        const start = span.frame(x / columns),
          end = Math.max(start + 1, span.frame((x + 1) / columns));
        let loud = 0;
        for (let t = start; t < end; t++) loud = Math.max(loud, clip.level[t]);
        const high = Math.max(1, 16 * Math.sqrt(loud / 255));
        pen.fillRect(x, top + 8 - high / 2, 1, high);
      }
    } else {
      pen.fillRect(0, top + 2, track.width, 12);
    }
    pen.globalAlpha = 1;
    for (const [start, end] of clip.missing[key]) {
      const x0 = span.x(start, track.width),
        wide = Math.max(1, span.x(end, track.width) - x0);
      pen.clearRect(x0, top, wide, 16);
    }
    const only = { missing: { face: [], speech: [], [key]: clip.missing[key] } };
    track.shade(pen, colours, only, span, top + 1, 14);
  }
  const seconds = (span.to - span.from) / clip.fps,
    room = Math.max(2, track.width / 80);
  const step = [0.04, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800].find((s) => seconds / s <= room) || 3600;
  pen.fillStyle = pen.strokeStyle = colours.muted;
  pen.font = "11px system-ui, sans-serif";
  for (let i = Math.ceil(span.from / clip.fps / step); i * step * clip.fps <= span.to; i++) {
    const x = span.x(i * step * clip.fps, track.width);
    pen.globalAlpha = 0.6;
    pen.fillRect(x, 40, 1, 5);
    pen.globalAlpha = 1;
    pen.textAlign = x < 14 ? "left" : x > track.width - 22 ? "right" : "center";
    pen.fillText(`${Number((i * step).toFixed(2))} s`, x, 56);
  }
}
