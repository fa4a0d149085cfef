/* The valence-arousal plane: where everyone is now, and the trail of the last two seconds. */

const TRAIL_SECONDS = 2;

function drawPlane(canvas, colours, clip, frame, people) {
  const ratio = Math.min(devicePixelRatio || 1, 2),
    size = canvas.clientWidth;
  if (size < 60) return; /* hidden, or no room for anything legible */
  canvas.width = canvas.height = Math.round(size * ratio);
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  const pad = 16,
    middle = size / 2,
    reach = middle - pad;
  const place = (valence, arousal) => [middle + reach * clamp(valence, -1, 1), middle - reach * clamp(arousal, -1, 1)];

  pen.fillStyle = colours.well;
  pen.beginPath();
  pen.roundRect(0, 0, size, size, 10);
  pen.fill();
  pen.strokeStyle = colours.rule;
  pen.lineWidth = 1;
  for (const radius of [0.5, 1]) {
    pen.beginPath();
    pen.arc(middle, middle, reach * radius, 0, 2 * Math.PI);
    pen.stroke();
  }
  pen.beginPath();
  pen.moveTo(pad, middle);
  pen.lineTo(size - pad, middle);
  pen.moveTo(middle, pad);
  pen.lineTo(middle, size - pad);
  pen.stroke();

  pen.fillStyle = colours.muted;
  pen.font = `${size < 220 ? 9.5 : 11}px system-ui, sans-serif`;
  const corner = [
    ["tense", 0.14, 0.13],
    ["excited", 0.86, 0.13],
    ["gloomy", 0.14, 0.9],
    ["calm", 0.86, 0.9],
  ];
  pen.textAlign = "center";
  for (const [word, x, y] of corner) pen.fillText(word, x * size, y * size);
  pen.textAlign = "right";
  pen.fillText("valence", size - pad - 3, middle + 14);
  pen.textAlign = "left";
  pen.fillText("arousal", middle + 5, pad + 13);

  const back = Math.round(TRAIL_SECONDS * clip.fps);
  pen.lineCap = "round";
  for (const { person, colour, bold } of people) {
    if (!person.emotion) continue;
    const dot = (t) => place(person.emotion.value(VALENCE, t), person.emotion.value(AROUSAL, t));
    pen.strokeStyle = colour;
    for (let t = Math.max(1, frame - back); t <= frame; t++) {
      if (!person.knows(t) || !person.knows(t - 1)) continue;
      pen.globalAlpha = 0.75 * (1 - (frame - t) / (back + 1)) ** 1.5;
      pen.lineWidth = bold ? 3 : 2;
      pen.beginPath();
      pen.moveTo(...dot(t - 1));
      pen.lineTo(...dot(t));
      pen.stroke();
    }
    pen.globalAlpha = 1;
    if (!person.knows(frame)) continue;
    const [x, y] = dot(frame);
    pen.fillStyle = colour;
    pen.strokeStyle = colours.well;
    pen.lineWidth = 2;
    pen.beginPath();
    /* The speaker is a square, so that the difference does not hang on colour. */
    if (bold) pen.rect(x - 5, y - 5, 10, 10);
    else pen.arc(x, y, 5.5, 0, 2 * Math.PI);
    pen.fill();
    pen.stroke();
  }
}
