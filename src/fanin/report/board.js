// The leaderboard and the curves: one function per section draws it and its controls.

const bestSide = data.direction === "maximize" ? 1 : -1;
const scoreOf = (v) => variants[v].mean ?? variants[v].last;
const facts = (v) => [
  variants[v].name,
  [
    {
      name: data.metric,
      value: known(variants[v].mean) ? variants[v].text : `last ${format(scoreOf(v))}`,
      strong: true,
    },
    ...axes.map((axis) => ({ name: axis.key, value: axis.names?.[axis.level[v]] ?? format(axis.value[v]) })),
    variants[v].note ? { name: variants[v].note } : null,
  ].filter(Boolean),
];

function leaderboardSection() {
  const board = document.getElementById("board");
  const rows = [...board.querySelectorAll("tbody tr")];
  const long = rows.some((row) => row.classList.contains("rest"));
  if (!variants.flatMap((one) => [...one.runs, one.mean]).some(known)) return;
  const now = { all: false, scale: "best" };
  const draw = () => {
    board.classList.toggle("all", now.all);
    const seen = rows.filter((row) => row.offsetParent);
    const { best, whole } = boardDomains(seen.map((row) => variants[row.dataset.v]));
    const outliers = best[1] - best[0] < 0.8 * (whole[1] - whole[0]);
    const set = (change) => {
      Object.assign(now, change);
      draw();
    };
    const scales = [
      ["best", "without outliers"],
      ["all", "all"],
    ];
    const more = { type: "button", "data-set": "rows=all", onclick: () => set({ all: !now.all }) };
    controls(
      "board",
      outliers ? choose("scale", scales, now.scale, (scale) => set({ scale })) : null,
      long ? element("button", more, now.all ? "show fewer" : `show all ${rows.length}`) : null,
    );
    const domain = outliers && now.scale === "best" ? best : whole;
    stripAxis(board.querySelector("th.strip"), domain);
    for (const row of seen) {
      const v = Number(row.dataset.v);
      strip(row.querySelector("td.strip"), { v, ...variants[v] }, domain, styleOf(v));
    }
    for (const row of rows) {
      const v = Number(row.dataset.v);
      const key = swatch(state.shown.has(v) ? styleOf(v) : { color: "var(--line)" });
      row.querySelector(".key").replaceChildren(key);
    }
  };
  for (const row of rows) {
    row.addEventListener("pointerenter", () => focus(Number(row.dataset.v)));
    row.addEventListener("pointerleave", () => focus(null));
  }
  parts.push(draw);
}

// The scale that the rows seen have in common: of all their values, and without the outliers among them. Intervals
// have some room beyond, but not where no accuracy can be.
function boardDomains(seen) {
  const values = seen.flatMap((one) => [...one.runs, one.mean]);
  const share = /accuracy/.test(data.metric) && values.filter(known).every((value) => value >= 0 && value <= 1);
  const fit = (domain) => {
    const inside = seen.filter((one) => one.mean >= domain[0] && one.mean <= domain[1]);
    const [low, high] = widened(
      domain,
      inside.flatMap((one) => [one.low, one.high]),
    );
    return share ? [Math.max(0, low), Math.min(1, high)] : [low, high];
  };
  return { best: fit(robustExtent(values, bestSide) ?? [0, 1]), whole: fit(extent(values) ?? [0, 1]) };
}

function curveSection() {
  const { curves } = data;
  if (!box("curves") || !curves) return;
  const names = Object.keys(curves.values);
  const isLoss = (metric) => /loss|error|nll/.test(metric);
  const now = {
    metric: curves.first,
    log: null,
    // of two replicates an interval is as wide as the plot
    band: data.interval.length > 3 ? "interval" : data.interval.length > 2 ? "range" : "runs",
    x: "step",
    zoom: false,
  };
  const logarithmic = () => now.log ?? isLoss(now.metric);
  const draw = () => {
    controls(
      "curves",
      choose(
        "metric",
        names.map((name) => [name, name]),
        now.metric,
        (key) => {
          now.metric = key;
          draw();
        },
      ),
      choose(
        "y",
        [
          [false, "linear"],
          [true, "log"],
        ],
        logarithmic(),
        (key) => {
          now.log = key;
          draw();
        },
      ),
      data.interval.length > 2
        ? choose(
            "band",
            [
              ["interval", "95 % interval"],
              ["range", "min–max"],
              ["runs", "every run"],
            ],
            now.band,
            (key) => {
              now.band = key;
              draw();
            },
          )
        : null,
      curves.seconds
        ? choose(
            "x",
            [
              ["step", "epoch"],
              ["seconds", "seconds"],
            ],
            now.x,
            (key) => {
              now.x = key;
              draw();
            },
          )
        : null,
      choose(
        "range",
        [
          [false, "all"],
          [true, "close-up"],
        ],
        now.zoom,
        (key) => {
          now.zoom = key;
          draw();
        },
      ),
      all.length > FEW
        ? choose(
            "others",
            [
              [true, "grey"],
              [false, "hidden"],
            ],
            state.context,
            (key) => {
              state.context = key;
              draw();
            },
          )
        : null,
    );
    const hidden = state.context ? all.filter((v) => !state.shown.has(v)) : [];
    const byStep = now.x === "step" || early(now.metric);
    const lines = [...state.shown].map((v) => curveOf(v, now));
    linePlot(box("curves"), {
      lines,
      context: hidden.map((v) => curveOf(v, now).points.map((p) => [p.x, p.y])),
      x: { title: early(now.metric) ? "step of the initializer" : byStep ? "epoch" : "seconds of training", whole: byStep },
      y: { log: logarithmic(), domain: now.zoom ? closeUp(lines, logarithmic()) : null },
      height: 380,
      label: `${now.metric} over ${byStep ? "step" : now.x}`,
      head: (x) => (byStep ? `${now.metric}, ${early(now.metric) ? "step" : "epoch"} ${x}` : `${now.metric}, ${format(x, 3)} s`),
    });
  };
  parts.push(draw);
}

// The range of the last three quarters of the lines that do not end far from most of the others.
function closeUp(lines, log) {
  const ends = lines.map((one) => one.points.findLast((p) => known(p.y))?.y);
  const usual = robustExtent(ends);
  if (!usual) return null;
  const near = lines.filter((_, i) => ends[i] >= usual[0] && ends[i] <= usual[1]);
  return extent(
    near
      .flatMap((one) => one.points.slice(Math.floor(one.points.length / 4)))
      .flatMap((p) => [p.y, p.least, p.most]),
    { log },
  );
}

// Whether it was measured before training, by an initializer, in steps of its own.
const early = (metric) => metric.startsWith("pretrain/");

// The mean over a variant's runs at each step. From where it diverged, a run counts as a guess would.
function curveOf(v, { metric, band: kind, x }) {
  const { curves } = data;
  const mine = curves.runs.flatMap((run, i) => (run.v === v ? [i] : []));
  const guess = curves.guess[metric];
  const before = early(metric);
  const steps = before ? curves.steps : curves.steps.slice(0, curves.epochs);
  const xAt = (s) => (before || x === "step" ? curves.steps[s] : (curves.seconds[v]?.[s] ?? null));
  const counted = (i, s) =>
    known(guess) && curves.runs[i].lost !== null && s >= curves.runs[i].lost
      ? guess
      : curves.values[metric][i][s];
  const points = steps
    .map((_, s) => {
      const values = mine.map((i) => counted(i, s)).filter(known);
      return { x: xAt(s), ...summary(values, kind, mine.length) };
    })
    .filter((p) => known(p.x) && (!before || known(p.y)));
  const thin =
    kind === "runs" && mine.length > 1
      ? mine.map((i) => steps.map((_, s) => [xAt(s), counted(i, s)]).filter(([px]) => known(px)))
      : [];
  const ends = mine
    .filter((i) => !before && curves.runs[i].lost !== null && known(xAt(curves.runs[i].lost)))
    .map((i) => ({ x: xAt(curves.runs[i].lost), y: counted(i, curves.runs[i].lost) }));
  return { v, name: variants[v].name, style: styleOf(v), points, thin, ends };
}

function summary(values, kind, whole) {
  const n = values.length;
  if (!n) return { y: null };
  const y = values.reduce((a, b) => a + b, 0) / n;
  const some = n < whole ? ` (${n} of ${whole} runs)` : "";
  if (n < 2) return { y, text: format(y) + some };
  const [least, most] = [Math.min(...values), Math.max(...values)];
  if (kind === "range") {
    return { y, low: least, high: most, text: `${format(y)} (${format(least)} to ${format(most)})${some}` };
  }
  const half = data.interval[n] * Math.sqrt(values.reduce((a, b) => a + (b - y) ** 2, 0) / (n - 1));
  const text = `${format(y)} ± ${twoDigits(half)}${some}`;
  return kind === "runs" ? { y, text } : { y, low: y - half, high: y + half, least, most, text };
}
