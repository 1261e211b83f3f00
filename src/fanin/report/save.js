// A figure as an SVG file for papers and slides: with the colours it has now, and without this page's styles.

const KEPT = [
  ...["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "stroke-linecap"],
  ...["opacity", "visibility", "paint-order", "font-size", "font-weight", "font-family"],
];

function saveButton(find, name) {
  const save = () => {
    const drawn = find().querySelector("svg");
    if (drawn) download(standalone(drawn), `${name.replace(/[^\w.-]+/g, "_")}.svg`);
  };
  return element(
    "button",
    { type: "button", class: "save", title: "save this figure", onclick: save },
    "SVG",
  );
}

function standalone(drawn) {
  const copy = drawn.cloneNode(true);
  const [before, after] = [drawn, copy].map((root) => [root, ...root.querySelectorAll("*")]);
  before.forEach((from, i) => {
    const style = getComputedStyle(from);
    for (const key of KEPT) after[i].style.setProperty(key, plainColor(style.getPropertyValue(key)));
  });
  const { width, height } = drawn.viewBox.baseVal;
  for (const [key, value] of Object.entries({ xmlns: SVG, width, height })) copy.setAttribute(key, value);
  copy.style.background = plainColor(getComputedStyle(document.body).backgroundColor);
  return new XMLSerializer().serializeToString(copy);
}

// Mixed colours as #rrggbb, the only kind that every program reads.
function plainColor(value) {
  if (!/^(oklab|color|oklch)\(/.test(value)) return value;
  const context = document.createElement("canvas").getContext("2d");
  context.fillStyle = value;
  context.fillRect(0, 0, 1, 1);
  const parts = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  return `#${parts.map((part) => part.toString(16).padStart(2, "0")).join("")}`;
}

function download(text, name) {
  const address = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
