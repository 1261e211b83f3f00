"""Pictures of MLflow's pages of a study, in docs/images/: its runs, its charts, its best runs compared.

    .venv/bin/pip install playwright        (needs Chromium or Chrome installed; it downloads no browser)
    .venv/bin/python tools/screenshot.py initializers --by initializer --metric val/accuracy

Reads ./mlflow.db through a server of its own on a free port; changes nothing in it.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

from playwright.sync_api import Page, sync_playwright

from fanin import view

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync --disable-component-update"
SETTLED = 2_000  # milliseconds for animations to end
SEEN = {  # what a visitor has once clicked away
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
    "mlflow.workflowType_v1": '"machine_learning"',
}
LINES = ".js-plotly-plot .scatterlayer .trace"
ASSISTANT = "[data-assistant-ui] { display: none !important }"


@contextmanager
def serve(store: str) -> Iterator[str]:
    """An MLflow server over `store`; its address. Ended with all its workers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", *where]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    nowhere = subprocess.DEVNULL
    server = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=nowhere, stderr=nowhere
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/health", seconds=60)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(10)


def wait_for(url: str, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urlopen(url, timeout=2).close()
            return
        except (URLError, ConnectionError, TimeoutError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def find_experiment(page: Page, server: str, *, name: str) -> str:
    """The experiment's id."""
    answer = page.request.get(
        f"{server}/api/2.0/mlflow/experiments/get-by-name?experiment_name={quote(name)}"
    )
    if not answer.ok:
        sys.exit(f"no experiment {name!r} in ./mlflow.db: run `make sweep SWEEP={name}` first")
    return str(answer.json()["experiment"]["experiment_id"])


def find_best(
    page: Page, server: str, experiment: str, *, metric: str, direction: str, count: int
) -> list[str]:
    """Ids of the best `count` runs of the first replicate."""
    query = {
        "experiment_ids": [experiment],
        "filter": "tags.`fanin.replicate` = '0'",
        "order_by": [f"metrics.`{metric}` {'ASC' if direction == 'minimize' else 'DESC'}"],
        "max_results": count,
    }
    answer = page.request.post(f"{server}/api/2.0/mlflow/runs/search", data=query)
    return [run["info"]["run_id"] for run in answer.json()["runs"]]


def visit(page: Page, url: str, *, ready: str) -> None:
    """Open `url` and wait for the selector `ready`: MLflow keeps connections open, silence never comes."""
    page.goto("about:blank")  # the addresses differ after the # only: nothing would be loaded anew
    page.goto(url)
    page.locator(ready).last.wait_for()
    page.wait_for_timeout(SETTLED)


def shoot(page: Page, path: Path) -> None:
    page.add_style_tag(content=ASSISTANT)
    page.screenshot(path=path)
    print(path)


def choose_metric(page: Page, metric: str) -> None:
    """Show `metric` on the comparison page, and not the one MLflow chose."""
    metrics = page.get_by_role("combobox").nth(1)
    chosen = str(metrics.get_attribute("aria-description"))
    if chosen != metric:
        metrics.click(force=True)
        for name in (metric, chosen):  # the list is long: typing brings the name in sight
            metrics.fill(name)
            page.locator(f"[class*=select-item-option][title='{name}']").click()
        page.keyboard.press("Escape")
        page.wait_for_timeout(SETTLED)


def remember(page: Page, items: dict[str, str]) -> None:
    """Put `items` into the browser's local storage before any page loads."""
    page.add_init_script(
        f"for (const [k, v] of Object.entries({json.dumps(items)})) localStorage.setItem(k, v)"
    )


def picture_study(page: Page, server: str, options: argparse.Namespace) -> None:
    experiment = find_experiment(page, server, name=options.study)
    arranged = view.arrange(options.by, metric=options.metric, direction=options.direction)
    key = f'MLflowLocalStorage-1.1-ExperimentPage-["{experiment}"]-ReactComponentState'
    remember(page, {**SEEN, key: json.dumps(arranged)})
    ask = {"metric": options.metric, "direction": options.direction, "count": options.count}
    best = quote(json.dumps(find_best(page, server, experiment, **ask)))
    options.to.mkdir(parents=True, exist_ok=True)

    runs = f"{server}/#/experiments/{experiment}/runs"
    visit(page, runs, ready="text=matching runs")
    shoot(page, options.to / f"{options.study}-runs.png")

    visit(page, f"{runs}?compareRunsMode=CHART", ready=f"{LINES} >> nth={len(options.by)}")
    shoot(page, options.to / f"{options.study}-charts.png")

    visit(page, f"{server}/#/compare-runs?runs={best}&experiments=[%22{experiment}%22]", ready=".parcoords")
    choose_metric(page, options.metric)
    shoot(page, options.to / f"{options.study}-compared.png")


def main() -> None:
    parser = argparse.ArgumentParser(description="Pictures of MLflow's pages of a study.")
    parser.add_argument("study")
    parser.add_argument("--by", nargs="+", default=["initializer"], help="the params the study varies")
    parser.add_argument("--metric", default="val/accuracy")
    parser.add_argument("--direction", default="maximize", choices=["maximize", "minimize"])
    parser.add_argument("--count", type=int, default=6, help="how many runs to compare")
    parser.add_argument("--to", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is installed")
    with serve("sqlite:///mlflow.db") as server, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=QUIET.split())
        picture_study(chromium.new_page(viewport={"width": 1400, "height": 900}), server, options)
        chromium.close()


if __name__ == "__main__":
    main()
