// The page as a whole: its theme, its width, paper; and everything is drawn.

// Light and dark: the system's choice until the button is used; kept where the browser allows it.

function theme() {
  const root = document.documentElement,
    button = document.getElementById("theme");
  const dark = () =>
    (root.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) ===
    "dark";
  const keep = (value) => {
    try {
      value ? localStorage.setItem("fanin-theme", value) : 0;
      return localStorage.getItem("fanin-theme");
    } catch {
      return value;
    }
  };
  const label = () => {
    button.textContent = dark() ? "light" : "dark";
    button.title = `show the page ${button.textContent}`;
  };
  root.style.colorScheme = keep() ?? "";
  button.addEventListener("click", () => {
    root.style.colorScheme = dark() ? "light" : "dark";
    keep(root.style.colorScheme);
    label();
  });
  button.hidden = false;
  label();
}

// Plots are drawn for a width in pixels: again when it changes, and for paper at the width of a page.

function fit() {
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) {
      width = innerWidth;
      render();
    }
  });
  addEventListener("beforeprint", () => {
    document.body.classList.add("paper");
    document.querySelectorAll("details").forEach((one) => {
      one.dataset.was = one.open;
      one.open = true;
    });
    render();
  });
  addEventListener("afterprint", () => {
    document.body.classList.remove("paper");
    document.querySelectorAll("details").forEach((one) => {
      one.open = one.dataset.was === "true";
    });
    render();
  });
}

document.documentElement.classList.add("js");
document.head.append(spotlight);
document.body.append(tip);
theme();
legend();
for (const section of [
  leaderboardSection,
  curveSection,
  heatSection,
  parallelSection,
  sliceSection,
  budgetSection,
  depthSection,
  epochSection,
  weightSection,
])
  section();
render();
fit();
