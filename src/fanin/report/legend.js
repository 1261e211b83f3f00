// What is shown in which colour: the data, the state of the page, its legend and controls.

const data = JSON.parse(document.getElementById("data").textContent);
const { variants, axes } = data;
const FEW = 12,
  BEST = 8,
  COLORS = 8,
  DASHES = [null, "7 4", "2 4"];
const all = variants.map((_, v) => v);
const box = (name) => document.querySelector(`[data-plot="${name}"]`);
const parts = [];
const render = () => parts.forEach((draw) => draw());

// State: which variants are shown, and the slot of the palette that each of them holds while it is.

const state = {
  shown: new Set(all.length > FEW ? all.slice(0, BEST) : all),
  paint: paintFirst(),
  context: all.length > FEW,
};
const slots = new Map([...state.shown].map((v, i) => [v, i]));

function paintFirst() {
  const fits = axes.length === 2 && all.length <= 24 && axes.every((axis) => axis.names && !axis.number);
  if (!fits) return -1;
  const longer = axes[0].names.length >= axes[1].names.length ? 0 : 1;
  return axes[longer].names.length <= COLORS && axes[1 - longer].names.length <= DASHES.length ? longer : -1;
}

function show(wanted) {
  state.shown = new Set(all.filter((v) => wanted.has(v)));
  for (const v of slots.keys()) if (!state.shown.has(v)) slots.delete(v);
  const taken = new Set(slots.values());
  let free = 0;
  for (const v of state.shown) {
    if (slots.has(v)) continue;
    while (taken.has(free)) free++;
    taken.add(free);
    slots.set(v, free);
  }
  render();
}

const ramp = (share) => {
  const i = Math.min(3, Math.floor(share * 4));
  return `color-mix(in oklab, var(--r${i}), var(--r${i + 1}) ${((share * 4 - i) * 100).toFixed(0)}%)`;
};

function shareOn(axis, v) {
  const by = axis.log ? Math.log10 : (value) => value;
  const values = axis.value.filter(known).map(by);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return known(axis.value[v]) ? (by(axis.value[v]) - low) / (high - low || 1) : null;
}

function styleOf(v) {
  const axis = axes[state.paint];
  if (!axis) {
    if (!slots.has(v)) return { color: "var(--soft)", dash: null };
    return {
      color: `var(--c${slots.get(v) % COLORS})`,
      dash: DASHES[Math.floor(slots.get(v) / COLORS) % DASHES.length],
    };
  }
  if (axis.number) {
    const share = shareOn(axis, v);
    return { color: share === null ? "var(--soft)" : ramp(share), dash: null };
  }
  const other = axes.find((one, i) => i !== state.paint && !one.number && one.names.length <= DASHES.length);
  const level = axis.level[v] ?? 0;
  return {
    color: `var(--c${level % COLORS})`,
    dash: DASHES[other ? (other.level[v] ?? 0) : Math.floor(level / COLORS) % DASHES.length],
  };
}

// Controls: a few short options side by side, more or longer ones in a list.

function choose(label, options, value, on) {
  if (options.length > 4 || options.reduce((sum, [, name]) => sum + name.length, 0) > 36) {
    const list = element(
      "select",
      { onchange: (event) => on(options[event.target.selectedIndex][0]) },
      ...options.map(([key, name]) => element("option", { selected: key === value ? "" : null }, name)),
    );
    return element("label", { class: "control" }, element("span", {}, label), list);
  }
  const buttons = options.map(([key, name]) =>
    element(
      "button",
      {
        type: "button",
        "aria-pressed": String(key === value),
        "data-set": `${label}=${key}`,
        onclick: () => {
          buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(options[i][0] === key)));
          on(key);
        },
      },
      name,
    ),
  );
  return element(
    "span",
    { class: "control" },
    element("span", {}, label),
    element("span", { class: "segments" }, ...buttons),
  );
}

function controls(name, ...made) {
  const save = box(name)?.classList.contains("plot") ? saveButton(() => box(name), name) : null;
  document.querySelector(`[data-controls="${name}"]`)?.replaceChildren(...[...made, save].filter(Boolean));
}

// The legend, which stays in view: click toggles a variant, shift-click shows it alone.

function legend() {
  const bar = document.getElementById("legend");
  if (!bar || all.length < 2) return;
  let open = false,
    wanted = "";
  const chips = element("div", { class: "chips" });
  const search = element("input", {
    type: "search",
    placeholder: "filter",
    "aria-label": "filter variants",
    oninput: (event) => {
      wanted = event.target.value.toLowerCase();
      paint();
    },
  });
  const more = element("button", {
    type: "button",
    onclick: () => {
      open = !open;
      wanted = search.value = "";
      paint();
    },
  });
  const paint = () => {
    const listed = open
      ? all.filter((v) => variants[v].name.toLowerCase().includes(wanted))
      : all.length > FEW
        ? [...state.shown].slice(0, FEW)
        : all;
    chips.replaceChildren(...listed.map(chip));
    bar.classList.toggle("open", open);
    more.textContent = open ? "close" : `choose among ${all.length}…`;
    more.hidden = all.length <= FEW;
    search.hidden = !open;
  };
  const painted = [[-1, "variant"], ...axes.map((axis, i) => [i, axis.key])];
  bar.append(
    chips,
    element(
      "div",
      { class: "tools" },
      search,
      more,
      ...[
        ["all", all],
        [`best ${BEST}`, all.slice(0, BEST)],
        ["none", []],
      ]
        .filter(([name]) => all.length > BEST || name !== `best ${BEST}`)
        .map(([name, some]) =>
          element(
            "button",
            { type: "button", "data-set": `show=${name}`, onclick: () => show(new Set(some)) },
            name,
          ),
        ),
      axes.length > 1
        ? choose("colour", painted, state.paint, (i) => {
            state.paint = i;
            render();
          })
        : null,
    ),
  );
  bar.hidden = false;
  parts.push(paint);
}

function chip(v) {
  return element(
    "button",
    {
      type: "button",
      class: "chip",
      "data-v": v,
      "aria-pressed": String(state.shown.has(v)),
      title: "click: show or hide; shift-click: show only this one",
      onclick: (event) => {
        const shown = new Set(event.shiftKey ? [v] : state.shown);
        if (!event.shiftKey) state.shown.has(v) ? shown.delete(v) : shown.add(v);
        show(shown);
      },
      onpointerenter: () => focus(v),
      onpointerleave: () => focus(null),
    },
    swatch(styleOf(v)),
    cut(variants[v].name, 48),
  );
}
