// The other kinds of plots. Each fills a box, and reads nothing but its arguments.

// One row of the leaderboard: replicates, mean and interval on the common scale; beyond it, an arrow.
function strip(cell, row, domain, style) {
  const width = Math.max(120, cell.clientWidth);
  const height = 30,
    middle = 12,
    below = 22;
  const at = scale(domain, [8, width - 8], { count: Math.min(5, width / 60) });
  const inside = (value) => value >= domain[0] && value <= domain[1];
  const root = element("svg:svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  for (const [value] of at.ticks) root.append(line(at(value), 0, at(value), height, "grid"));
  const group = element("svg:g", { "data-v": row.v });
  group.style.setProperty("--mark", style.color);
  for (const value of row.runs.length > 1 ? row.runs.filter(inside) : [])
    group.append(dot(at(value), below, 2.2, { class: "replicate" }));
  if (known(row.low)) {
    const [from, to] = [row.low, row.high].map((value) =>
      at(Math.min(domain[1], Math.max(domain[0], value))),
    );
    if (to > from) group.append(line(from, middle, to, middle, "interval"));
  }
  if (known(row.mean) && inside(row.mean)) group.append(dot(at(row.mean), middle, 5, { class: "mean" }));
  else if (known(row.mean)) {
    const [x, step] = row.mean < domain[0] ? [2, 8] : [width - 2, -8];
    group.append(element("svg:path", { d: `M${x},${middle}l${step},-5v10z`, class: "mean" }));
  }
  root.append(group);
  cell.replaceChildren(root);
}

function stripAxis(cell, domain) {
  const width = Math.max(120, cell.clientWidth);
  const at = scale(domain, [8, width - 8], { count: Math.min(5, width / 60) });
  const anchor = (x) => (x < 14 ? "start" : x > width - 14 ? "end" : "middle");
  const marks = at.ticks.map(([value, text]) => write(at(value), 12, text, anchor(at(value))));
  cell.replaceChildren(
    element("svg:svg", { viewBox: `0 0 ${width} 16`, class: "axes", "aria-hidden": "true" }, ...marks),
  );
}

// cells: {row, column, value, text, head, rows}
function heatPlot(box, { rows, columns, cells, domain, label }) {
  const width = Math.max(160 + 52 * columns.length, box.clientWidth);
  const left = Math.min(width * 0.35, Math.max(...rows.map((name) => name.length)) * 7.4 + 16);
  const wide = (width - left) / columns.length,
    high = Math.max(26, Math.min(54, wide * 0.62));
  const room = Math.floor(wide / 6.4);
  const height = rows.length * high + 26;
  const root = element("svg:svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  root.style.minWidth = `${width}px`;
  rows.forEach((name, i) =>
    root.append(write(left - 9, i * high + high / 2 + 4, cut(name, Math.floor(left / 6.6)), "end", "name")),
  );
  columns.forEach((name, j) =>
    root.append(write(left + (j + 0.5) * wide, height - 8, cut(name, room), "middle", "name")),
  );
  for (const cell of cells) {
    const share = known(cell.value)
      ? Math.min(1, Math.max(0, (cell.value - domain[0]) / (domain[1] - domain[0] || 1)))
      : null;
    const at = {
      x: left + cell.column * wide + 1.5,
      y: cell.row * high + 1.5,
      width: wide - 3,
      height: high - 3,
      rx: 4,
    };
    const rect = element("svg:rect", { ...at, class: "cell" });
    if (share !== null)
      rect.style.fill = `color-mix(in oklab, var(--heat0), var(--heat1) ${(share * 100).toFixed(1)}%)`;
    const group = element("svg:g", { "data-v": cell.v }, rect);
    const texts = (share === null ? ["–"] : high < 40 ? [cell.text] : [cell.text, cell.half]).filter(
      (text) => text && text.length <= room,
    );
    texts.forEach((text, i) => {
      const ink = write(
        at.x + at.width / 2,
        at.y + at.height / 2 + 4 + (texts.length > 1 ? i * 15 - 6 : 0),
        text,
        "middle",
        i ? null : "name",
      );
      ink.style.fill = share === null ? "var(--soft)" : share > 0.5 ? "var(--heat-ink1)" : "var(--heat-ink0)";
      group.append(ink);
    });
    group.addEventListener("pointermove", (event) => {
      focus(cell.v ?? null);
      showTip(event, cell.head, cell.rows);
    });
    group.addEventListener("pointerleave", hideTip);
    root.append(group);
  }
  box.replaceChildren(root);
}

// Points of variants over one key. points: {v, x, y, style, hollow}
function dotPlot(box, { points, x, domain, height = 220, label, names, tell, means = [] }) {
  const xs = extent(
    points.map((p) => p.x),
    { log: x.log },
  );
  if (!domain || !xs) return nothing(box, "No values.");
  const make = (range) => (names ? nameScale(names, range) : scale(xs, range, { ...x, count: 4 }));
  const { root, inside, over, sx, sy, area } = frame(box, {
    height,
    label,
    xTitle: x.title,
    x: make,
    y: (range) => scale(domain, range, { count: 4 }),
  });
  for (const mean of means)
    inside.append(line(sx(mean.x) - 14, sy(mean.y), sx(mean.x) + 14, sy(mean.y), "mean-bar"));
  const placed = points
    .filter((p) => known(p.x) && known(p.y))
    .map((p) => {
      const below = p.y < domain[0],
        above = p.y > domain[1];
      const [px, py] = [sx(p.x) + (p.shift ?? 0), below ? area.bottom - 3 : above ? area.top + 3 : sy(p.y)];
      const mark =
        below || above
          ? element("svg:path", {
              d: `M${px - 5},${py + (below ? -6 : 6)}h10l-5,${below ? 7 : -7}z`,
              "data-v": p.v,
              class: "point",
            })
          : dot(px, py, 4, { "data-v": p.v, class: p.hollow ? "point hollow" : "point" });
      mark.style.setProperty("--mark", p.style.color);
      over.append(mark);
      return { p, px, py };
    });
  root.addEventListener("pointerleave", hideTip);
  root.addEventListener("pointermove", (event) => {
    const [px, py] = pointer(event, root);
    const near = placed
      .map((one) => [Math.hypot(one.px - px, one.py - py), one])
      .sort((a, b) => a[0] - b[0])[0];
    if (!near || near[0] > 24) return hideTip();
    focus(near[1].p.v);
    showTip(event, ...tell(near[1].p));
  });
}

// Parallel coordinates. axes: {title, names | domain, log, of: (variant) => value}; drag along an axis to select.
function parallelPlot(box, { axes, lines, label, tell, report, brushes }) {
  const width = Math.max(120 * axes.length, box.clientWidth),
    height = 340,
    top = 34,
    bottom = height - 14;
  const longest = Math.min(14, Math.max(5, ...(axes[0].names ?? []).map((name) => name.length)));
  const start = Math.max(longest * 7.4 + 20, axes[0].title.length * 3.5);
  const step = (width - start - 70) / Math.max(1, axes.length - 1);
  const root = element("svg:svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  root.style.minWidth = `${width}px`;
  const at = axes.map((axis) =>
    axis.names
      ? nameScale(axis.names, [bottom, top], { upright: true })
      : scale(axis.domain, [bottom, top], { log: axis.log, levels: axis.levels, upright: true }),
  );
  const xOf = (i) => start + i * step;
  const placed = lines.map((one) => ({
    one,
    ys: axes.map((axis, i) => (known(axis.of(one.v)) ? at[i](axis.of(one.v)) : null)),
  }));
  for (const row of placed) {
    const mark = element("svg:path", {
      d: path(row.ys.map((y, i) => [xOf(i), y])),
      "data-v": row.one.v,
      class: row.one.hollow ? "strand stopped" : "strand",
      "stroke-dasharray": row.one.hollow ? "3 4" : null,
    });
    mark.style.stroke = row.one.style.color;
    row.mark = mark;
    root.append(mark);
  }
  const select = () => {
    let count = 0;
    for (const row of placed) {
      const chosen = brushes.every(
        (brush, i) => !brush || (row.ys[i] !== null && row.ys[i] >= brush[0] && row.ys[i] <= brush[1]),
      );
      row.chosen = chosen;
      count += chosen;
      row.mark.classList.toggle("out", !chosen);
    }
    report(count, brushes.some(Boolean));
  };
  axes.forEach((axis, i) =>
    root.append(
      parallelAxis(axis, {
        x: xOf(i),
        top,
        bottom,
        at: at[i],
        room: step,
        last: i === axes.length - 1,
        root,
        brush: (range) => {
          brushes[i] = range;
          select();
        },
        old: brushes[i],
      }),
    ),
  );
  root.addEventListener("pointerleave", hideTip);
  root.addEventListener("pointermove", (event) => {
    const [px, py] = pointer(event, root);
    const i = Math.max(0, Math.min(axes.length - 2, Math.floor((px - start) / step)));
    const share = (px - xOf(i)) / step;
    const far = (row) =>
      row.chosen && row.ys[i] !== null && row.ys[i + 1] !== null
        ? Math.abs(row.ys[i] + share * (row.ys[i + 1] - row.ys[i]) - py)
        : Infinity;
    const near = placed.reduce((best, row) => (far(row) < far(best) ? row : best), placed[0]);
    if (!near || far(near) > 14) return hideTip();
    focus(near.one.v);
    showTip(event, ...tell(near.one.v));
  });
  box.replaceChildren(root);
  select();
}

function parallelAxis(axis, { x, top, bottom, at, room, last, root, brush, old }) {
  const group = element("svg:g", { class: "axes" }, line(x, top, x, bottom, "axis"));
  group.append(write(x, 16, cut(axis.title, Math.floor(room / 6.6)), "middle", "name"));
  for (const [value, text] of at.ticks) {
    group.append(
      line(x - 3, at(value), x + 3, at(value), "tick"),
      write(last ? x + 8 : x - 7, at(value) + 3.5, cut(text, 14), last ? "start" : "end", "halo"),
    );
  }
  const shade = element("svg:rect", { x: x - 9, width: 18, rx: 3, class: "brush", visibility: "hidden" });
  const grip = element("svg:rect", {
    x: x - 14,
    y: top - 6,
    width: 28,
    height: bottom - top + 12,
    class: "grip",
  });
  const paint = (range) => {
    shade.setAttribute("visibility", range ? "visible" : "hidden");
    if (range) {
      shade.setAttribute("y", range[0]);
      shade.setAttribute("height", range[1] - range[0]);
    }
  };
  paint(old);
  let from = null;
  grip.addEventListener("pointerdown", (event) => {
    from = pointer(event, root)[1];
    grip.setPointerCapture(event.pointerId);
  });
  grip.addEventListener("pointermove", (event) => {
    if (from === null) return;
    const to = pointer(event, root)[1];
    const range = Math.abs(to - from) < 3 ? null : [Math.min(from, to), Math.max(from, to)];
    paint(range);
    brush(range);
  });
  grip.addEventListener("pointerup", (event) => {
    if (from !== null && Math.abs(pointer(event, root)[1] - from) < 3) {
      paint(null);
      brush(null);
    }
    from = null;
  });
  group.append(shade, grip);
  return group;
}

function nothing(box, why) {
  box.replaceChildren(element("p", { class: "missing" }, why));
}
