// What every plot is drawn with: elements, number formats, scales, axes, the tooltip and the shared focus.

const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes = {}, ...children) {
  const vector = name.startsWith("svg:");
  const made = vector ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const known = (value) => typeof value === "number" && Number.isFinite(value);

function format(value, digits = 4) {
  if (!known(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e5 || size < 1e-3)) {
    return value
      .toExponential(digits - 2)
      .replace(/\.?0+e/, "e")
      .replace("e+", "e");
  }
  return String(+value.toPrecision(digits));
}

// With both digits, also where the second is a zero: 0.020.
const twoDigits = (value) =>
  Math.abs(value) >= 1e-3 && Math.abs(value) < 10 ? value.toPrecision(2) : format(value, 3);

const power = (exponent) =>
  "10" + String(exponent).replace(/./g, (c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]);

// Ticks: [value, text] pairs.

function linearTicks(low, high, count, whole = false) {
  const rough = Math.max((high - low) / count || 1, whole ? 1 : 0);
  const unit = 10 ** Math.floor(Math.log10(rough));
  const ratio = rough / unit;
  const step = unit * (ratio > 7.07 ? 10 : ratio > 3.16 ? 5 : ratio > 1.41 ? 2 : 1);
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) {
    const value = k * step;
    ticks.push([value, step >= 1e5 || step < 1e-4 ? format(value) : value.toFixed(decimals)]);
  }
  return ticks;
}

function logTicks(low, high, count) {
  const [first, last] = [Math.log10(low), Math.log10(high)];
  if (last - first < 0.8) return linearTicks(low, high, count).filter(([value]) => value > 0);
  const stride = Math.max(1, Math.ceil((last - first) / (count + 1)));
  const mantissas = last - first < 1.6 ? [1, 2, 5] : last - first < 2.6 ? [1, 3] : [1];
  const ticks = [];
  for (let k = Math.floor(first); k <= Math.ceil(last); k++) {
    if (k % stride) continue;
    for (const mantissa of mantissas) {
      const value = mantissa * 10 ** k;
      const plain = k >= -3 && k <= 4;
      if (value >= low * 0.999 && value <= high * 1.001) {
        ticks.push([
          value,
          plain ? String(+value.toPrecision(2)) : mantissa === 1 ? power(k) : `${mantissa}·${power(k)}`,
        ]);
      }
    }
  }
  return ticks;
}

// Those of the ticks that do not touch the one before.
function apart(ticks, at, upright) {
  const kept = [];
  for (const [value, text] of ticks) {
    const last = kept.at(-1);
    const room = !last ? 0 : upright ? 13 : (last[1].length + text.length) * 3.2 + 8;
    if (!last || Math.abs(at(value) - at(last[0])) >= room) kept.push([value, text]);
  }
  return kept;
}

// A function from a value to a pixel. On a log scale what is not positive lies on the lower edge. Ticks lie at the
// `levels`, if there are any, [value, text] pairs in ascending order.
function scale(domain, range, { log = false, count = 5, whole = false, levels = null, upright = false } = {}) {
  const [low, high] = domain;
  const by = log ? Math.log10 : (value) => value;
  const [a, b] = [by(low), by(high)];
  const at = (value) =>
    range[0] + (((log && value <= 0 ? a : by(value)) - a) / (b - a || 1)) * (range[1] - range[0]);
  if (levels) at.ticks = apart(levels, at, upright);
  else at.ticks = log ? logTicks(low, high, count) : linearTicks(low, high, count, whole);
  at.domain = domain;
  return at;
}

// Names at equal distances, with half a step of room at both ends. Where they are too long for their step, they
// take turns on two lines (a tick's third part), and if that is not enough some are left out.
function nameScale(names, range, { upright = false } = {}) {
  const step = Math.abs(range[1] - range[0]) / Math.max(1, names.length);
  const at = (index) => range[0] + Math.sign(range[1] - range[0]) * step * (index + 0.5);
  const room = upright ? 14 : Math.max(...names.map((name) => name.length)) * 6.2 + 8;
  const lines = upright || room <= step ? 1 : 2;
  const stride = Math.max(1, Math.ceil(room / (step * lines)));
  at.ticks = names.map((name, i) => [i, name, (i / stride) % lines]).filter(([i]) => i % stride === 0);
  return at;
}

// The range of the values with some room; null if there are none to show.
function extent(values, { log = false, room = 0.05 } = {}) {
  const shown = values.filter((value) => known(value) && (!log || value > 0));
  if (!shown.length) return null;
  let low = Infinity,
    high = -Infinity;
  for (const value of shown) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (log) {
    const factor = (high / low) ** room;
    return low === high ? [low / 2, high * 2] : [low / factor, high * factor];
  }
  const space = low === high ? Math.abs(low) * 0.1 || 1 : (high - low) * room;
  return [low - space, high + space];
}

// The extent without the values that are far worse than the others: more than three interquartile ranges beyond
// the quartile. `best` is the side (1: high, -1: low) on which nothing is ever left out; 0: on neither.
function robustExtent(values, best = 0) {
  const sorted = values.filter(known).sort((a, b) => a - b);
  if (!sorted.length) return null;
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  const reach = 3 * (at(0.75) - at(0.25));
  const low = best < 0 ? -Infinity : at(0.25) - reach;
  const high = best > 0 ? Infinity : at(0.75) + reach;
  return extent(sorted.filter((value) => value >= low && value <= high));
}

// With room for `more`, but by no more than a quarter of the range on a side.
function widened([low, high], more) {
  const room = (high - low) / 4;
  const ends = more.filter(known);
  return [Math.max(low - room, Math.min(low, ...ends)), Math.min(high + room, Math.max(high, ...ends))];
}

const path = (points) => {
  let text = "",
    pen = "M";
  for (const [x, y] of points) {
    if (!known(y)) {
      pen = "M";
      continue;
    }
    text += `${pen}${x.toFixed(1)},${y.toFixed(1)}`;
    pen = "L";
  }
  return text;
};

const cut = (text, room) => (text.length <= room ? text : text.slice(0, Math.max(1, room - 1)) + "…");

let clips = 0;

// An SVG of the box's width with axes; `draw.inside` is clipped to the plot, `draw.over` is not.
function frame(box, { height, x, y, label, xTitle, right = 12 }) {
  const width = Math.max(220, box.clientWidth);
  const draft = y([height - 34, 10]);
  const left = Math.max(30, Math.max(0, ...draft.ticks.map(([, text]) => text.length)) * 6.4 + 12);
  const area = { left, right: width - right, top: 10, bottom: height - 34, width, height };
  const [sx, sy] = [x([area.left, area.right]), draft];
  const clip = `clip${++clips}`;
  const axes = element("svg:g", { class: "axes" });
  for (const [value, text] of sy.ticks) {
    axes.append(
      line(area.left, sy(value), area.right, sy(value), "grid"),
      write(area.left - 7, sy(value) + 3.5, text, "end"),
    );
  }
  for (const [value, text, row = 0] of sx.ticks) {
    axes.append(line(sx(value), area.bottom, sx(value), area.bottom + 4 + 12 * row, "tick"));
    axes.append(write(sx(value), area.bottom + 16 + 13 * row, text, "middle"));
  }
  axes.append(line(area.left, area.bottom, area.right, area.bottom, "axis"));
  if (xTitle) axes.append(write(area.right, height - 4, xTitle, "end"));
  const inside = element("svg:g", { "clip-path": `url(#${clip})` });
  const over = element("svg:g");
  const rect = {
    x: area.left,
    y: area.top - 4,
    width: area.right - area.left,
    height: area.bottom - area.top + 8,
  };
  const root = element(
    "svg:svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    element("svg:clipPath", { id: clip }, element("svg:rect", rect)),
    axes,
    inside,
    over,
  );
  box.replaceChildren(root);
  return { root, inside, over, sx, sy, area };
}

const line = (x1, y1, x2, y2, name) => element("svg:line", { x1, y1, x2, y2, class: name });
const write = (x, y, text, anchor = "start", name = null) =>
  element("svg:text", { x, y, "text-anchor": anchor, class: name }, text);
const dot = (x, y, r, attributes) => element("svg:circle", { cx: x, cy: y, r, ...attributes });

// The point under the pointer, in the SVG's own units.
function pointer(event, root) {
  const place = root.getBoundingClientRect();
  const zoom = root.viewBox.baseVal.width / place.width;
  return [(event.clientX - place.left) * zoom, (event.clientY - place.top) * zoom];
}

// One tooltip for all plots.

const tip = element("div", { id: "tip", role: "status", hidden: "" });

function showTip(event, head, rows) {
  const cells = rows.map(({ style, name, value, strong }) =>
    element(
      "tr",
      { class: strong ? "strong" : null },
      element("td", {}, style ? swatch(style) : ""),
      element("td", {}, name),
      element("td", {}, value ?? ""),
    ),
  );
  tip.replaceChildren(element("b", {}, head), element("table", {}, ...cells));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const x = event.clientX + 18 + width > innerWidth ? event.clientX - width - 14 : event.clientX + 16;
  const y = Math.min(innerHeight - height - 8, Math.max(8, event.clientY - height / 2));
  tip.style.transform = `translate(${Math.max(4, x)}px, ${y}px)`;
}

const hideTip = () => {
  tip.hidden = true;
  focus(null);
};

function swatch({ color, dash }) {
  const stroke = element("svg:line", {
    x1: 1,
    y1: 5,
    x2: 21,
    y2: 5,
    "stroke-width": 3,
    "stroke-dasharray": dash,
  });
  stroke.style.stroke = color;
  return element("svg:svg", { class: "swatch", viewBox: "0 0 22 10", width: 22, height: 10 }, stroke);
}

// The variant under the pointer stands out everywhere on the page: one rule does it for all plots.

const spotlight = element("style");
let focused = null;

function focus(variant) {
  if (variant === focused) return;
  focused = variant;
  spotlight.textContent =
    variant === null
      ? ""
      : `svg [data-v]:not([data-v="${variant}"]) { opacity: .13 } svg .band:not([data-v="${variant}"]) { opacity: .03 } tr[data-v="${variant}"] > * { background: var(--lift) }
     .chip[data-v="${variant}"] { border-color: var(--ink) }`;
}
