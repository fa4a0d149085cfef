/* The parts of a face that the controls move: eyes, brows, nose and mouth. Lengths are in the units of the SVG's view box. */

function drawEye(face, c, side) {
  const sign = side === "L" ? 1 : -1;
  const blink = clamp(c[`blink${side}`], -0.2, 1),
    squint = clamp(Math.max(c[`squint${side}`], 0.55 * c[`cheek${side}`]), 0, 1);
  const wide = Math.max(0, c[`wide${side}`]);
  const shut = Math.max(0, blink),
    look = 1.6 * c.gazeY;
  const low = 8.5 * (1 - 0.5 * squint) + wide;
  const high = mix(12.5 + 4.5 * wide - 2.6 * squint - 2 * Math.min(0, blink) - look, -low * 0.82, shut);
  const at = (x, y, lift) => face.on(sign * (35 + x), -10 + y, lift);
  const upper = [at(-19, 3.5), at(-11, -high * 0.72), at(0, -high), at(11, -high * 0.78), at(19, -0.5)];
  const lower = [upper[0], at(-10, low * 0.72 + 1), at(1, low), at(12, low * 0.7), upper[4]];
  const opening = lens(upper, lower);
  face.draw(`eye-${side}`, opening);
  face.draw(`opening-${side}`, opening);
  const iris = at(6.5 * sign * c.gazeX, 5.5 * c.gazeY - 0.5);
  for (const [name, dx, dy] of [
    ["iris", 0, 0],
    ["pupil", 0, 0],
    ["glint", 3.2, -3.6],
  ]) {
    face.parts[`${name}-${side}`].setAttribute("cx", (iris[0] + dx).toFixed(2));
    face.parts[`${name}-${side}`].setAttribute("cy", (iris[1] + dy).toFixed(2));
  }
  const sag = upper.map(([x, y]) => [x, y + 3.4]);
  face.draw(`lid-shade-${side}`, lens(upper, sag));
  /* The upper lid's line runs a little past the outer corner and is what remains of a closed eye. */
  const tail = at(22.5, -2 + 2.7 * shut);
  face.draw(
    `lash-${side}`,
    lens([...upper, tail], [upper[0], at(-10, -high * 0.72 + 1.4), at(0, -high + 3), at(11, -high * 0.78 + 3), at(18, 1.2), tail]),
  );
  face.draw(`lower-lid-${side}`, curve(lower.slice(1)));
  const fold = Math.max(high, 3) + 5.5 - 2.5 * wide;
  face.draw(
    `crease-${side}`,
    curve([at(-15, -1 - fold * 0.45), at(-7, -fold * 0.9), at(2, -fold), at(12, -fold * 0.82), at(19, -fold * 0.35)]),
  );
  face.strength(`crease-${side}`, 0.4);
  const bag = Math.max(0, c[`cheek${side}`], 0.5 * squint);
  face.draw(`under-eye-${side}`, curve([at(-12, low + 6), at(0, low + 9 - 2 * bag), at(13, low + 6 - 2 * bag)]));
  face.strength(`under-eye-${side}`, 0.55 * bag);
}

function drawBrow(face, c, side) {
  const sign = side === "L" ? 1 : -1;
  const inner = c.browIn,
    outer = c[`browOut${side}`],
    down = c[`browDown${side}`],
    sneer = Math.max(0, c[`sneer${side}`]);
  const at = (x, y) => face.on(sign * x, y, 3);
  const yIn = -38 - 15 * inner + 9.5 * down + 3 * sneer,
    yMid = -40.5 - 7 * inner - 6.5 * outer + 7 * down,
    yOut = -35 - 11 * outer + 1.5 * down;
  const pull = 3.5 * down;
  const ridge = [at(14 - pull, yIn - 1.8), at(26 - pull, mix(yIn, yMid, 0.55) - 3.8), at(41, yMid - 2.8), at(57, yOut)];
  const under = [at(13 - pull, yIn + 2.6), at(26 - pull, mix(yIn, yMid, 0.55) + 2.8), at(41, yMid + 1.6), ridge[3]];
  face.draw(`brow-${side}`, lens([under[0], ...ridge], under));
  if (side === "R") return;
  const raise = Math.max(inner, 0.9 * c.browOutL, 0.9 * c.browOutR);
  const crease = (y, w) => curve([face.on(-w, y + 2), face.on(-w / 2, y - 1), face.on(0, y), face.on(w / 2, y - 1), face.on(w, y + 2)]);
  face.draw("forehead", crease(-56 - 3 * raise, 34) + crease(-64 - 2 * raise, 24));
  face.strength("forehead", 0.75 * (raise - 0.3));
  const frown = Math.max(c.browDownL, c.browDownR);
  const furrow = (s) => curve([face.on(s * 5, -36), face.on(s * 6, -29), face.on(s * 4.5, -23)]);
  face.draw("glabella", furrow(-1) + furrow(1));
  face.strength("glabella", 0.9 * (frown - 0.2));
}

function drawNose(face, c) {
  const left = Math.max(0, c.sneerL),
    right = Math.max(0, c.sneerR),
    sneer = Math.max(left, right);
  const wing = (s, lift) => [
    face.on(s * (12.5 + lift), 19 - 5 * lift, 8),
    face.on(s * (12.5 + lift), 26 - 5 * lift, 8),
    face.on(s * 7, 28 - 3 * lift, 13),
  ];
  const l = wing(1, left),
    r = wing(-1, right);
  face.draw("nose", curve([...r, face.on(0, 30.5 - 2 * sneer, 19), ...l.reverse()]));
  face.draw(
    "nose-shade",
    curve(
      [face.on(6, -10, 8), face.on(7, 6, 13), face.on(9, 18, 18), face.on(11.5, 25 - 4 * left, 9), face.on(2, 29, 19), face.on(3, 10, 18)],
      true,
    ),
  );
  const wrinkle = (s) => curve([face.on(s * 4, -14, 10), face.on(s * 10, -8, 4)]) + curve([face.on(s * 4, -6, 12), face.on(s * 11, 0, 5)]);
  face.draw("nose-wrinkle", wrinkle(1) + wrinkle(-1));
  face.strength("nose-wrinkle", 1.2 * sneer);
}

function drawMouth(face, c) {
  const part = Math.max(0, c.part),
    jaw = Math.max(0, c.jawOpen),
    funnel = Math.max(0, c.funnel),
    pucker = Math.max(0, c.pucker);
  const seal = c.seal || 0;
  const sides = {};
  for (const side of ["L", "R"]) {
    const v = (name) => c[name + side];
    sides[side] = {
      width: 27 + 10 * v("smile") + 9 * v("stretch") + 5 * v("dimple") - 12 * pucker - 8 * funnel - 3 * c.tight,
      corner: -12 * v("smile") + 9 * v("frown") + 3 * v("stretch") - 2 * v("dimple") + 1.5 * jaw,
      up: Math.max(0, (2 * part + 5.5 * v("upperUp") + 2 * v("sneer") + 4 * funnel + 2 * jaw) * (1 - seal)),
      down: Math.max(0, (4 * part + 7 * v("lowerDown") + 5 * funnel + 25 * jaw) * (1 - seal)),
    };
  }
  const press = clamp(Math.max(c.pressL, c.pressR, 0), 0, 1),
    tight = Math.max(0, c.tight);
  const smile = 0.5 * (c.smileL + c.smileR);
  const thin = (roll) => (1 - 0.6 * press) * (1 - 0.4 * tight) * (1 - 0.7 * clamp(roll, 0, 1)) * (1 + 0.5 * pucker) * (1 - 0.15 * smile);
  const upperLip = 6 * thin(c.rollUpper),
    lowerLip = 9 * thin(c.rollLower);
  const middle = 60 + 2.5 * smile - 4 * Math.max(0, c.chinUp),
    shift = 8 * c.mouthX + 5 * c.jawX,
    narrow = 1 - 0.8 * press;
  const row = (offset) =>
    [-1, -0.72, -0.38, 0, 0.38, 0.72, 1].map((f) => {
      const s =
        f > 0
          ? sides.L
          : f < 0
            ? sides.R
            : { width: 0, corner: 0, up: (sides.L.up + sides.R.up) / 2, down: (sides.L.down + sides.R.down) / 2 };
      const b = 1 - f * f,
        bow = mix(60, middle, b) + s.corner * Math.abs(f) ** 1.7;
      return face.on(shift + f * s.width, bow + offset(s, f, b), 7);
    });
  const innerUpper = row((s, f, b) => -narrow * s.up * b),
    innerLower = row((s, f, b) => narrow * s.down * b ** 0.8);
  const cupid = (f) => (Math.abs(f) < 0.2 ? 0.82 : Math.abs(f) < 0.5 ? 1 : 0.62);
  const outerUpper = row((s, f, b) => -narrow * s.up * b - (Math.abs(f) === 1 ? 0 : upperLip * cupid(f)));
  const outerLower = row((s, f, b) => narrow * s.down * b ** 0.8 + (Math.abs(f) === 1 ? 0 : lowerLip * b ** 0.55));
  const gap = innerLower[3][1] - innerUpper[3][1];
  const opening = lens(innerUpper, innerLower);
  face.draw("mouth", opening);
  face.draw("mouth-opening", opening);
  face.draw("lip-upper", lens(outerUpper, innerUpper));
  face.draw("lip-lower", lens(innerLower, outerLower));
  face.draw("mouth-line", curve(innerUpper));
  const bite = Math.min(7.5, 0.5 * gap);
  face.draw(
    "teeth",
    lens(
      innerUpper.map(([x, y]) => [x, y - 1]),
      innerUpper.map(([x, y]) => [x * 0.96, y + bite]),
    ),
  );
  const floor = innerLower[3],
    out = 8 * Math.max(0, c.tongue);
  face.draw(
    "tongue",
    curve(
      [
        [floor[0] - 15, floor[1] + 3 + out],
        [floor[0], floor[1] - Math.min(9, 0.35 * gap)],
        [floor[0] + 15, floor[1] + 3 + out],
        [floor[0], floor[1] + 12 + out],
      ],
      true,
    ),
  );
  const under = sides.L.down * 0.5 + sides.R.down * 0.5;
  face.draw(
    "lip-shade",
    curve([
      face.on(shift - 11, middle + under + lowerLip + 5, 6),
      face.on(shift, middle + under + lowerLip + 6.5, 7),
      face.on(shift + 11, middle + under + lowerLip + 5, 6),
    ]),
  );
  const bump = Math.max(0, c.chinUp),
    chin = 88 + 13 * jaw - 3 * bump;
  face.draw("chin", curve([face.on(shift - 13, chin + 3), face.on(shift, chin - 2), face.on(shift + 13, chin + 3)]));
  face.strength("chin", 0.1 + 0.8 * bump);
  for (const [side, sign] of [
    ["L", 1],
    ["R", -1],
  ]) {
    const s = sides[side],
      deep = Math.max(c[`smile${side}`], c[`sneer${side}`], c[`upperUp${side}`], 0.9 * c[`dimple${side}`], 0);
    const x = sign * Math.max(s.width + 8, 26) + shift;
    face.draw(
      `fold-${side}`,
      curve([
        face.on(sign * 19, 26, 3),
        face.on(sign * mix(19, Math.abs(x), 0.75), 37 + 0.2 * s.corner),
        face.on(x, middle - 4 + 0.8 * s.corner),
      ]),
    );
    face.strength(`fold-${side}`, 0.05 + 0.6 * deep);
  }
}
