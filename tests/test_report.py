"""The report: its numbers against pandas and scipy, and the page in a real browser."""

import html
import itertools
import json
import math
import re
import shutil
import subprocess
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy
import pandas
import pytest
from PIL import Image
from recorded import CONFIG, make_run, make_study, new_database, train
from scipy import stats

from fanin import query, report
from fanin.app import main
from fanin.comparison import compare
from fanin.errors import ConfigError
from fanin.histograms import HISTOGRAMS
from fanin.report import budget, figures, files, series, stills
from fanin.report.material import gather
from fanin.report.page import render
from fanin.shipping import sync
from fanin.spool import Spool
from fanin.tracking import Tracker, TrackingDown

ROOT = Path(__file__).parent.parent
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="neither Chromium nor Chrome is installed")

EVIL = "</script><script>alert('&amp;')</script>"
SWEPT = ["initializer", "optimizer.lr"]
POINTS = [(name, lr) for name in ("he_normal", EVIL) for lr in (0.1, 0.001)]
LAYERS = ("layers.0", "layers.2", "layers.10")
LAST, REPLICATES, CLASSES = 4, 3, 10
LOST = (3, 2)  # the variant and replicate that diverge, after epoch 1


SHAPES = {
    layer: {"epochs": [0, 4], "bounds": [1.0, 2.0], "counts": [[0] * 15 + [1, 1] + [0] * 15] * 2} for layer in LAYERS
}


def value(variant, replicate, epoch):
    """Of val/accuracy: the first variant is the best, the last the worst."""
    return 0.9 - 0.1 * variant + 0.01 * replicate**2 - 0.3 / (1 + epoch)


def layer_value(variant, replicate, epoch, layer):
    return (variant + 1) * 2.0**layer * (1 + epoch) * (1, 2, 9)[replicate]


def records(variant, replicate):
    def metrics(epoch):
        lost = (variant, replicate) == LOST and epoch == 2
        found = {
            "val/accuracy": math.nan if lost else value(variant, replicate, epoch),
            "val/loss": math.inf if lost else 2.0 / (1 + epoch),
            "diverged": float(lost),
            "seconds": 0.5 * epoch,
        }
        for i, layer in enumerate(LAYERS):
            found[f"weight/{layer}/std"] = found[f"signal/{layer}/forward_gain"] = layer_value(
                variant, replicate, epoch, i
            )
        return found

    return metrics


def declare(project, **fields):
    tags = {"fanin.git": "abc123+changes", "fanin.versions": '{"torch": "2.13.0"}'}
    tags["fanin.command"] = "fanin sweep demo tracking.uri=https://me:secret@example.test"
    fields = {"question": "Is <b> & so on better?", "swept": SWEPT, "metric": "val/accuracy"} | fields
    return make_study(project, "demo", direction="maximize", tags=tags, **fields)


def run_of(study, variant, replicate):
    name, lr = POINTS[variant]
    config = CONFIG | {"optimizer": CONFIG["optimizer"] | {"lr": lr}, "data": {"classes": CLASSES}}
    return make_run(study, variant=f"v{variant}", replicate=replicate, config=config, initializer=name)


def end_study(study):
    with Spool(study.spool) as spool:
        spool.append("end", time=99_000, status="FINISHED", reason="done", metrics={}, step=0)


def ship(project):
    new_database(project / "mlflow.db")
    with Spool(project / ".fanin/demo/spool.jsonl"):  # its coordinator lives
        sync(project, tracker=Tracker(project=project, uri="sqlite:///mlflow.db"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A grid of 2 x 2 variants with 3 replicates, one run of which diverged; with its report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        project = tmp_path_factory.mktemp("finished")
        study = declare(project)
        for variant in range(len(POINTS)):
            for replicate in range(REPLICATES):
                folder = run_of(study, variant, replicate)
                clock = 10_000 + 1_000 * (variant + len(POINTS) * replicate)
                folder.artifacts.mkdir(parents=True)
                (folder.artifacts / HISTOGRAMS).write_text(json.dumps(SHAPES))
                if (variant, replicate) == LOST:
                    train(folder, last=2, clock=clock, metrics=records(*LOST), reason="diverged")
                else:
                    train(folder, last=LAST, clock=clock, metrics=records(variant, replicate))
        end_study(study)
        ship(project)
        yield report.write("demo", project=project)


@pytest.fixture
def half(tmp_path, monkeypatch):
    """A study with a finished, a pruned, a failed and a running run, which goes on."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study = declare(tmp_path)
    train(run_of(study, 0, 0), metrics=records(0, 0))
    train(run_of(study, 1, 0), last=1, metrics=records(1, 0), end="KILLED", reason="pruned: median")
    train(run_of(study, 2, 0), last=0, metrics=records(2, 0), end="FAILED", reason="out of memory")
    train(run_of(study, 3, 0), last=1, metrics=records(3, 0), end=None)
    ship(tmp_path)
    return tmp_path


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    declare(tmp_path)
    ship(tmp_path)
    return tmp_path


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """Runs that have recorded nothing but a result, as a foreign program's: no epochs, no layers."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study = declare(tmp_path, metric="test/accuracy")
    for variant in range(2):
        train(run_of(study, variant, 0), last=-1, step=0)
    end_study(study)
    ship(tmp_path)
    return tmp_path


def page(study, project):
    material = gather(study, project=project)
    return render(material, figures.draw(material))


def data_of(text):
    """What the page's script is given."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    return json.loads(found[1])


def section_of(text, key):
    return re.search(rf'<section id="{key}">(.*?)</section>', text, flags=re.DOTALL)[1]


def browse(path, script="null", *, width=1200):
    """What `script`, an expression, gives in the page after it is drawn, and what the console says."""
    copy = path.with_name("tried.html")
    ask = f"<script>document.title = JSON.stringify({script})</script></body>"
    copy.write_text(path.read_text().replace("</body>", ask))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    flags += " --disable-background-networking --disable-component-update --enable-logging=stderr"
    flags += f" --virtual-time-budget=2000 --window-size={width},900 --user-data-dir={path.parent}/browser"
    command = [BROWSER, *flags.split(), "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout, flags=re.DOTALL)[1]
    return json.loads(html.unescape(title)), re.findall(r"CONSOLE.*", done.stderr)


# Numbers


def test_means_and_intervals_are_those_of_scipy(finished):
    drawn = data_of(finished.path.read_text())
    for variant, found in enumerate(drawn["variants"]):
        values = [value(variant, r, LAST) for r in range(REPLICATES)]
        if variant == LOST[0]:
            values[LOST[1]] = 1 / CLASSES  # counts as a guess
        low, high = stats.t.interval(0.95, REPLICATES - 1, numpy.mean(values), stats.sem(values))
        assert found["mean"] == pytest.approx(numpy.mean(values), rel=1e-4)
        assert (found["low"], found["high"]) == pytest.approx((low, high), rel=1e-3)
        assert sorted(found["runs"]) == pytest.approx(sorted(values), rel=1e-4)


def test_every_point_of_every_curve_is_there(finished):
    drawn = data_of(finished.path.read_text())["curves"]
    assert drawn["steps"] == [0, 1, 2, 3, 4] and set(drawn["values"]) == {"val/accuracy", "val/loss"}
    seen = []
    for run, values in zip(drawn["runs"], drawn["values"]["val/accuracy"], strict=True):
        replicate = sum(one["v"] == run["v"] for one in seen)
        seen.append(run)
        lost = (run["v"], replicate) == LOST
        expected = [value(run["v"], replicate, epoch) for epoch in range(2 if lost else LAST + 1)]
        assert values[: len(expected)] == pytest.approx(expected, rel=1e-4)
        assert values[len(expected) :] == [None] * (LAST + 1 - len(expected))
        assert run["lost"] == (2 if lost else None)


def test_statistics_of_layers_are_medians_over_replicates_at_the_start_and_at_each_runs_end(finished):
    drawn = data_of(finished.path.read_text())["layers"]
    assert drawn["names"] == list(LAYERS)
    for variant in range(len(POINTS)):
        for i in range(len(LAYERS)):
            start = layer_value(variant, 1, 0, i)  # replicates 0, 1 and 2 have 1, 2 and 9 times the value
            assert drawn["over"]["weight_std"][variant][0][i] == pytest.approx(start, rel=1e-4)
            epochs = [2 if (variant, r) == LOST else LAST for r in range(REPLICATES)]
            ends = [layer_value(variant, r, epochs[r], i) for r in range(REPLICATES)]
            assert drawn["after"]["weight_std"][variant][i] == pytest.approx(numpy.median(ends), rel=1e-4)


def test_the_factors_span_a_grid_in_the_order_they_were_written_in(finished):
    drawn = data_of(finished.path.read_text())
    assert drawn["axes"][0]["names"] == ["he_normal", EVIL] and drawn["axes"][0]["level"] == [0, 0, 1, 1]
    assert drawn["axes"][1]["value"] == [0.1, 0.001] * 2 and drawn["axes"][1]["log"]
    assert drawn["grids"] == [[0, 1]]


def test_layers_of_torchvision_names_stand_in_the_order_of_their_depth():
    names = ["fc", "layer1.0.conv1", "layer10.0.conv1", "conv1", "layer2.0.conv1"]
    order = ["conv1", "layer1.0.conv1", "layer2.0.conv1", "layer10.0.conv1", "fc"]
    assert series.in_depth_order(names) == order


@pytest.mark.parametrize("most", [2, 7, 50])
def test_thinned_steps_keep_the_first_and_the_last(most):
    steps = series.thinned(range(0, 1000, 3), most)
    assert steps[0] == 0 and steps[-1] == 999 and len(steps) == most


# Text


def test_the_question_comes_first_then_the_leader_then_the_leaderboard(finished):
    text = finished.path.read_text()
    places = [text.index(words) for words in ("Is &lt;b&gt; &amp; so on better?", 'class="verdict"', "<table")]
    assert places == sorted(places)
    assert "<b>he_normal · lr=0.1</b> has the best mean val/accuracy" in text


def test_whatever_the_user_named_is_escaped(finished):
    text = finished.path.read_text()
    assert EVIL not in text and "<script>alert" not in text and "so on</b>" not in text
    assert html.escape(EVIL) in text
    assert data_of(text)["axes"][0]["names"][1] == EVIL


def test_it_tells_how_to_repeat_the_study_and_no_password(finished):
    text = finished.path.read_text()
    shown = section_of(text, "reproduce")
    assert "git checkout abc123\nfanin sweep demo tracking.uri=https://…@example.test" in shown
    assert "not committed" in shown and "<td>2.13.0</td>" in shown
    assert "<td>optimizer.lr</td><td>0.001, 0.1</td>" in shown and "<td>batch_size</td>" not in shown
    assert "<td>epochs</td><td>2</td>" in shown
    assert "secret" not in text


def test_nothing_in_it_refers_to_anything_outside(finished):
    text = finished.path.read_text()
    data = re.search(r'<script type="application/json".*?</script>', text, flags=re.DOTALL)[0]
    rest = text.replace(data, "").replace("https://…@example.test", "")
    assert re.findall(r"https?:[^\s\"'<]*", rest) == ["http://www.w3.org/2000/svg"]  # a name, not an address
    assert not re.findall(r"<link(?! rel=\"icon\" href=\"data:,\")|<img|<iframe|@import|url\((?!#)", rest)
    assert "default-src 'none'" in text


def test_runs_that_were_stopped_are_listed_with_their_reasons(half):
    text = page("demo", half)
    shown = section_of(text, "ended")
    for outcome, reason in (("pruned", "pruned: median"), ("failed", "out of memory"), ("running", "")):
        assert f"<td>{outcome}</td><td>{reason}</td>" in shown
    assert "4 runs: 1 finished, 1 pruned, 1 failed, 1 running" in text


def test_a_study_that_goes_on_says_so_and_ranks_what_is_finished(half):
    text = page("demo", half)
    assert "The study has not ended. 1 of its runs is still running." in text
    assert "<b>he_normal · lr=0.1</b> has the best mean val/accuracy" in section_of(text, "answer")
    found = data_of(text)["variants"]
    assert [one["mean"] is None for one in found] == [False, True, True, True]
    assert found[1]["last"] is not None  # drawn hollow, at its last value


def test_a_study_without_runs_is_a_page_that_says_what_is_missing(empty):
    text = page("demo", empty)
    assert "No run of this study is recorded yet" in text and "fanin sweep demo" in text


def test_a_study_that_does_not_exist_is_refused_with_the_nearest_name(half):
    with pytest.raises(ConfigError, match="did you mean 'demo'"):
        report.write("dmeo", project=half)


def test_every_swept_key_of_a_grid_is_compared_in_the_words_of_fanin_compare(finished):
    shown = html.unescape(section_of(finished.path.read_text(), "answer"))
    project = finished.path.parent.parent
    for key in SWEPT:
        for sentence in compare("demo", by=key, project=project).sentences:
            assert sentence in shown
    assert "differences from he_normal" in shown and "differences from 0.1" in shown


def test_a_race_is_judged_by_its_own_tests_only(finished):
    material = gather("demo", project=finished.path.parent.parent)
    race = "The race for val/accuracy (risk 5 %):\n\n- zeros: <dropped>\n- left: he_normal"
    note = f"## a study\n\n{race}\n\nThis session: 9 finished."
    tags = {**material.about.tags, "fanin.racing": "{}", "mlflow.note.content": note}
    raced = replace(material, about=replace(material.about, tags=tags))
    shown = section_of(render(raced, figures.draw(raced)), "answer")
    assert "<li>zeros: &lt;dropped&gt;</li><li>left: he_normal</li></ul>" in shown
    assert "Holm" not in shown and "sign-flip" not in shown


# The file


def test_the_page_is_attached_to_the_studys_parent_run(finished):
    attached = list(finished.path.parent.parent.glob("mlartifacts/demo/*/artifacts/demo.html"))
    assert finished.unattached == "" and len(attached) == 1
    assert attached[0].read_bytes() == finished.path.read_bytes()


def test_the_key_figures_are_pictures_among_the_parent_runs_files(finished):
    project = finished.path.parent.parent
    folders = list((project / "mlartifacts" / "demo").glob("*/artifacts/figures"))
    assert len(folders) == 1
    paths = list(folders[0].iterdir())
    assert {path.name for path in paths} == {"leaderboard.png", "curves.png", "grid.png", "layers.png"}
    for path in paths:
        with Image.open(path) as picture:
            assert picture.width > 400 and len(numpy.unique(numpy.asarray(picture.convert("L")))) > 20


@pytest.mark.parametrize("state", ["half", "bare", "empty"])
def test_a_study_with_little_to_show_has_the_pictures_it_has_material_for(request, state, tmp_path):
    drawn = figures.draw(gather("demo", project=request.getfixturevalue(state)))
    written = [path.stem for path in stills.write(drawn, tmp_path)] if drawn else []
    assert written == {"half": ["leaderboard", "curves", "grid", "layers"], "bare": ["leaderboard"], "empty": []}[state]


def test_the_budgets_curves_are_the_expected_best_of_all_choices_of_n(finished):
    drawn = data_of(finished.path.read_text())
    means = [one["mean"] for one in drawn["variants"]]
    assert drawn["budget"] is None and len(means) == 4  # too few for a curve
    many_ = [{"mean": value, "last": value, "runs": [1], "seconds": 2.0} for value in (0.1, 0.5, 0.3, 0.9, 0.2)]
    many_.append({"mean": None, "last": 0.7, "runs": [], "seconds": 2.0})  # stopped early
    axes = [
        {"key": "a", "number": False, "names": ["x", "y"], "level": [0, 0, 0, 1, 1, 1], "value": [0, 0, 0, 1, 1, 1]},
        {"key": "lr", "number": True, "names": None, "level": [], "value": [1, 2, 3, 4, None, 5]},
    ]
    found = budget.draw(axes, many_, direction="maximize")
    assert list(found) == ["none", "a"]
    pairs = [max(pair) for pair in itertools.combinations((0.1, 0.5, 0.3, 0.9, 0.2, 0.7), 2)]
    assert found["none"][0]["expected"][1] == pytest.approx(sum(pairs) / 15, rel=1e-4)
    assert found["none"][0]["seconds"][:2] == [2, 4]
    x, y = found["a"]
    assert (x["name"], x["expected"][2], y["expected"][2]) == ("x", 0.5, 0.9)
    worst = budget.draw(axes, many_, direction="minimize")["a"]
    assert worst[0]["expected"][2] == 0.1
    assert budget.draw(axes[:1], many_, direction="maximize") is None  # initializers are not drawn at random


def test_a_tracking_store_that_goes_down_costs_the_copy_there_not_the_file(half, monkeypatch, capsys):
    def refuse(*_):
        raise TrackingDown("the store is gone")

    monkeypatch.setattr(Tracker, "attach", refuse)
    monkeypatch.chdir(half)
    assert main(["report", "demo"]) == 0
    said = capsys.readouterr()
    assert said.out == "reports/demo.html\n" and "the store is gone" in said.err
    assert (half / "reports/demo.html").stat().st_size > 20_000


def test_a_folder_that_cannot_be_written_is_bad_input(half):
    (half / "reports").write_text("a file")
    with pytest.raises(ConfigError, match=r"reports.*cannot be written"):
        report.write("demo", project=half)


def test_the_pages_parts_are_installed_with_the_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for path in (ROOT / "src" / "fanin").rglob("*"):
        if path.suffix in (".js", ".css", ".html"):
            package = ".".join(path.parent.relative_to(ROOT / "src").parts)
            assert any(path.match(pattern) for pattern in settings["package-data"][package]), path


def many(monkeypatch, *, variants, replicates, epochs=15, layers=5):
    """A study of so many runs, in the shape in which fanin.query answers; nothing is stored."""
    draw = numpy.random.default_rng(0)
    pairs = [(v, r) for v in range(variants) for r in range(replicates)]
    runs = pandas.DataFrame(pairs, columns=["variant", "replicate"]).assign(run_id=[str(i) for i in range(len(pairs))])
    runs = runs.assign(status="FINISHED", reason=None, diagnosis=None, diverged=False, seconds=1.0)
    runs = runs.assign(start=pandas.Timestamp(0, tz="utc"), name="a run", **{"data.classes": 10})
    runs["optimizer.lr"] = 10.0 ** -draw.uniform(1, 5, variants)[runs["variant"]]
    steps = pandas.DataFrame({"step": range(epochs + 1)})
    curve = runs[["run_id", "variant", "replicate"]].merge(steps, how="cross")
    names = [f"{part}/{kind}" for part in ("train", "val") for kind in ("accuracy", "loss")] + ["seconds"]
    curves = pandas.concat([curve.assign(metric=name, value=draw.random(len(curve))) for name in names])
    table = curve.merge(pandas.DataFrame({"layer": [f"layers.{i}" for i in range(layers)]}), how="cross")
    values = {name: draw.random(len(table)) for name in series.PER_LAYER}
    runs = runs.assign(**{"test/accuracy": draw.random(len(runs))})
    tags = {"fanin.study": "many", "fanin.run": "many", "fanin.reason": "done"}
    about = query.About("?", ("optimizer.lr",), "test/accuracy", "maximize", None, tags)
    monkeypatch.setattr(files, "histograms", lambda *_, **__: {})
    answers = {"runs": runs, "curves": curves, "layers": table.assign(**values), "about": about, "metrics": []}
    for name, answer in answers.items():
        monkeypatch.setattr(query, name, lambda *_, answer=answer, **__: answer)


@pytest.mark.parametrize(("variants", "replicates"), [(500, 1), (50, 10)])
def test_500_runs_make_less_than_5_megabytes(monkeypatch, variants, replicates):
    many(monkeypatch, variants=variants, replicates=replicates)
    text = page("many", Path())
    assert len(text.encode()) < 5e6
    assert len(data_of(text)["variants"]) == variants


def test_500_runs_of_a_deep_network_and_many_epochs_are_thinned_to_less_than_5_megabytes(monkeypatch):
    monkeypatch.setattr(series, "PER_LAYER", ("weight_std", "grad_norm", "update_ratio"))
    many(monkeypatch, variants=500, replicates=1, epochs=40, layers=20)
    text = page("many", Path())
    steps = data_of(text)["layers"]["steps"]
    assert len(text.encode()) < 5e6 and (steps[0], steps[-1]) == (0, 40) and len(steps) < 41


def sixty(variant, replicate):
    """Records of 60 metrics, most of them of layers, as a real run has them."""

    def metrics(epoch):
        names = [f"{kind}/layers.{i}/{name}" for i in range(7) for kind, name in SOME_STATISTICS]
        return records(variant, replicate)(epoch) | {name: 0.1 + epoch for name in names}

    return metrics


SOME_STATISTICS = [key.split("_", 1) for key in series.PER_LAYER[:8]]


@pytest.mark.slow
def test_200_runs_of_60_metrics_are_reported_in_20_seconds(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study = declare(tmp_path)
    for variant in range(len(POINTS)):
        for replicate in range(50):
            folder = run_of(study, variant, replicate)
            train(folder, last=15, metrics=sixty(variant, replicate % 3))
    end_study(study)
    ship(tmp_path)
    began = time.process_time()
    written = report.write("demo", project=tmp_path)
    assert time.process_time() - began < 20
    drawn = data_of(written.path.read_text())
    assert len(drawn["curves"]["runs"]) == 200 and len(drawn["layers"]["over"]) >= 8


# The browser

SEEN = """{
    plots: [...document.querySelectorAll("[data-plot]")]
        .map((box) => [box.dataset.plot, box.querySelectorAll("svg").length]),
    strips: document.querySelectorAll("#board td.strip svg").length,
    missing: [...document.querySelectorAll(".missing")].map((one) => one.textContent),
    wide: document.documentElement.scrollWidth > innerWidth,
}"""


@needs_browser
def test_every_plot_is_drawn_without_a_word_on_the_console(finished):
    seen, console = browse(finished.path, SEEN)
    assert console == []
    assert seen["plots"] == [
        *(["curves", 1], ["heat", 1], ["parallel", 1], ["slices", 3], ["depth", 2], ["epochs", 3], ["weights", 3]),
    ]
    assert seen["strips"] == len(POINTS) and not seen["missing"] and not seen["wide"]


@needs_browser
@pytest.mark.parametrize("state", ["half", "bare", "empty"])
def test_a_page_with_little_to_show_works(request, state):
    written = report.write("demo", project=request.getfixturevalue(state))
    seen, console = browse(written.path, SEEN, width=400)
    assert console == [] and not seen["wide"]
    assert all(count for _, count in seen["plots"])


@needs_browser
def test_a_curve_is_the_mean_with_its_interval_and_counts_a_diverged_run_as_a_guess(finished):
    ask = """[0, 3].map((v) => curveOf(v, { metric: "val/accuracy", band: "interval", x: "step" }))"""
    (first, last), console = browse(finished.path, ask)
    assert console == [] and not first["ends"] and [end["x"] for end in last["ends"]] == [2]
    for variant, found in ((0, first), (3, last)):
        for epoch, point in enumerate(found["points"]):
            values = [value(variant, r, epoch) for r in range(REPLICATES)]
            if variant == LOST[0] and epoch >= 2:
                values[LOST[1]] = 1 / CLASSES
            low, high = stats.t.interval(0.95, REPLICATES - 1, numpy.mean(values), stats.sem(values))
            assert (point["x"], point["y"]) == (epoch, pytest.approx(numpy.mean(values), rel=1e-4))
            assert (point["low"], point["high"]) == pytest.approx((low, high), rel=1e-3)


@needs_browser
def test_what_is_drawn_lies_where_the_axis_says(finished):
    """From the ticks' places the scale follows; by it, the line's points give back the means."""
    ask = """(() => {
        const root = document.querySelector('[data-plot="curves"] svg');
        const read = (t) => [t.getAttribute("text-anchor"), t.textContent, Number(t.getAttribute("y"))];
        const marks = [...root.querySelectorAll(".axes text")].map(read);
        return [marks, root.querySelector('.line[data-v="0"] path').getAttribute("d")];
    })()"""
    (marks, d), _ = browse(finished.path, ask)
    ticks = [(float(text), y - 3.5) for side, text, y in marks if side == "end" and text != "epoch"]
    slope, intercept = numpy.polyfit([y for _, y in ticks], [v for v, _ in ticks], 1)
    heights = [float(pair.split(",")[1]) for pair in re.findall(r"[ML]([^ML]+)", d)]
    means = [numpy.mean([value(0, r, epoch) for r in range(REPLICATES)]) for epoch in range(LAST + 1)]
    assert [slope * y + intercept for y in heights] == pytest.approx(means, abs=2e-3)


@needs_browser
def test_the_controls_do_what_they_say(finished):
    ask = """(() => {
        const curves = () => document.querySelector('[data-plot="curves"]');
        const lines = () => curves().querySelectorAll(".line").length;
        const ticks = () => [...curves().querySelectorAll(".axes text")].map((t) => t.textContent).join(" ");
        const scheme = () => document.documentElement.style.colorScheme;
        const after = (selector, look) => { document.querySelector(selector).click(); return look(); };
        const open = () => document.querySelectorAll("details[open]").length;
        const print = (name) => { dispatchEvent(new Event(name)); return open(); };
        return {
            before: lines(), linear: ticks(), without: after('.chip[data-v="1"]', lines),
            none: after('[data-set="show=none"]', () => curves().textContent),
            again: after('[data-set="show=all"]', lines), log: after('[data-set="y=true"]', ticks),
            schemes: [after("#theme", scheme), after("#theme", scheme)],
            details: document.querySelectorAll("details").length,
            open: [open(), print("beforeprint"), print("afterprint")],
        };
    })()"""
    seen, console = browse(finished.path, ask)
    assert console == []
    assert (seen["before"], seen["without"], seen["none"], seen["again"]) == (4, 3, "No values.", 4)
    assert seen["log"] != seen["linear"]
    assert sorted(seen["schemes"]) == ["dark", "light"]
    assert seen["open"] == [0, seen["details"], 0] and seen["details"]


@needs_browser
def test_the_pointer_finds_a_variant_on_every_kind_of_plot(finished):
    ask = """["curves", "heat", "parallel", "slices", "depth"].map((name) => {
        const find = (what) => document.querySelector(`[data-plot="${name}"] ${what}`);
        const target = find(".cell") ?? find("svg");
        const at = (find("circle") ?? target).getBoundingClientRect();
        const clientX = at.x + at.width / 2 - (name === "parallel" ? 20 : 0);
        for (let y = 0; y < 140 && tip.hidden; y += 4) {
            const clientY = at.y + at.height / 2 - y;
            target.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY, bubbles: true }));
        }
        const found = [name, tip.textContent, spotlight.textContent.includes("[data-v=")];
        hideTip();
        return found;
    })"""
    seen, console = browse(finished.path, ask)
    assert console == []
    for name, text, lit in seen:
        assert re.search(r"\d", text) and lit, name


@needs_browser
def test_a_figure_is_saved_as_an_svg_that_needs_none_of_the_pages_styles(finished):
    ask = """["curves", "heat", "parallel"].map((name) => standalone(box(name).querySelector("svg")))"""
    figures, console = browse(finished.path, ask)
    assert console == []
    for text in figures:
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and float(root.get("width")) > 100
        assert not re.search(r"var\(|color-mix|oklab|light-dark", text)


@needs_browser
def test_of_a_long_leaderboard_the_scale_and_the_layers_are_those_of_what_is_seen(monkeypatch, tmp_path):
    """40 variants, of which the best 20 lie between .91 and .93 and have two layers, the others below .5 and five."""
    many(monkeypatch, variants=40, replicates=2)
    runs, table = query.runs("many"), query.layers("many")
    values = {variant: 0.91 + 0.001 * variant if variant < 20 else 0.01 * variant for variant in range(40)}
    runs["test/accuracy"] = runs["variant"].map(values) + 0.0001 * runs["replicate"]
    runs["diagnosis"] = [f"dead_units: layers.{v % 3} 90 %" if v % 2 else None for v in runs["variant"]]
    shallow = table[(table["variant"] >= 20) | table["layer"].isin(["layers.0", "layers.1"])]
    monkeypatch.setattr(query, "layers", lambda *_, **__: shallow)
    path = tmp_path / "long.html"
    path.write_text(page("many", Path()))
    ask = """(() => {
        const scale = () => texts("#board th.strip text").map(Number);
        const depth = () => document.querySelectorAll('[data-plot="depth"] figure:first-child .tick').length;
        const texts = (selector) => [...document.querySelectorAll(selector)].map((one) => one.textContent);
        const names = () => texts('[data-plot="epochs"] figcaption').map((text) => text.replace("SVG", ""));
        const look = () => [scale(), depth(), names()];
        const first = look();
        for (const button of ['[data-set="rows=all"]', '[data-set="show=all"]']) document.querySelector(button).click();
        const pressed = [...document.querySelectorAll('[aria-pressed="true"]')].map((one) => one.dataset.set);
        return { first, then: look(), pressed, diagnosis: texts("#diagnosis tr") };
    })()"""
    seen, console = browse(path, ask)
    (near, shallowest, few), (far, deepest, all_) = seen["first"], seen["then"]
    assert console == [] and min(near) > 0.9 and min(far) < 0.5
    assert (shallowest, few) == (2, ["layers.0", "layers.1"])
    assert (deepest, all_) == (5, [f"layers.{i}" for i in range(5)])
    assert "band=range" in seen["pressed"]  # of two replicates
    assert seen["diagnosis"][:2] == ["first findingrunsvariants", "dead_units4020"]
