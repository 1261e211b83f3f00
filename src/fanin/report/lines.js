// Fills a box with lines over x and their bands. lines: {v, name, style, points, thin, ends}, where points: [{x, y, low, high, least, most, text}] make a line
// with a band, thin: [[[x, y]]] are lines behind it and ends: [{x, y}] marks. context: [[[x, y]]] are grey lines.
function linePlot(box, spec) {
  const { lines, context = [], x, y, height = 300, label, head, rules = [] } = spec;
  const behind = [...context, ...lines.flatMap((one) => one.thin ?? [])].flat();
  const points = lines.flatMap((one) => one.points);
  const values = [...points.flatMap((p) => [p.y, p.least, p.most]), ...behind.map((p) => p[1])];
  const domain = y.domain ?? extent([...values, ...rules.map((rule) => rule.y)], { log: y.log });
  if (!domain) return nothing(box, y.log ? "Nothing above zero to show on a log scale." : "No values.");
  const xs = [...new Set([...points.map((p) => p.x), ...behind.map((p) => p[0])])].sort((a, b) => a - b);
  const ends = [xs[0], xs.length > 1 ? xs.at(-1) : xs[0] + 1];
  const drawn = frame(box, {
    height,
    label,
    xTitle: x.title,
    x: (range) => (x.names ? nameScale(x.names, range) : scale(ends, range, { count: 6, whole: x.whole })),
    y: (range) => scale(domain, range, { log: y.log, count: height < 220 ? 3 : 5 }),
  });
  const { inside, over, sx, sy, area } = drawn;
  const d = context.map((some) => path(some.map(([px, py]) => [sx(px), known(py) ? sy(py) : null]))).join("");
  inside.append(
    element("svg:path", { d, class: "context", opacity: Math.max(0.08, Math.min(0.3, 25 / context.length)) }),
  );
  for (const one of lines) inside.append(band(one, sx, sy));
  for (const one of lines) inside.append(stroke(one, sx, sy, x.names));
  for (const one of lines)
    for (const end of one.ends ?? []) over.append(cross(sx(end.x), known(end.y) ? sy(end.y) : area.top, one));
  for (const rule of rules) {
    over.append(line(area.left, sy(rule.y), area.right, sy(rule.y), "rule"));
    over.append(write(area.right, sy(rule.y) - 4, rule.text, "end", "halo"));
  }
  tellLines(drawn, { lines, xs, head });
}

// Under the pointer: the values of all lines at the nearest x, the nearest of them in bold.
function tellLines({ root, over, sx, sy, area }, { lines, xs, head }) {
  const guide = line(0, area.top, 0, area.bottom, "guide");
  const hide = () => {
    guide.setAttribute("visibility", "hidden");
    hideTip();
  };
  guide.setAttribute("visibility", "hidden");
  over.append(guide);
  root.addEventListener("pointerleave", hide);
  root.addEventListener("pointermove", (event) => {
    const [px, py] = pointer(event, root);
    const place = nearest(xs, (value) => Math.abs(sx(value) - px));
    const there = lines.map((one) => ({ one, p: one.points.find((p) => p.x === place && known(p.y)) }));
    const rows = there.filter(({ p }) => p).sort((a, b) => b.p.y - a.p.y);
    if (!rows.length) return hide();
    const near = nearest(rows, (row) => Math.abs(sy(row.p.y) - py));
    guide.setAttribute("visibility", "visible");
    guide.setAttribute("x1", sx(place));
    guide.setAttribute("x2", sx(place));
    focus(near.one.v);
    const first = Math.max(0, Math.min(rows.indexOf(near) - 4, rows.length - 9));
    const shown = rows.slice(first, first + 9).map((row) => ({
      style: row.one.style,
      name: cut(row.one.name, 44),
      value: row.p.text ?? format(row.p.y),
      strong: row === near,
    }));
    showTip(event, head(place), shown);
  });
}

const nearest = (many, distance) => many.reduce((best, one) => (distance(one) < distance(best) ? one : best));

// The area between low and high, in pieces where points are without.
function band({ v, style, points }, sx, sy) {
  const pieces = [[]];
  for (const p of points) {
    if (known(p.low) && known(p.high)) pieces.at(-1).push(p);
    else pieces.push([]);
  }
  const around = (piece) => [
    ...piece.map((p) => [sx(p.x), sy(p.high)]),
    ...piece.reverse().map((p) => [sx(p.x), sy(p.low)]),
  ];
  const d = pieces.filter((piece) => piece.length > 1).map((piece) => `${path(around(piece))}Z`);
  const shape = element("svg:path", { d: d.join(""), class: "band", "data-v": v });
  shape.style.fill = style.color;
  return shape;
}

function stroke({ v, style, points, thin = [] }, sx, sy, dots) {
  const group = element("svg:g", { "data-v": v, class: "line", "stroke-dasharray": style.dash });
  group.style.stroke = style.color;
  for (const one of thin)
    group.append(
      element("svg:path", { d: path(one.map(([x, y]) => [sx(x), known(y) ? sy(y) : null])), class: "thin" }),
    );
  group.append(element("svg:path", { d: path(points.map((p) => [sx(p.x), known(p.y) ? sy(p.y) : null])) }));
  const alone = points.filter(
    (p, i) => known(p.y) && (dots || (!known(points[i - 1]?.y) && !known(points[i + 1]?.y))),
  );
  for (const p of alone)
    group.append(dot(sx(p.x), sy(p.y), 2.6, { style: `fill:${style.color}; stroke:none` }));
  return group;
}

function cross(x, y, { v, style }) {
  const mark = element("svg:path", { d: `M${x - 4},${y - 4}l8,8m0,-8l-8,8`, class: "cross", "data-v": v });
  mark.style.stroke = style.color;
  return mark;
}
