/* Values into muscle-like controls of the face, each about 0..1: which action unit, expression or coefficient moves what.
 * "L" and "R" are the person's own sides; a name without a side in the tables below stands for both. */

const SIDED = [
  "browDown",
  "browOut",
  "blink",
  "wide",
  "squint",
  "cheek",
  "sneer",
  "smile",
  "frown",
  "dimple",
  "stretch",
  "upperUp",
  "lowerDown",
  "press",
];
const SINGLE = ["browIn", "pucker", "funnel", "jawOpen", "part", "chinUp", "tight", "puff", "tongue", "rollUpper", "rollLower"];
const SIGNED = ["jawX", "mouthX", "gazeX", "gazeY"]; /* to the viewer's right and down */

/* In the order of the 15 action units of the emotion vector. */
const AU_TABLE = [
  { browIn: 1 },
  { browOut: 1 },
  { browDown: 1 },
  { cheek: 1, squint: 0.35 },
  { squint: 0.8 },
  { sneer: 1 },
  { upperUp: 0.9 },
  { smile: 1 },
  { dimple: 1 },
  { frown: 1 },
  { chinUp: 1 },
  { tight: 1 },
  { press: 1 },
  { part: 1 },
  { jawOpen: 0.6 },
];

/* In the order of the eight expressions; neutral moves nothing. They colour the face, the action units lead. */
const EXPRESSION_TABLE = [
  {},
  { smile: 1, cheek: 0.7 },
  { browIn: 0.9, frown: 0.8, squint: 0.2 },
  { browIn: 1, browOut: 1, wide: 1, jawOpen: 0.5, part: 0.6 },
  { browIn: 1, browOut: 0.4, browDown: 0.4, wide: 0.9, stretch: 0.8 },
  { sneer: 1, upperUp: 0.7, browDown: 0.4, squint: 0.4 },
  { browDown: 1, squint: 0.6, press: 0.7, tight: 0.3 },
  { smileL: 0.8, dimpleL: 0.9 },
];
const EXPRESSION_GAIN = 0.4;

/* A coefficient by its ARKit name moves the control of the same meaning. */
const COEFFICIENT_TABLE = COEFFICIENTS.map((name) => {
  const rename = {
    browInnerUp: "browIn",
    browOuterUp: "browOut",
    cheekPuff: "puff",
    cheekSquint: "cheek",
    eyeBlink: "blink",
    eyeSquint: "squint",
    eyeWide: "wide",
    mouthDimple: "dimple",
    mouthFrown: "frown",
    mouthFunnel: "funnel",
    mouthLowerDown: "lowerDown",
    mouthPress: "press",
    mouthPucker: "pucker",
    mouthRollLower: "rollLower",
    mouthRollUpper: "rollUpper",
    mouthShrugLower: "chinUp",
    mouthSmile: "smile",
    mouthStretch: "stretch",
    mouthUpperUp: "upperUp",
    noseSneer: "sneer",
    tongueOut: "tongue",
  };
  const signed = {
    jawLeft: ["jawX", 1],
    jawRight: ["jawX", -1],
    mouthLeft: ["mouthX", 1],
    mouthRight: ["mouthX", -1],
    eyeLookDownLeft: ["gazeY", 0.5],
    eyeLookDownRight: ["gazeY", 0.5],
    eyeLookUpLeft: ["gazeY", -0.5],
    eyeLookUpRight: ["gazeY", -0.5],
    eyeLookInLeft: ["gazeX", -0.5],
    eyeLookInRight: ["gazeX", 0.5],
    eyeLookOutLeft: ["gazeX", 0.5],
    eyeLookOutRight: ["gazeX", -0.5],
  };
  if (name in signed) return signed[name];
  const [, stem, side] = /^(.*?)(Left|Right)?$/.exec(name);
  const control = rename[stem] || stem;
  return [side ? control + side[0] : control, 1];
});

function restingControls() {
  const controls = {};
  for (const name of SIDED) controls[name + "L"] = controls[name + "R"] = 0;
  for (const name of SINGLE) controls[name] = 0;
  for (const name of SIGNED) controls[name] = 0;
  return controls;
}

/* Screen instead of sum: two reasons for a smile make a broader one, never one beyond the face's limits. */
function screen(controls, entry, weight) {
  for (const name in entry) {
    for (const side of SIDED.includes(name) ? ["L", "R"] : [""]) {
      controls[name + side] = 1 - (1 - controls[name + side]) * (1 - clamp(weight * entry[name], 0, 1));
    }
  }
}

function controlsFromEmotion(emotion) {
  const controls = restingControls();
  for (let i = 0; i < AU_COUNT; i++) screen(controls, AU_TABLE[i], emotion[i]);
  for (let i = 0; i < 8; i++) screen(controls, EXPRESSION_TABLE[i], EXPRESSION_GAIN * emotion[EXPRESSIONS + i]);
  const valence = clamp(emotion[VALENCE], -1, 1),
    arousal = clamp(emotion[AROUSAL], -1, 1);
  screen(controls, valence > 0 ? { smile: 0.2 } : { frown: 0.2, browDown: 0.1 }, Math.abs(valence));
  screen(controls, arousal > 0 ? { wide: 0.35 } : { blink: 0.18 }, Math.abs(arousal));
  return controls;
}

function controlsFromCoefficients(coefficients) {
  const controls = restingControls();
  for (let i = 0; i < COEFFICIENTS.length; i++) {
    const [name, gain] = COEFFICIENT_TABLE[i];
    if (name in controls) controls[name] += gain * coefficients[i];
  }
  /* mouthClose is lips closed over an open jaw: it takes the parting back that jawOpen brings. */
  controls.seal = clamp(coefficients[COEFFICIENTS.indexOf("mouthClose")], 0, 1);
  /* Coefficients are relative to the mean face, so a negative one is a muscle more at ease than usual, down to a limit. */
  for (const name in controls) controls[name] = clamp(controls[name], SIGNED.includes(name) ? -1 : -0.35, 1);
  return controls;
}

/* Both sources speak of the same muscles: the stronger one counts, and a relaxation below the mean is kept. */
function controlsOf(person, frame, source) {
  const emotion = source !== "3dmm" && person.emotion ? controlsFromEmotion(person.emotion.at(frame)) : null;
  const shape = source !== "au" && person.expression ? controlsFromCoefficients(person.expression.at(frame)) : null;
  if (!emotion || !shape) return emotion || shape || restingControls();
  for (const name in shape) {
    if (SIGNED.includes(name) || !(name in emotion)) continue;
    shape[name] = Math.max(emotion[name], shape[name]) + (emotion[name] > 0 ? Math.min(0, shape[name]) : 0);
  }
  return shape;
}

/* Head pose relative to the clip's mean. FaceVerse turns by Rz Ry Rx in a camera that looks along +z with y down: positive
 * pitch lowers the nose, positive yaw takes it to the viewer's left, positive roll tilts clockwise. Limits keep a wild
 * prediction inside its card. */
function poseOf(person, frame, source) {
  if (!person.pose || source === "au") return { pitch: 0, yaw: 0, roll: 0, x: 0, y: 0, scale: 1 };
  const [pitch, yaw, roll, x, y, z] = person.pose.at(frame);
  return {
    pitch: clamp(pitch, -0.5, 0.5),
    yaw: clamp(-yaw, -0.55, 0.55),
    roll: clamp(roll, -0.6, 0.6),
    x: clamp(600 * x, -26, 26),
    y: clamp(600 * y, -22, 22),
    scale: clamp(1.84 / Math.max(1.84 + z, 0.5), 0.88, 1.1) /* 1.84: the usual distance from the camera */,
  };
}

/* The strongest expression in words, for captions. */
function moodOf(emotion) {
  let best = EXPRESSIONS;
  for (let c = EXPRESSIONS; c < CHANNELS.length; c++) if (emotion[c] > emotion[best]) best = c;
  return { name: CHANNELS[best][0], value: emotion[best] };
}
