"""`fanin results STUDY --csv F | --parquet F`: every run as a table, or one line that says why not."""

import pandas
import pytest
from recorded import make_run, make_study, new_database, train

from fanin import query, results
from fanin.app import main
from fanin.errors import ConfigError
from fanin.shipping import sync
from fanin.spool import Spool
from fanin.tracking import Tracker


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A study with a finished, a failed and an unfinished run, and one without any."""
    folder = tmp_path_factory.mktemp("results")
    new_database(folder / "mlflow.db")
    study = make_study(folder, metric="val/accuracy", direction="maximize")
    train(make_run(study), last=1)
    train(make_run(study, replicate=1), last=1, end="FAILED", reason="broke")
    train(make_run(study, replicate=2), last=0, end=None)
    make_study(folder, name="empty")
    with Spool(study.spool):  # its coordinator lives
        sync(folder, tracker=Tracker(project=folder, uri="sqlite:///mlflow.db"))
    return folder


@pytest.fixture(autouse=True)
def here(project, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(project)


@pytest.mark.parametrize("study", ["initializers", "empty"])
def test_parquet_keeps_every_run_and_every_type(study, tmp_path):
    target = tmp_path / "runs.parquet"
    said = results.write(study, project=".", csv=None, parquet=target)
    table = query.runs(study)
    found = pandas.read_parquet(target)
    assert said == f"{len(table)} runs, {len(table.columns)} columns -> {target}"
    pandas.testing.assert_frame_equal(found, table, check_dtype=False, check_categorical=False)
    if len(table):
        kept = [column for column in table if table[column].dtype.kind in "ifb"]
        assert "val/loss" in kept and "diverged" in kept
        assert [found[column].dtype for column in kept] == [table[column].dtype for column in kept]


def test_csv_has_a_row_per_run_and_all_digits(tmp_path, capsys):
    target = tmp_path / "runs.csv"
    assert main(["results", "initializers", "--csv", str(target)]) == 0
    assert capsys.readouterr().out.startswith("3 runs, ")
    found, table = pandas.read_csv(target), query.runs("initializers")
    assert list(found) == list(table) and found["status"].tolist() == ["FINISHED", "FAILED", "RUNNING"]
    assert found["val/accuracy"].tolist() == table["val/accuracy"].tolist()


@pytest.mark.parametrize("flag", ["--csv", "--parquet"])
@pytest.mark.parametrize("where", ["no/such/folder/runs", "."])
def test_a_place_that_cannot_be_written_is_refused_in_one_line(flag, where, capsys):
    assert main(["results", "initializers", flag, where]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fanin: {where}: cannot be written: ") and said.count("\n") == 1


def test_a_study_that_is_not_there_writes_nothing(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'initializers'"):
        results.write("initialiser", project=".", csv=tmp_path / "runs.csv", parquet=None)
    assert not [*tmp_path.iterdir()]


def test_an_empty_study_and_an_unfinished_one_are_shown_without_an_error():
    assert results.show("empty", project=".") == "empty: no run is recorded yet."
    assert "he_normal" in results.show("initializers", project=".")
