// What a budget buys: the expected best of n variants.

function budgetSection() {
  const place = box("budget");
  if (!place) return;
  const keys = Object.keys(data.budget);
  const longest = keys.slice(1).sort((a, b) => data.budget[b].length - data.budget[a].length)[0];
  const now = { key: longest ?? keys[0], x: "n" };
  const draw = () => {
    controls(
      "budget",
      keys.length > 1
        ? choose(
            "by",
            keys.map((key) => [key, key === "none" ? "all together" : key]),
            now.key,
            (key) => {
              now.key = key;
              draw();
            },
          )
        : null,
      choose(
        "x",
        [
          ["n", "variants tried"],
          ["seconds", "seconds"],
        ],
        now.x,
        (key) => {
          now.x = key;
          draw();
        },
      ),
    );
    const lines = data.budget[now.key].map(({ name, expected, seconds }, i) => ({
      name,
      style: { color: `var(--c${i % COLORS})`, dash: null },
      points: expected.map((y, n) => ({ x: now.x === "n" ? n + 1 : seconds[n], y })),
    }));
    linePlot(place, {
      lines,
      x: { title: now.x === "n" ? "variants tried" : "seconds of training", whole: now.x === "n" },
      y: { log: false },
      height: 280,
      label: `expected best ${data.metric} against the number of variants tried`,
      head: (x) => `expected best, ${now.x === "n" ? `${x} tried` : `${format(x, 3)} s`}`,
    });
    const names = lines.map((one) => element("span", { class: "control" }, swatch(one.style), one.name));
    document.querySelector('[data-caption="budget"]').replaceChildren(...(lines.length > 1 ? names : []));
  };
  parts.push(draw);
}
