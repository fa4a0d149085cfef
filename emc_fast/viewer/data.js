/* The page's data: names of the channels, and the streams as they were packed (channel after channel, quantised). */

const CHANNELS = [
  ["AU1", "inner brow raiser"],
  ["AU2", "outer brow raiser"],
  ["AU4", "brow lowerer"],
  ["AU6", "cheek raiser"],
  ["AU7", "lid tightener"],
  ["AU9", "nose wrinkler"],
  ["AU10", "upper lip raiser"],
  ["AU12", "lip corner puller"],
  ["AU14", "dimpler"],
  ["AU15", "lip corner depressor"],
  ["AU17", "chin raiser"],
  ["AU23", "lip tightener"],
  ["AU24", "lip pressor"],
  ["AU25", "lips part"],
  ["AU26", "jaw drop"],
  ["valence", "unpleasant to pleasant"],
  ["arousal", "calm to excited"],
  ["neutral", "expression"],
  ["happy", "expression"],
  ["sad", "expression"],
  ["surprise", "expression"],
  ["fear", "expression"],
  ["disgust", "expression"],
  ["anger", "expression"],
  ["contempt", "expression"],
];
const AU_COUNT = 15,
  VALENCE = 15,
  AROUSAL = 16,
  EXPRESSIONS = 17;

/* The first 52 of the 58 3DMM coefficients, by their ARKit names. Left and right are the person's own. */
const COEFFICIENTS = (
  "browDownLeft browDownRight browInnerUp browOuterUpLeft browOuterUpRight cheekPuff cheekSquintLeft cheekSquintRight " +
  "eyeBlinkLeft eyeBlinkRight eyeLookDownLeft eyeLookDownRight eyeLookInLeft eyeLookInRight eyeLookOutLeft eyeLookOutRight " +
  "eyeLookUpLeft eyeLookUpRight eyeSquintLeft eyeSquintRight eyeWideLeft eyeWideRight jawForward jawLeft jawOpen jawRight " +
  "mouthClose mouthDimpleLeft mouthDimpleRight mouthFrownLeft mouthFrownRight mouthFunnel mouthLeft mouthLowerDownLeft " +
  "mouthLowerDownRight mouthPressLeft mouthPressRight mouthPucker mouthRight mouthRollLower mouthRollUpper mouthShrugLower " +
  "mouthShrugUpper mouthSmileLeft mouthSmileRight mouthStretchLeft mouthStretchRight mouthUpperUpLeft mouthUpperUpRight " +
  "noseSneerLeft noseSneerRight tongueOut"
).split(" ");

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/* One packed stream. Codes stay packed (20,000 frames of ten draws as floats would be 70 MB) and are scaled on the way out. */
class Stream {
  constructor(packed, frames) {
    const bytes = bytesOf(packed.codes);
    this.frames = frames;
    this.channels = packed.lo.length;
    this.lo = packed.lo;
    this.step = packed.step;
    if (packed.bits === 8) {
      this.codes = bytes;
    } else {
      const view = new DataView(bytes.buffer);
      this.codes = new Uint16Array(bytes.length / 2);
      for (let i = 0; i < this.codes.length; i++) this.codes[i] = view.getUint16(2 * i, true);
    }
  }

  value(channel, frame) {
    return this.lo[channel] + this.step[channel] * this.codes[channel * this.frames + frame];
  }

  at(frame) {
    const out = new Float32Array(this.channels);
    for (let c = 0; c < this.channels; c++) out[c] = this.value(c, frame);
    return out;
  }
}

/* A person of the clip. In the runs [start, end) of `hidden` nothing is known of the face. */
class Person {
  constructor(packed, frames, hidden) {
    const stream = (key) => (packed[key] ? new Stream(packed[key], frames) : null);
    this.name = packed.name;
    this.emotion = stream("emotion");
    this.expression = stream("expression");
    this.pose = stream("pose");
    this.blank = !this.emotion && !this.expression;
    this.unknown = new Uint8Array(frames);
    for (const [start, end] of hidden) this.unknown.fill(1, start, end);
  }

  knows(frame) {
    return !this.blank && !this.unknown[frame];
  }

  /* Mean of an emotion channel over the known frames in [from, to), which one column of a strip stands for; NaN if there are none. */
  mean(channel, from, to) {
    let sum = 0,
      count = 0;
    const { codes, frames, lo, step } = this.emotion,
      base = channel * frames;
    for (let t = from; t < to; t++) {
      if (this.unknown[t]) continue;
      sum += codes[base + t];
      count++;
    }
    return count ? lo[channel] + (step[channel] * sum) / count : NaN;
  }
}

/* Is `frame` inside one of the sorted runs [start, end)? */
function inRuns(runs, frame) {
  let low = 0,
    high = runs.length;
  while (low < high) {
    const mid = (low + high) >> 1;
    if (runs[mid][1] <= frame) low = mid + 1;
    else high = mid;
  }
  return low < runs.length && runs[low][0] <= frame;
}

function loadClip(payload) {
  const speaker = payload.speaker;
  return {
    title: payload.title,
    fps: payload.fps,
    frames: payload.frames,
    missing: payload.missing,
    speaker: speaker ? new Person(speaker, payload.frames, payload.missing.face) : null,
    reactions: payload.reactions.map((packed) => new Person(packed, payload.frames, [])),
    level: payload.audio ? bytesOf(payload.audio.level) : null,
    sound: payload.audio ? payload.audio.uri : null,
  };
}

function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}
