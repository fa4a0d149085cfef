/* A face in SVG. Every feature is a few points on an ellipsoid head, turned by the pose and projected; the curves run through them. */

const SVG_NS = "http://www.w3.org/2000/svg";
const VIEW_W = 300, VIEW_H = 320, CENTRE_X = 150, CENTRE_Y = 146;
const NECK_Y = 96; /* the head tilts and nods about the top of the neck */

function mix(a, b, t) {
  return a + (b - a) * t;
}

/* Catmull-Rom through the points, as cubic segments. */
function curve(points, closed) {
  const n = points.length;
  const at = (i) => (closed ? points[(i + n) % n] : points[clamp(i, 0, n - 1)]);
  const pair = (x, y) => x.toFixed(2) + " " + y.toFixed(2);
  let path = "M" + pair(points[0][0], points[0][1]);
  for (let i = 0; i < (closed ? n : n - 1); i++) {
    const [a, b, c, d] = [at(i - 1), at(i), at(i + 1), at(i + 2)];
    path += "C" + pair(b[0] + (c[0] - a[0]) / 6, b[1] + (c[1] - a[1]) / 6) + " " +
      pair(c[0] - (d[0] - b[0]) / 6, c[1] - (d[1] - b[1]) / 6) + " " + pair(c[0], c[1]);
  }
  return closed ? path + "Z" : path;
}

/* Two curves that share their ends, as one closed outline with sharp corners. */
function lens(upper, lower) {
  return curve(upper) + curve([...lower].reverse()).replace("M", "L") + "Z";
}

class Face {
  constructor(host, id) {
    this.id = id;
    this.svg = document.createElementNS(SVG_NS, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${VIEW_W} ${VIEW_H}`);
    this.svg.setAttribute("role", "img");
    this.svg.setAttribute("class", "face");
    this.svg.id = `face-${id}`;
    host.append(this.svg);
    this.parts = {};
    const person = this.add(this.svg, "g", "person"); /* one group, so that a faded face does not show its parts through each other */
    const root = this.add(person, "g", "bust");
    this.add(root, "path", "shirt", { d: "M18 330C22 288 62 278 112 266Q150 292 188 266C238 278 278 288 282 330Z" });
    this.add(root, "path", "neck");
    this.add(root, "path", "neck-shade");
    const head = (this.head = this.add(person, "g", "head"));
    for (const name of ["hair-back", "ear-R", "ear-L", "skull", "blush-R", "blush-L", "forehead", "glabella", "nose-wrinkle"]) this.add(head, "path", name);
    for (const side of ["R", "L"]) {
      const clip = this.add(head, "clipPath", `clip-${side}`, { id: `${id}-eye-${side}` });
      this.add(clip, "path", `opening-${side}`);
      this.add(head, "path", `eye-${side}`);
      const inside = this.add(head, "g", `inside-${side}`, { "clip-path": `url(#${id}-eye-${side})` });
      this.add(inside, "circle", `iris-${side}`, { r: 9.4 });
      this.add(inside, "circle", `pupil-${side}`, { r: 4.6 });
      this.add(inside, "circle", `glint-${side}`, { r: 2.3 });
      this.add(inside, "path", `lid-shade-${side}`);
      for (const name of ["crease", "lower-lid", "under-eye", "lash", "brow", "fold"]) this.add(head, "path", `${name}-${side}`);
    }
    this.add(head, "path", "nose-shade");
    this.add(head, "path", "nose");
    const clip = this.add(head, "clipPath", "clip-mouth", { id: `${id}-mouth` });
    this.add(clip, "path", "mouth-opening");
    this.add(head, "path", "mouth");
    const inside = this.add(head, "g", "inside-mouth", { "clip-path": `url(#${id}-mouth)` });
    for (const name of ["tongue", "teeth"]) this.add(inside, "path", name);
    for (const name of ["lip-lower", "lip-upper", "mouth-line", "lip-shade", "chin", "hair"]) this.add(head, "path", name);
    const veil = this.add(this.svg, "g", "veil");
    this.add(veil, "rect", "veil-hatch", { x: 0, y: 0, width: VIEW_W, height: VIEW_H, fill: "url(#hatch-face)" });
    this.add(veil, "text", "veil-label", { x: VIEW_W / 2, y: VIEW_H - 22, "text-anchor": "middle" }).textContent = "face missing";
  }

  add(parent, tag, name, attributes) {
    const element = document.createElementNS(SVG_NS, tag);
    element.setAttribute("class", name.replace(/-[LR]$/, "") + " " + name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    parent.append(element);
    this.parts[name] = element;
    return element;
  }

  draw(name, path) {
    this.parts[name].setAttribute("d", path);
  }

  strength(name, value) {
    this.parts[name].style.opacity = clamp(value, 0, 1).toFixed(3);
  }

  /* (x, y) on the front of the head, `lift` above its surface, turned and projected. x to the viewer's right, y down. */
  on(x, y, lift = 0) {
    const z = 68 * Math.sqrt(Math.max(0.02, 1 - (x / 100) ** 2 - (y / 138) ** 2)) + lift;
    return this.turn(x, y, z);
  }

  turn(x, y, z) {
    const { pitch, yaw } = this.pose;
    const x1 = x * Math.cos(yaw) + z * Math.sin(yaw), z1 = z * Math.cos(yaw) - x * Math.sin(yaw);
    const drop = y - NECK_Y;
    const y2 = drop * Math.cos(pitch) + z1 * Math.sin(pitch), z2 = z1 * Math.cos(pitch) - drop * Math.sin(pitch);
    const near = 900 / (900 - z2 + 60);
    return [x1 * near, (y2 + NECK_Y) * near];
  }

  /* On the contour: a head keeps its width as it turns, only what stands in front of its middle wanders. */
  rim(x, y, z) {
    const { pitch, yaw } = this.pose;
    return [x + z * Math.sin(yaw), y + (z * Math.sin(pitch) + (NECK_Y - y) * (1 - Math.cos(pitch))) * 0.9];
  }

  /* c: controls (controls.js); pose: pitch, yaw, roll, x, y, scale; missing: nothing is known of this face now. */
  update(c, pose, missing) {
    this.pose = pose;
    const place = `translate(${(CENTRE_X + pose.x).toFixed(2)} ${(CENTRE_Y + pose.y).toFixed(2)})`;
    const roll = `rotate(${((pose.roll * 180) / Math.PI).toFixed(2)} 0 ${NECK_Y})`;
    this.head.setAttribute("transform", `${place} scale(${pose.scale.toFixed(4)}) ${roll}`);
    this.skull(c);
    for (const side of ["R", "L"]) {
      this.eye(c, side);
      this.brow(c, side);
    }
    this.nose(c);
    this.mouth(c);
    this.svg.classList.toggle("missing", missing);
  }

  skull(c) {
    const jaw = 15 * Math.max(0, c.jawOpen), slide = 9 * c.jawX, puff = 9 * Math.max(0, c.puff);
    const half = [[82, -16, 0], [81, 18, 2], [74 + puff, 52 + 0.2 * jaw, 10], [58 + 0.6 * puff, 84 + 0.7 * jaw, 22], [30, 108 + jaw, 32]];
    const down = (sign) => half.map(([x, y, z]) => this.rim(sign * x + slide * clamp(y / 110, 0, 1), y, z));
    const crown = [[-76, -56], [-52, -92], [0, -110], [52, -92], [76, -56]].map(([x, y]) => this.rim(x, y, 0));
    this.draw("skull", curve([...crown, ...down(1), this.rim(slide, 115 + jaw, 36), ...down(-1).reverse()], true));
    for (const [side, sign] of [["L", 1], ["R", -1]]) {
      const ear = [[78, -14], [92, -22], [98, -6], [93, 14], [84, 28], [77, 20]];
      this.draw(`ear-${side}`, curve(ear.map(([x, y]) => this.turn(sign * x, y, -22)), true));
    }
    const back = [[-88, 18], [-92, -34], [-74, -86], [-34, -118], [0, -124], [34, -118], [74, -86], [92, -34], [88, 18], [60, 40], [-60, 40]];
    this.draw("hair-back", curve(back.map(([x, y]) => this.rim(x, y, -26)), true));
    const outer = [[-83, -4], [-87, -40], [-72, -84], [-36, -114], [4, -121], [42, -112], [74, -82], [87, -38], [83, -4]];
    const line = [[79, -26], [72, -52], [56, -68], [28, -70], [-2, -78], [-34, -74], [-60, -62], [-74, -46], [-79, -26]];
    const rimmed = outer.map(([x, y]) => this.rim(x, y, -6));
    this.draw("hair", curve([...rimmed, ...line.map(([x, y]) => this.on(x, y, 3)).map(([x, y]) => [clamp(x, -81, 81), y])], true));
    /* The neck belongs to the body but ends under the jaw, wherever that is. */
    const top = CENTRE_Y + 40 + this.pose.y, shift = this.pose.x;
    this.draw("neck", `M${112 + shift * 0.8} ${top}L${188 + shift * 0.8} ${top}L189 262Q192 272 200 272Q150 304 100 272Q108 272 111 262Z`);
    const chin = CENTRE_Y + 108 + jaw + this.pose.y;
    this.draw("neck-shade", `M111 ${chin - 26}L189 ${chin - 26}L189 ${chin + 6}Q150 ${chin + 34} 111 ${chin + 6}Z`);
    for (const [side, sign] of [["L", 1], ["R", -1]]) {
      const cheek = Math.max(0, c[`cheek${side}`], 0.7 * c[`smile${side}`]);
      const centre = [sign * 50, 30 - 5 * cheek], ring = [];
      for (let i = 0; i < 10; i++) {
        const angle = (i * Math.PI) / 5;
        ring.push(this.on(centre[0] + 16 * Math.cos(angle), centre[1] + 11 * Math.sin(angle), 1));
      }
      this.draw(`blush-${side}`, curve(ring, true));
      this.strength(`blush-${side}`, 0.2 + 0.4 * cheek);
    }
  }

  eye(c, side) {
    const sign = side === "L" ? 1 : -1;
    const blink = clamp(c[`blink${side}`], -0.2, 1), squint = clamp(Math.max(c[`squint${side}`], 0.55 * c[`cheek${side}`]), 0, 1);
    const wide = Math.max(0, c[`wide${side}`]);
    const shut = Math.max(0, blink), look = 1.6 * c.gazeY;
    const low = 8.5 * (1 - 0.5 * squint) + wide;
    const high = mix((12.5 + 4.5 * wide - 2.6 * squint - 2 * Math.min(0, blink)) - look, -low * 0.82, shut);
    const at = (x, y, lift) => this.on(sign * (35 + x), -10 + y, lift);
    const upper = [at(-19, 3.5), at(-11, -high * 0.72), at(0, -high), at(11, -high * 0.78), at(19, -0.5)];
    const lower = [upper[0], at(-10, low * 0.72 + 1), at(1, low), at(12, low * 0.7), upper[4]];
    const opening = lens(upper, lower);
    this.draw(`eye-${side}`, opening);
    this.draw(`opening-${side}`, opening);
    const iris = at(6.5 * sign * c.gazeX, 5.5 * c.gazeY - 0.5);
    for (const [name, dx, dy] of [["iris", 0, 0], ["pupil", 0, 0], ["glint", 3.2, -3.6]]) {
      this.parts[`${name}-${side}`].setAttribute("cx", (iris[0] + dx).toFixed(2));
      this.parts[`${name}-${side}`].setAttribute("cy", (iris[1] + dy).toFixed(2));
    }
    const sag = upper.map(([x, y]) => [x, y + 3.4]);
    this.draw(`lid-shade-${side}`, lens(upper, sag));
    /* The upper lid's line runs a little past the outer corner and is what remains of a closed eye. */
    const tail = at(22.5, -2 + 2.7 * shut);
    this.draw(`lash-${side}`, lens([...upper, tail], [upper[0], at(-10, -high * 0.72 + 1.4), at(0, -high + 3), at(11, -high * 0.78 + 3), at(18, 1.2), tail]));
    this.draw(`lower-lid-${side}`, curve(lower.slice(1)));
    const fold = Math.max(high, 3) + 5.5 - 2.5 * wide;
    this.draw(`crease-${side}`, curve([at(-15, -1 - fold * 0.45), at(-7, -fold * 0.9), at(2, -fold), at(12, -fold * 0.82), at(19, -fold * 0.35)]));
    this.strength(`crease-${side}`, 0.4);
    const bag = Math.max(0, c[`cheek${side}`], 0.5 * squint);
    this.draw(`under-eye-${side}`, curve([at(-12, low + 6), at(0, low + 9 - 2 * bag), at(13, low + 6 - 2 * bag)]));
    this.strength(`under-eye-${side}`, 0.55 * bag);
  }

  brow(c, side) {
    const sign = side === "L" ? 1 : -1;
    const inner = c.browIn, outer = c[`browOut${side}`], down = c[`browDown${side}`], sneer = Math.max(0, c[`sneer${side}`]);
    const at = (x, y) => this.on(sign * x, y, 3);
    const yIn = -37 - 13 * inner + 9.5 * down + 3 * sneer, yMid = -42 - 5 * inner - 8 * outer + 7 * down, yOut = -35 - 11 * outer + 1.5 * down;
    const pull = 3.5 * down;
    const ridge = [at(13 - pull, yIn - 3.4), at(26 - pull, mix(yIn, yMid, 0.62) - 4.4), at(41, yMid - 2.8), at(57, yOut)];
    const under = [at(12 - pull, yIn + 3.4), at(26 - pull, mix(yIn, yMid, 0.62) + 2.4), at(41, yMid + 1.6), ridge[3]];
    this.draw(`brow-${side}`, lens([under[0], ...ridge], under));
    if (side === "R") return;
    const raise = Math.max(inner, 0.9 * c.browOutL, 0.9 * c.browOutR);
    const crease = (y, w) => curve([this.on(-w, y + 2), this.on(-w / 2, y - 1), this.on(0, y), this.on(w / 2, y - 1), this.on(w, y + 2)]);
    this.draw("forehead", crease(-56 - 3 * raise, 34) + crease(-64 - 2 * raise, 24));
    this.strength("forehead", 0.75 * (raise - 0.3));
    const frown = Math.max(c.browDownL, c.browDownR);
    const furrow = (s) => curve([this.on(s * 5, -36), this.on(s * 6, -29), this.on(s * 4.5, -23)]);
    this.draw("glabella", furrow(-1) + furrow(1));
    this.strength("glabella", 0.9 * (frown - 0.2));
  }

  nose(c) {
    const left = Math.max(0, c.sneerL), right = Math.max(0, c.sneerR), sneer = Math.max(left, right);
    const wing = (s, lift) => [this.on(s * (12.5 + lift), 19 - 5 * lift, 8), this.on(s * (12.5 + lift), 26 - 5 * lift, 8), this.on(s * 7, 28 - 3 * lift, 13)];
    const l = wing(1, left), r = wing(-1, right);
    this.draw("nose", curve([...r, this.on(0, 30.5 - 2 * sneer, 19), ...l.reverse()]));
    this.draw("nose-shade", curve([this.on(6, -10, 8), this.on(7, 6, 13), this.on(9, 18, 18), this.on(11.5, 25 - 4 * left, 9), this.on(2, 29, 19), this.on(3, 10, 18)], true));
    const wrinkle = (s) => curve([this.on(s * 4, -14, 10), this.on(s * 10, -8, 4)]) + curve([this.on(s * 4, -6, 12), this.on(s * 11, 0, 5)]);
    this.draw("nose-wrinkle", wrinkle(1) + wrinkle(-1));
    this.strength("nose-wrinkle", 1.2 * sneer);
  }

  mouth(c) {
    const part = Math.max(0, c.part), jaw = Math.max(0, c.jawOpen), funnel = Math.max(0, c.funnel), pucker = Math.max(0, c.pucker);
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
    const press = clamp(Math.max(c.pressL, c.pressR, 0), 0, 1), tight = Math.max(0, c.tight);
    const smile = 0.5 * (c.smileL + c.smileR);
    const thin = (roll) => (1 - 0.6 * press) * (1 - 0.4 * tight) * (1 - 0.7 * clamp(roll, 0, 1)) * (1 + 0.5 * pucker) * (1 - 0.15 * smile);
    const upperLip = 6 * thin(c.rollUpper), lowerLip = 9 * thin(c.rollLower);
    const middle = 60 + 2.5 * smile - 4 * Math.max(0, c.chinUp), shift = 8 * c.mouthX + 5 * c.jawX, narrow = 1 - 0.8 * press;
    const row = (offset) => [-1, -0.72, -0.38, 0, 0.38, 0.72, 1].map((f) => {
      const s = f > 0 ? sides.L : f < 0 ? sides.R : { width: 0, corner: 0, up: (sides.L.up + sides.R.up) / 2, down: (sides.L.down + sides.R.down) / 2 };
      const b = 1 - f * f, bow = mix(60, middle, b) + s.corner * Math.abs(f) ** 1.7;
      return this.on(shift + f * s.width, bow + offset(s, f, b), 7);
    });
    const innerUpper = row((s, f, b) => -narrow * s.up * b), innerLower = row((s, f, b) => narrow * s.down * b ** 0.8);
    const cupid = (f) => (Math.abs(f) < 0.2 ? 0.82 : Math.abs(f) < 0.5 ? 1 : 0.62);
    const outerUpper = row((s, f, b) => -narrow * s.up * b - (Math.abs(f) === 1 ? 0 : upperLip * cupid(f)));
    const outerLower = row((s, f, b) => narrow * s.down * b ** 0.8 + (Math.abs(f) === 1 ? 0 : lowerLip * b ** 0.55));
    const gap = innerLower[3][1] - innerUpper[3][1];
    const opening = lens(innerUpper, innerLower);
    this.draw("mouth", opening);
    this.draw("mouth-opening", opening);
    this.draw("lip-upper", lens(outerUpper, innerUpper));
    this.draw("lip-lower", lens(innerLower, outerLower));
    this.draw("mouth-line", curve(innerUpper));
    const bite = Math.min(7.5, 0.5 * gap);
    this.draw("teeth", lens(innerUpper.map(([x, y]) => [x, y - 1]), innerUpper.map(([x, y]) => [x * 0.96, y + bite])));
    const floor = innerLower[3], out = 8 * Math.max(0, c.tongue);
    this.draw("tongue", curve([[floor[0] - 15, floor[1] + 3 + out], [floor[0], floor[1] - Math.min(9, 0.35 * gap)], [floor[0] + 15, floor[1] + 3 + out], [floor[0], floor[1] + 12 + out]], true));
    const under = sides.L.down * 0.5 + sides.R.down * 0.5;
    this.draw("lip-shade", curve([this.on(shift - 11, middle + under + lowerLip + 5, 6), this.on(shift, middle + under + lowerLip + 6.5, 7), this.on(shift + 11, middle + under + lowerLip + 5, 6)]));
    const bump = Math.max(0, c.chinUp), chin = 88 + 13 * jaw - 3 * bump;
    this.draw("chin", curve([this.on(shift - 13, chin + 3), this.on(shift, chin - 2), this.on(shift + 13, chin + 3)]));
    this.strength("chin", 0.1 + 0.8 * bump);
    for (const [side, sign] of [["L", 1], ["R", -1]]) {
      const s = sides[side], deep = Math.max(c[`smile${side}`], c[`sneer${side}`], c[`upperUp${side}`], 0.9 * c[`dimple${side}`], 0);
      const x = sign * Math.max(s.width + 8, 26) + shift;
      this.draw(`fold-${side}`, curve([this.on(sign * 19, 26, 3), this.on(sign * mix(19, Math.abs(x), 0.75), 37 + 0.2 * s.corner), this.on(x, middle - 4 + 0.8 * s.corner)]));
      this.strength(`fold-${side}`, 0.05 + 0.6 * deep);
    }
  }
}
