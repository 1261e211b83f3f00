// The weights' distribution over the epochs, of one variant at a time.

function weightSection() {
  const place = box("weights");
  if (!place) return;
  const { bins, of } = data.weights;
  const there = Object.keys(of).map(Number);
  const most = 6,
    now = { v: there[0], log: false };
  const wide = Math.max(...there.map((v) => of[v].length));
  const figures = Array.from({ length: Math.min(most, wide) }, () => panel(place, ""));
  const draw = () => {
    controls(
      "weights",
      choose(
        "variant",
        there.map((v) => [v, variants[v].name]),
        now.v,
        (v) => {
          now.v = v;
          draw();
        },
      ),
      choose(
        "y",
        [
          [false, "linear"],
          [true, "log"],
        ],
        now.log,
        (key) => {
          now.log = key;
          draw();
        },
      ),
    );
    const layers = evenly(of[now.v], most);
    figures.forEach((figure, i) => {
      figure.closest("figure").hidden = !layers[i];
      if (layers[i]) drawWeights(figure, layers[i], bins, now);
    });
  };
  parts.push(draw);
}

const evenly = (many, most) =>
  many.length <= most
    ? many
    : Array.from({ length: most }, (_, i) => many[Math.round((i * (many.length - 1)) / (most - 1))]);

function drawWeights(figure, layer, bins, now) {
  figure.closest("figure").querySelector("figcaption").firstChild.textContent = layer.name;
  if (!layer.bound) return nothing(figure, "All weights are 0, in every epoch.");
  const { steps, rows, bound } = layer;
  const at = (bin) => bound * (((bin + 0.5) * 2) / bins - 1);
  const lines = rows.map((row, s) => ({
    name: `epoch ${steps[s]}`,
    style: { color: ramp(steps.length > 1 ? s / (steps.length - 1) : 1), dash: null },
    points: row.map((y, bin) => ({ x: at(bin), y: now.log && !y ? null : y })),
  }));
  linePlot(figure, {
    lines,
    height: 200,
    x: { title: "weight" },
    y: { log: now.log, domain: now.log ? null : [0, 1.05 * Math.max(...rows.flat())] },
    label: `weights of ${layer.name} of ${variants[now.v].name} over the epochs`,
    head: (x) => `${layer.name}: density at ${format(x, 3)}`,
  });
}
