"""Pictures of MLflow's pages of a study, in docs/images/: its runs, its charts, its best runs compared.

    .venv/bin/pip install playwright        (needs Chromium or Chrome installed; it downloads no browser)
    .venv/bin/python tools/screenshot.py initializers

Visits the pages that `fanin ui` links to, on a server of its own over ./mlflow.db, and changes nothing there.
What it does by hand a visitor can do, too: close MLflow's banner and assistant, unfold the best group, choose
what is compared, and give the groups other colours (MLflow's are a hash of their names: some are alike).
"""

import argparse
import base64
import io
import json
import shutil
import sys
import zlib
from pathlib import Path
from urllib.parse import quote

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from fanin import ui, view
from fanin.query import About, about
from fanin.tracking import Tracker

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync --disable-component-update"
SIZE = (1400, 900)
SMALLER = 5 / 6  # of the page with the charts, so that all of them are in sight
SETTLED = 2_000  # milliseconds for animations to end
PATIENCE = 180_000  # milliseconds a page has to show what is waited for
SEEN = {  # what a visitor has once clicked away
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
    "mlflow.workflowType_v1": '"machine_learning"',
}
HIDDEN = "[data-assistant-ui] { display: none !important }"
COLOURS = ("#2272b4", "#de7921", "#277c43", "#c82d4c", "#8a63bf", "#facb66", "#04867d", "#f792a6", "#5f7281")
RUNS = "document.querySelector('.ag-center-cols-container .ag-row .ag-cell')?.innerText"
UNFOLD = ".ag-pinned-left-cols-container [row-index='0'] span[role=button]"
CURVES = "document.querySelectorAll('.js-plotly-plot:has(.scatterlayer .trace)').length >= 3"
COORDINATES = "document.querySelector('.parcoords')"


def remember(page: Page, items: dict[str, str]) -> None:
    """Put `items` into the browser's local storage before any page loads."""
    page.add_init_script(f"for (const [k, v] of Object.entries({json.dumps(items)})) localStorage.setItem(k, v)")


def visit(page: Page, url: str, *, ready: str) -> None:
    """Open `url` and wait until `ready` is true: MLflow keeps connections open, silence never comes."""
    page.goto("about:blank")  # the addresses differ after the # only: nothing would be loaded anew
    page.goto(url)
    page.wait_for_function(ready, timeout=PATIENCE)
    banner = page.get_by_label("Hide banner")
    if banner.count():
        banner.click()
    page.wait_for_timeout(SETTLED)


def shoot(page: Page, path: Path) -> None:
    page.add_style_tag(content=HIDDEN)
    page.mouse.move(0, 0)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")  # no alpha, packed well: half the size
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)
    print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size // 1000} kB")


def choose(page: Page, *, params: list[str], metrics: list[str]) -> None:
    """Show these on the comparison page, and not what MLflow chose."""
    page.get_by_test_id("clear-button").click()
    for box, names in zip(page.get_by_role("combobox").all(), (params, metrics), strict=False):
        for name in names:  # the list is long: typing brings the name in sight
            box.click(force=True)
            box.fill(name)
            page.locator(f"[class*=select-item-option][title='{name}']").click()
        page.keyboard.press("Escape")
    page.wait_for_timeout(SETTLED)


def find_groups(page: Page, server: str, experiment: str) -> list[str]:
    """MLflow's names of the groups on the arranged page."""
    answer = page.request.get(f"{server}/api/2.0/mlflow/experiments/get?experiment_id={experiment}").json()
    tags = {tag["key"]: tag["value"] for tag in answer["experiment"]["tags"]}
    packed = tags[view.TAG].removeprefix("deflate;")
    return list(json.loads(zlib.decompress(base64.b64decode(packed)))["groupsExpanded"])


def find_best(page: Page, server: str, experiment: str, asked: About, *, count: int) -> list[str]:
    """Ids of the best `count` runs."""
    query = {
        "experiment_ids": [experiment],
        "filter": "tags.`fanin.variant` != ''",
        "order_by": [f"metrics.`{asked.metric}` {'ASC' if asked.direction == 'minimize' else 'DESC'}"],
        "max_results": count,
    }
    answer = page.request.post(f"{server}/api/2.0/mlflow/runs/search", data=query)
    return [run["info"]["run_id"] for run in answer.json()["runs"]]


def open_page(browser: Browser, *, zoom: float = 1.0) -> Page:
    """A new visitor's page, with pictures of SIZE."""
    window: ViewportSize = {"width": round(SIZE[0] / zoom), "height": round(SIZE[1] / zoom)}
    page = browser.new_page(viewport=window, device_scale_factor=zoom)
    remember(page, SEEN)
    return page


def picture_study(browser: Browser, server: str, options: argparse.Namespace) -> None:
    charts = Tracker().page(options.study, server=server)
    experiment = charts.partition("experiments/")[2].partition("/")[0]
    page, small = open_page(browser), open_page(browser, zoom=SMALLER)
    groups = find_groups(page, server, experiment)
    colours = {group: COLOURS[number % len(COLOURS)] for number, group in enumerate(groups)}
    for each in (page, small):
        remember(each, {"experimentRunColors": json.dumps(colours)})

    visit(page, charts.replace("compareRunsMode=CHART", ""), ready=RUNS)
    if groups:
        page.locator(UNFOLD).click()
        page.wait_for_timeout(SETTLED)
    shoot(page, options.to / f"{options.study}-runs.png")

    visit(small, charts, ready=CURVES)
    shoot(small, options.to / f"{options.study}-charts.png")

    asked = about(options.study)
    best = quote(json.dumps(find_best(page, server, experiment, asked, count=options.count)))
    compared = f"{server}/#/compare-runs?runs={best}&experiments=[%22{experiment}%22]"
    visit(page, compared, ready=COORDINATES)
    choose(page, params=list(asked.swept), metrics=[*options.beside, asked.metric])
    shoot(page, options.to / f"{options.study}-compared.png")


def main() -> None:
    parser = argparse.ArgumentParser(description="Pictures of MLflow's pages of a study.")
    parser.add_argument("study")
    parser.add_argument("--beside", nargs="*", default=["train/loss"], help="what to compare with the metric")
    parser.add_argument("--count", type=int, default=35, help="how many runs to compare")
    parser.add_argument("--to", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is installed")
    server = f"http://{ui.HOST}:{ui.check_port(0)}"
    with (
        ui.running(Tracker().uri, address=server),
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=browser, args=QUIET.split()) as chromium,
    ):
        picture_study(chromium, server, options)


if __name__ == "__main__":
    main()
