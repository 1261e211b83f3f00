"""Every file in sweeps/: it can be read in both profiles, and each of its criteria passes on one result and fails on
the opposite one. Two of the quick studies run to their verdicts."""

import importlib.util
import math
import subprocess
import sys
from functools import cache
from pathlib import Path

import pandas
import pytest
import yaml
from recorded import new_database

from fanin import query, spool
from fanin.app import main
from fanin.criteria.judge import judge
from fanin.criteria.records import Records
from fanin.criteria.values import same
from fanin.description import flatten
from fanin.errors import ConfigError
from fanin.sweep import launch
from fanin.sweep.checks import corners, grid_of
from fanin.sweep.claims import expect
from fanin.sweep.profiles import with_profile
from fanin.sweep.reading import Settings, read_study

ROOT = Path(__file__).parent.parent
NUMBERED = sorted(path.stem for path in (ROOT / "sweeps").glob("[0-9]*.yaml"))
SPEC = importlib.util.spec_from_file_location("studies", ROOT / "tools" / "studies.py")
tool = importlib.util.module_from_spec(SPEC)  # tools/ is no package
SPEC.loader.exec_module(tool)
CASES = [(name, profile) for name in NUMBERED for profile in ("full", "smoke")]


@pytest.fixture
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@cache
def planned(name, profile):
    """The study, and its variants."""
    overrides = with_profile([f"+sweeps={name}", f"profile={profile}"], sweeps=ROOT / "sweeps")
    with launch.project_loader() as (loader, found):
        config = launch._with_sweeper(loader, [*found, *overrides])
        settings = Settings(**launch.plain(config.hydra.sweeper))
        study = read_study(loader, config_name="config", hydra_overrides=found, arguments=overrides, settings=settings)
        variants = grid_of(study) if study.sampler["name"] == "grid" else corners(study)
        return expect(study, variants), variants


@pytest.mark.parametrize("name", NUMBERED)
def test_a_study_says_what_it_asks_how_to_run_it_and_what_to_expect(name):
    text = (ROOT / "sweeps" / f"{name}.yaml").read_text()
    head = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert f"fanin sweep {name} " in head and "Expect" in head and "replicates = " in head
    study = yaml.safe_load(text)["study"]
    assert study["question"].endswith("?") and study["criteria"] and "smoke" in study["profiles"]


@pytest.mark.parametrize(("name", "profile"), CASES)
def test_a_study_can_be_planned_and_judged_in_both_profiles(in_root, name, profile):
    study, variants = planned(name, profile)
    assert variants and study.criteria
    assert study.name == (name if profile == "full" else f"{name}.smoke")


@pytest.mark.parametrize(("name", "profile"), CASES)
def test_each_criterion_passes_on_one_result_and_fails_on_the_opposite_one(in_root, name, profile):
    study, variants = planned(name, profile)
    for criterion in study.criteria:
        for wanted, number in (("pass", inside(criterion.bound)), ("fail", outside(criterion.bound))):
            records = made_up(study, variants, criterion, number)
            (found,) = judge([criterion], records, replicates=study.replicates, classes=study.classes)
            assert found.status == wanted, f"{criterion.id}: {found}"


def inside(bound):
    if math.isinf(bound.low):
        return bound.high - max(0.1 * abs(bound.high), 1e-3)
    return bound.low + max(0.1 * abs(bound.low), 1e-3) if math.isinf(bound.high) else (bound.low + bound.high) / 2


def outside(bound):
    if math.isinf(bound.high):
        return bound.low - max(0.1 * abs(bound.low), 1e-3)
    return bound.high + max(0.1 * abs(bound.high), 1e-3)


def made_up(study, variants, criterion, number):
    """Runs whose number, by the criterion's own recipe, is `number` in every replicate."""
    runs, points = [], []
    params = [flatten(one.composition.config, one.composition.choices) for one in variants]
    for variant, about in zip(variants, params, strict=True):
        for replicate in range(study.replicates):
            run = f"{variant.key}-r{replicate}"
            columns = {"run_id": run, "variant": variant.key, "replicate": replicate}
            runs.append(about | columns | {"complete": True, "diverged": False})
            values = curve(criterion, value_of(criterion, about, params, number))
            points += [
                {"run_id": run, "metric": metric, "step": step, "value": value}
                for metric in layers_of(criterion.metric)
                for step, value in values.items()
            ]
    return Records(pandas.DataFrame(runs), pandas.DataFrame(points))


def layers_of(metric):
    """Names that match a pattern: of several layers for a *."""
    if "[" in metric:
        kind, layer, statistic = metric.split("/")
        stem, choices = layer.split("[")
        digits, rest = choices.split("]")
        return [f"{kind}/{stem}{digits[0]}{rest.replace('*', '')}/{statistic}"]
    return [metric.replace("*", f"layers.{layer}") for layer in (0, 1)] if "*" in metric else [metric]


def curve(criterion, value):
    """By epoch: constant, or one that reaches the target at epoch `value`."""
    if not criterion.reaches:
        return dict.fromkeys(range(20), value)
    target, bound = 1.0, criterion.reaches
    target = bound.low if math.isinf(bound.high) else bound.high
    sign = 1 if math.isinf(bound.high) else -1
    return {step: target + sign * (step - value) for step in range(60)}


def value_of(criterion, about, params, number):
    """What a run of these params must have recorded."""
    if criterion.against:
        product = 1.0
        for key, numbers in criterion.against.items():
            level = (
                float(about[key]) if numbers == "value" else next(v for k, v in numbers.items() if same(about[key], k))
            )
            product *= level
        wanted = 1 if math.isinf(criterion.bound.high) else -1  # a rank correlation of 1 or -1
        return product * (wanted if criterion.bound.holds(number) else -wanted)
    second = criterion.versus is not None and not chosen(criterion.where, about)
    scale = 1.0 if second else number
    if criterion.contrast == "difference":
        scale = 2.0 if second else number + 2.0
    if criterion.contrast in ("ratio", "octaves") and criterion.key is None:
        scale = 4.0 if second else 4.0 * (number if criterion.contrast == "ratio" else 2**number)
    if criterion.key is None:
        return scale
    if criterion.runs == "argbest":
        levels = sorted({float(one[criterion.key]) for one in params})
        best = levels[len(levels) // 2] * (1 if second else 2 ** math.ceil(number))
        return abs(math.log(float(about[criterion.key]) / best))
    selection = criterion.other if second else criterion.where
    alike = [one for one in params if chosen(selection, one)]
    levels = list(dict.fromkeys(one[criterion.key] for one in alike))
    if about not in alike or criterion.runs == "spread":
        return 5.0 + scale * (about[criterion.key] == levels[0])
    return share(alike, about, criterion.key, 0.3 * scale if criterion.contrast == "ratio" else scale)


def share(alike, about, key, wanted):
    """The key's levels are 0, 1, 2, ..., and within each there is as much noise as leaves them the wanted share."""
    levels = list(dict.fromkeys(one[key] for one in alike))
    within = [one for one in alike if one[key] == about[key]]
    place, middle = levels.index(about[key]), (len(levels) - 1) / 2
    between = sum((i - middle) ** 2 for i in range(len(levels))) / len(levels)
    noise = math.sqrt(between * (1 - wanted) / wanted)
    return place + noise * (1 if within.index(about) % 2 else -1)


def chosen(where, about):
    return all(any(same(about.get(key), value) for value in values) for key, values in where.items())


def test_a_profile_has_a_study_of_its_own_and_what_is_typed_wins(project, capsys):
    command = ["sweep", NUMBERED[0], "profile=smoke", "study.replicates=2", "--dry-run", "tracking=none"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert f"{NUMBERED[0]}.smoke" in shown and "2 replicates" in shown


def made(fields):
    return ["sweep", "race", "study.criteria=[{id: x, says: x, bound: '> 0', " + fields + "}]"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sweep", "race", "profile=smoke"], "profile: 'smoke' is not one of: full"),
        (["sweep", "02_symmetry", "profile=smok"], "did you mean 'smoke'"),
        (["train", "profile=smoke"], "profile: goes with a study"),
        (["sweep", "02_symmetry", "initializer.bias=zeros"], "study.criteria.biases_break_it.where.initializer.bias"),
        (made("metric: val/los"), "study.criteria.x.metric: 'val/los' is not one of"),
        (made("metric: weight/layers.O/std"), "study.criteria.x.metric: 'weight/layers.O/std'"),
        (made("metric: val/loss, where: {model.activation: rely}"), "did you mean 'relu'"),
        (made("metric: val/loss, where: {activation: relu}"), "did you mean 'model.activation'"),
    ],
)  # fmt: skip
def test_a_wrong_profile_or_criterion_is_refused_before_the_first_run(project, capsys, arguments, said):
    assert main([*arguments, "tracking=none"]) == 2
    assert said in capsys.readouterr().err


def test_a_profile_that_is_no_list_of_overrides_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("study: {profiles: {smoke: {epochs: 1}}}\n")
    with pytest.raises(ConfigError, match="must be a list of overrides"):
        with_profile(["+sweeps=mine", "profile=smoke"], sweeps=tmp_path)


STUDY = """# @package _global_
# Tiny
study:
  question: Do zeros learn?
  metric: test/accuracy
  replicates: 2
  criteria:
    - {id: zeros_guess, says: Zeros guess, metric: test/accuracy, where: {initializer: zeros}, bound: "<= 0.2"}
    - {id: he_learns, says: He learns, metric: val/accuracy, where: {initializer: he_normal}, bound: ">= 1.1"}
    - {id: untouched, says: The first gradient is zero, metric: grad/*/norm, layers: max, at: first,
       where: {initializer: zeros}, bound: "== 0"}
epochs: 1
data: {n_train: 100}
hydra: {sweeper: {params: {initializer: "zeros,he_normal"}}}
"""


def test_the_verdict_is_in_the_terminal_in_mlflow_in_the_results_and_in_the_report(project, capsys):
    (project / "sweeps").unlink()
    (project / "sweeps").mkdir()
    (project / "sweeps" / "tiny.yaml").write_text(STUDY)
    new_database(project / "mlflow.db")
    assert main(["sweep", "tiny", "data=digits", "model=mlp_narrow", "hardware.workers=1"]) == 0, "a finding, no error"
    expected = "Verdict: fail: 2 of 3 criteria pass, 1 fail"
    assert expected in capsys.readouterr().out
    assert main(["results", "tiny"]) == 0
    assert expected in capsys.readouterr().out
    assert main(["report", "tiny"]) == 0
    page = (project / "reports" / "tiny.html").read_text()
    assert expected in page and "Zeros guess" in page
    about = query.about("tiny")
    assert about.tags["fanin.verdict"] == "fail"
    assert expected in about.tags["mlflow.note.content"]
    assert "fanin.criteria" not in query.runs("tiny"), "the claims are the study's, not each run's"


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_of_no_epochs_is_the_untrained_network_and_its_test(project, epochs, capsys):
    command = ["sweep", "batch_norm", "data=digits", "study.replicates=1", "regularization=none", "initializer=zeros"]
    command += [f"epochs={epochs}", "scheduler=cosine", "hardware.workers=1", "stats=off"]
    assert main([*command, "data.n_train=100", "study.name=untrained", "tracking=none"]) == 0
    (record,) = (project / ".fanin" / "untrained" / "runs").glob("*/spool.jsonl")
    digest = spool.digest(spool.read(record)[0])
    assert [one["epoch"] for one in digest.epochs] == list(range(epochs + 1))
    assert digest.end["status"] == "FINISHED" and digest.end["metrics"]["test/accuracy"] > 0


@pytest.mark.parametrize("name", ["01_seed_replay", "10_bn_lab"])
def test_a_quick_study_runs_to_the_same_verdict_twice(project, name):
    first, second = (verdict_of(project, name) for _ in range(2))
    assert first == second and "criteria pass" in first


def verdict_of(project, name, *arguments):
    """Of the smoke profile with fewer epochs, as its own process: the verdict's lines."""
    command = [sys.executable, "-m", "fanin", "sweep", name, "profile=smoke", "tracking=none", "--new"]
    command += ["epochs=1", "data.n_train=500", "study.replicates=2", *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout[done.stdout.index("Verdict: ") : done.stdout.index("This session")]


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("study:\n  question: Does it help?\n", "Does it help?"),
        ("# (c) 2026 Ada\nstudy:\n  question: |\n    Does it\n    help?\n", "Does it help?"),
        ("#\n#What helps?\n# @package _global_\nepochs: 3\n", "What helps?"),
        ("# @package _global_\n##  What helps?\nepochs: 3\nstudy:\n", "What helps?"),
        ("epochs: 3\n", "(asks nothing: study.question)"),
        ("# What helps?\nepochs: [\n", "What helps?"),
    ],
)
def test_the_list_of_studies_says_what_each_asks_however_its_file_begins(tmp_path, text, asked):
    (tmp_path / "mine.yaml").write_text(text)
    assert tool.question(tmp_path / "mine.yaml") == asked


def test_every_published_study_has_its_question_in_the_list(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["studies.py", "--list"])
    assert tool.main() == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {*NUMBERED} < listed.keys() and all(listed[name].endswith("?") for name in NUMBERED)


@pytest.mark.slow
def test_every_smoke_profile_ends_with_a_verdict():
    done = subprocess.run(
        [sys.executable, "tools/studies.py"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(name in done.stdout for name in NUMBERED)
    assert "Nothing of these runs is kept. To keep a study's: fanin sweep 01_seed_replay profile=smoke" in done.stdout


def test_a_study_none_of_whose_runs_has_the_metric_of_a_criterion_yet_still_has_results(project, capsys):
    """The test set is seen at the end only, and these runs are pruned before it."""
    claim = "study.criteria=[{id: one, says: It trains, metric: test/accuracy, bound: '>= 0.8'}]"
    ill = ["initializer=zeros,constant", "study.prune_on=[symmetric_units]", "study.preflight=off", "epochs=2"]
    small = ["model=mlp_narrow", "data=digits", "data.n_train=100", "study.name=waits"]
    assert main(["train", "-m", *small, *ill, claim]) == 0
    capsys.readouterr()
    assert main(["results", "waits"]) == 0
    assert "inconclusive: 0 of 1 criteria pass, 1 inconclusive" in capsys.readouterr().out
    assert main(["report", "waits"]) == 0
