// The sections on the swept factors: heat map, parallel coordinates, one factor at a time.

// The values of a number that took few, as ticks.
const levelsOf = (axis) =>
  axis.number && axis.names ? axis.names.map((name, i) => [axis.value[axis.level.indexOf(i)], name]) : null;

function heatSection() {
  if (!box("heat")) return;
  const now = { pair: 0, how: "mean" };
  const draw = () => {
    const [across, down] = data.grids[now.pair].map((i) => axes[i]);
    const best = data.direction === "maximize" ? Math.max : Math.min;
    const groups = new Map();
    for (const v of all) {
      if (!known(variants[v].mean) || !known(across.level[v]) || !known(down.level[v])) continue;
      const key = down.level[v] * across.names.length + across.level[v];
      groups.set(key, [...(groups.get(key) ?? []), v]);
    }
    const cells = down.names.flatMap((_, row) =>
      across.names.map((_, column) => {
        const inside = groups.get(row * across.names.length + column) ?? [];
        const means = inside.map((v) => variants[v].mean);
        const value = !means.length
          ? null
          : now.how === "best"
            ? best(...means)
            : means.reduce((a, b) => a + b, 0) / means.length;
        const head = `${down.key} = ${down.names[row]}, ${across.key} = ${across.names[column]}`;
        const single = inside.length === 1 ? variants[inside[0]] : null;
        const rows = [
          { name: data.metric, value: single?.text ?? format(value), strong: true },
          single ? null : { name: `${now.how} of ${inside.length} variants` },
        ];
        const text = known(value)
          ? data.decimals === null
            ? format(value, 3)
            : value.toFixed(data.decimals)
          : "";
        return {
          row,
          column,
          value,
          text,
          half: single?.text.match(/±.*/)?.[0],
          head,
          rows: rows.filter(Boolean),
          v: single ? inside[0] : undefined,
        };
      }),
    );
    controls(
      "heat",
      data.grids.length > 1
        ? choose(
            "grid",
            data.grids.map(([a, d], i) => [i, `${axes[d].key} × ${axes[a].key}`]),
            now.pair,
            (key) => {
              now.pair = key;
              draw();
            },
          )
        : null,
      axes.length > 2
        ? choose(
            "cell",
            [
              ["mean", "mean"],
              ["best", "best"],
            ],
            now.how,
            (key) => {
              now.how = key;
              draw();
            },
          )
        : null,
    );
    heatPlot(box("heat"), {
      rows: down.names,
      columns: across.names,
      cells,
      domain: robustExtent(
        cells.map((cell) => cell.value),
        bestSide,
      ) ?? [0, 1],
      label: `${data.metric} by ${down.key} and ${across.key}`,
    });
    document.querySelector('[data-caption="heat"]').textContent = `down: ${down.key} · across: ${across.key}`;
  };
  parts.push(draw);
}

function parallelSection() {
  if (!box("parallel")) return;
  const domain = robustExtent(all.map(scoreOf), bestSide);
  if (!domain) return nothing(box("parallel"), "No run has a value yet.");
  const clamp = (value) => (known(value) ? Math.min(domain[1], Math.max(domain[0], value)) : null);
  const span = axes.map((axis) => ({
    title: axis.key,
    names: axis.number ? null : axis.names,
    domain: extent(axis.value, { log: axis.log }),
    log: axis.log,
    levels: levelsOf(axis),
    of: (v) => axis.value[v],
  }));
  const brushes = span.map(() => null).concat(null);
  const now = { paint: "metric" };
  const draw = () => {
    controls(
      "parallel",
      choose(
        "lines",
        [
          ["metric", `by ${data.metric}`],
          ["legend", "as in the legend"],
        ],
        now.paint,
        (key) => {
          now.paint = key;
          draw();
        },
      ),
    );
    const better = (v) => (clamp(scoreOf(v)) - domain[0]) / (domain[1] - domain[0]);
    const color = (v) =>
      now.paint === "legend"
        ? styleOf(v).color
        : ramp(data.direction === "maximize" ? better(v) : 1 - better(v));
    const lines = all
      .filter((v) => known(scoreOf(v)))
      .map((v) => ({ v, style: { color: color(v) }, hollow: !known(variants[v].mean) }))
      .reverse();
    parallelPlot(box("parallel"), {
      axes: [...span, { title: data.metric, domain, of: (v) => clamp(scoreOf(v)) }],
      lines,
      brushes,
      tell: facts,
      label: "parallel coordinates of the swept keys and the metric",
      report: (count, some) => {
        document.querySelector('[data-caption="parallel"]').textContent = some
          ? `${count} of ${lines.length} variants selected`
          : "";
      },
    });
  };
  parts.push(draw);
}

function sliceSection() {
  const place = box("slices");
  if (!place) return;
  const domain = robustExtent(all.map(scoreOf), bestSide);
  const panels = axes.map((axis) => ({ axis, figure: panel(place, axis.key) }));
  const seconds = { key: "seconds", number: true, value: variants.map((one) => one.seconds), log: false };
  panels.push({ axis: seconds, figure: panel(place, "seconds of a run: what it costs") });
  parts.push(() =>
    panels.forEach(({ axis, figure }) => {
      const shift = (v) => (axis.number ? 0 : (((v * 7) % 9) - 4) * 2.2);
      const points = all.map((v) => ({
        v,
        x: axis.value[v],
        y: scoreOf(v),
        shift: shift(v),
        hollow: !known(variants[v].mean),
        style: styleOf(v),
      }));
      const levels =
        axis.number || !data.grids.length
          ? []
          : axis.names
              .map((_, x) => ({ x, of: all.filter((v) => axis.value[v] === x && known(variants[v].mean)) }))
              .filter(({ of }) => of.length > 1);
      const means = levels.map(({ x, of }) => ({
        x,
        y: of.reduce((sum, v) => sum + variants[v].mean, 0) / of.length,
      }));
      dotPlot(figure, {
        points,
        means,
        domain,
        x: { log: axis.log, levels: levelsOf(axis) },
        names: axis.number ? null : axis.names,
        tell: ({ v }) => facts(v),
        label: `${data.metric} by ${axis.key}`,
      });
    }),
  );
}

function panel(place, title) {
  place.querySelector(".missing")?.remove();
  const figure = element("div", { class: "plot" });
  place.append(
    element(
      "figure",
      {},
      element(
        "figcaption",
        {},
        title,
        saveButton(() => figure, title),
      ),
      figure,
    ),
  );
  return figure;
}
