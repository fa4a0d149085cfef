/* A face in SVG. Every feature is a few points on an ellipsoid head, turned by the pose and projected; the curves run through them. */

const SVG_NS = "http://www.w3.org/2000/svg";
const VIEW_W = 300,
  VIEW_H = 320,
  CENTRE_X = 150,
  CENTRE_Y = 146;
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
    path +=
      "C" +
      pair(b[0] + (c[0] - a[0]) / 6, b[1] + (c[1] - a[1]) / 6) +
      " " +
      pair(c[0] - (d[0] - b[0]) / 6, c[1] - (d[1] - b[1]) / 6) +
      " " +
      pair(c[0], c[1]);
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
    for (const name of ["hair-back", "ear-R", "ear-L", "skull", "blush-R", "blush-L", "forehead", "glabella", "nose-wrinkle"])
      this.add(head, "path", name);
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
    const x1 = x * Math.cos(yaw) + z * Math.sin(yaw),
      z1 = z * Math.cos(yaw) - x * Math.sin(yaw);
    const drop = y - NECK_Y;
    const y2 = drop * Math.cos(pitch) + z1 * Math.sin(pitch),
      z2 = z1 * Math.cos(pitch) - drop * Math.sin(pitch);
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
      drawEye(this, c, side);
      drawBrow(this, c, side);
    }
    drawNose(this, c);
    drawMouth(this, c);
    this.svg.classList.toggle("missing", missing);
  }

  skull(c) {
    const jaw = 15 * Math.max(0, c.jawOpen),
      slide = 9 * c.jawX,
      puff = 9 * Math.max(0, c.puff);
    const half = [
      [82, -16, 0],
      [81, 18, 2],
      [74 + puff, 52 + 0.2 * jaw, 10],
      [58 + 0.6 * puff, 84 + 0.7 * jaw, 22],
      [30, 108 + jaw, 32],
    ];
    const down = (sign) => half.map(([x, y, z]) => this.rim(sign * x + slide * clamp(y / 110, 0, 1), y, z));
    const crown = [
      [-76, -56],
      [-52, -92],
      [0, -110],
      [52, -92],
      [76, -56],
    ].map(([x, y]) => this.rim(x, y, 0));
    this.draw("skull", curve([...crown, ...down(1), this.rim(slide, 115 + jaw, 36), ...down(-1).reverse()], true));
    for (const [side, sign] of [
      ["L", 1],
      ["R", -1],
    ]) {
      const ear = [
        [78, -14],
        [92, -22],
        [98, -6],
        [93, 14],
        [84, 28],
        [77, 20],
      ];
      this.draw(
        `ear-${side}`,
        curve(
          ear.map(([x, y]) => this.turn(sign * x, y, -22)),
          true,
        ),
      );
    }
    const back = [
      [-88, 18],
      [-92, -34],
      [-74, -86],
      [-34, -118],
      [0, -124],
      [34, -118],
      [74, -86],
      [92, -34],
      [88, 18],
      [60, 40],
      [-60, 40],
    ];
    this.draw(
      "hair-back",
      curve(
        back.map(([x, y]) => this.rim(x, y, -26)),
        true,
      ),
    );
    const outer = [
      [-83, -4],
      [-87, -40],
      [-72, -84],
      [-36, -114],
      [4, -121],
      [42, -112],
      [74, -82],
      [87, -38],
      [83, -4],
    ];
    const line = [
      [79, -26],
      [72, -52],
      [56, -68],
      [28, -70],
      [-2, -78],
      [-34, -74],
      [-60, -62],
      [-74, -46],
      [-79, -26],
    ];
    const rimmed = outer.map(([x, y]) => this.rim(x, y, -6));
    this.draw("hair", curve([...rimmed, ...line.map(([x, y]) => this.on(x, y, 3)).map(([x, y]) => [clamp(x, -81, 81), y])], true));
    /* The neck belongs to the body but ends under the jaw, wherever that is. */
    const top = CENTRE_Y + 40 + this.pose.y,
      shift = this.pose.x;
    this.draw("neck", `M${112 + shift * 0.8} ${top}L${188 + shift * 0.8} ${top}L189 262Q192 272 200 272Q150 304 100 272Q108 272 111 262Z`);
    const chin = CENTRE_Y + 108 + jaw + this.pose.y;
    this.draw("neck-shade", `M111 ${chin - 26}L189 ${chin - 26}L189 ${chin + 6}Q150 ${chin + 34} 111 ${chin + 6}Z`);
    for (const [side, sign] of [
      ["L", 1],
      ["R", -1],
    ]) {
      const cheek = Math.max(0, c[`cheek${side}`], 0.7 * c[`smile${side}`]);
      const centre = [sign * 50, 30 - 5 * cheek],
        ring = [];
      for (let i = 0; i < 10; i++) {
        const angle = (i * Math.PI) / 5;
        ring.push(this.on(centre[0] + 16 * Math.cos(angle), centre[1] + 11 * Math.sin(angle), 1));
      }
      this.draw(`blush-${side}`, curve(ring, true));
      this.strength(`blush-${side}`, 0.2 + 0.4 * cheek);
    }
  }
}
