// The sections on the layers: over the depth of the network, and over the epochs.

const DEPTH = [
  ["signal_forward_gain", "forward gain of the signal, layer by layer", true],
  ["signal_backward_gain", "backward gain of the gradient, layer by layer", true],
  ["signal_batch_backward_gain", "backward gain with batch norms as in training", true],
  ["grad_norm", "norm of the weight's gradient", true],
  ["activation_std", "standard deviation of the activations", true],
  ["activation_dead", "dead units (share)", false],
  ["activation_saturated", "saturated activations (share)", false],
];
const TITLES = Object.fromEntries([
  ...DEPTH.map(([key, title]) => [key, title]),
  ["update_ratio", "update ratio: step / weights"],
  ["weight_std", "weights: standard deviation"],
  ["weight_absmax", "weights: largest magnitude"],
  ["weight_spectral_norm", "weights: spectral norm"],
  ["weight_stable_rank", "weights: stable rank"],
  ["activation_mean", "mean of the activations"],
  ["activation_drift", "drift of what enters the activation, in units of its spread"],
  ["grad_covariate_shift", "covariate shift of the gradient"],
  ["grad_covariate_shift_cosine", "gradient before and after the layers below moved: cosine"],
]);

// Where a variant's layers lie: its own first is 1, whatever the other variants have.
const layersOf = (v) => data.layers.of?.[v] ?? data.layers.names.map((_, i) => i);

function depthSection() {
  const place = box("depth");
  if (!place) return;
  const { layers } = data;
  // as deep as the deepest variant shown
  const places = () =>
    Array.from({ length: Math.max(0, ...[...state.shown].map((v) => layersOf(v).length)) }, (_, i) => String(i + 1));
  const rows = DEPTH.filter(([key]) => layers.after[key]).map(([key, title, log]) => ({
    key,
    log,
    figures: [panel(place, `${title}: at initialization`), panel(place, `${title}: after training`)],
  }));
  const now = { log: true };
  const draw = () => {
    controls(
      "depth",
      choose(
        "y",
        [
          [true, "log"],
          [false, "linear"],
        ],
        now.log,
        (key) => {
          now.log = key;
          draw();
        },
      ),
    );
    const names = layers.of ? places() : layers.names;
    for (const { key, log, figures } of rows) {
      const both = [
        layers.steps[0] === 0 ? all.map((v) => layers.over[key]?.[v]?.[0]) : [],
        layers.after[key],
      ];
      const sides = both.map((values) => [...state.shown].map((v) => depthLine(v, values[v])));
      const everywhere = sides.flat().flatMap((one) => one.points.map((p) => p.y));
      const flat = everywhere.length && everywhere.every((y) => y === everywhere[0]);
      figures.forEach((figure) => figure.closest("figure").classList.toggle("flat", Boolean(flat)));
      if (flat) {
        figures.forEach((figure) =>
          nothing(figure, `${format(everywhere[0])} in every layer of every variant shown`),
        );
        continue;
      }
      const domain = log ? extent(everywhere, { log: now.log }) : [-0.02, 1.02];
      sides.forEach((lines, i) =>
        linePlot(figures[i], {
          lines,
          height: 190,
          x: { names },
          y: { log: log && now.log, domain: lines.some((one) => one.points.length) ? domain : null },
          rules:
            key.endsWith("gain") && domain && domain[0] < 1 && domain[1] > 1
              ? [{ y: 1, text: "1: preserved" }]
              : [],
          label: `${TITLES[key]}, ${i ? "after training" : "at initialization"}`,
          head: (index) => (layers.of ? `layer ${index + 1}` : names[index]),
        }),
      );
    }
  };
  parts.push(draw);
}

function depthLine(v, values) {
  const points = layersOf(v)
    .map((layer, x) => ({ x, y: values?.[layer] ?? null }))
    .filter((p) => known(p.y));
  return { v, name: variants[v].name, style: styleOf(v), points };
}

function epochSection() {
  const place = box("epochs");
  if (!place) return;
  const { layers } = data;
  const keys = Object.keys(TITLES).filter((key) => layers.over[key]);
  const now = { key: keys.includes("update_ratio") ? "update_ratio" : keys[0], log: null, from: 0 };
  const most = 6;
  // of the layers of the variants shown, all or some from the first to the last
  const pick = () => {
    const there = [...new Set([...state.shown].flatMap(layersOf))].sort((a, b) => a - b);
    if (there.length <= most) return there;
    return Array.from({ length: most }, (_, i) => there[Math.round((i * (there.length - 1)) / (most - 1))]);
  };
  let figures = [];
  const arrange = (picked) => {
    if (picked.join() === figures.map(([layer]) => layer).join()) return;
    nothing(place, "No variant is shown.");
    figures = picked.map((layer) => [layer, panel(place, layers.names[layer])]);
  };
  const draw = () => {
    arrange(pick());
    const log = now.log ?? !/dead|saturated|mean|rank|cosine/.test(now.key);
    controls(
      "epochs",
      choose(
        "statistic",
        keys.map((key) => [key, TITLES[key]]),
        now.key,
        (key) => {
          now.key = key;
          now.log = null;
          draw();
        },
      ),
      choose(
        "y",
        [
          [false, "linear"],
          [true, "log"],
        ],
        log,
        (key) => {
          now.log = key;
          draw();
        },
      ),
    );
    const lines = figures.map(([layer]) =>
      [...state.shown].map((v) => ({
        v,
        name: variants[v].name,
        style: styleOf(v),
        points: layers.steps.map((x, s) => ({ x, y: layers.over[now.key][v]?.[s]?.[layer] ?? null })),
      })),
    );
    const domain = extent(
      lines.flat().flatMap((one) => one.points.map((p) => p.y)),
      { log },
    );
    const rules =
      now.key === "update_ratio" && domain && domain[0] < 1e-3 && domain[1] > 1e-3
        ? [{ y: 1e-3, text: "0.001: a rule of thumb" }]
        : [];
    figures.forEach(([layer, figure], i) =>
      linePlot(figure, {
        lines: lines[i],
        height: 200,
        x: { title: "epoch", whole: true },
        y: { log, domain },
        rules,
        label: `${TITLES[now.key]} of ${layers.names[layer]} over epochs`,
        head: (x) => `${layers.names[layer]}, epoch ${x}`,
      }),
    );
  };
  parts.push(draw);
}
