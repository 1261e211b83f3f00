"""What a sweep prints at its end, of values and failures that few studies have."""

from pathlib import Path

from plans import Play, Result, grid, make_study, open_folder

from fanin.sweep.engine import exit_code
from fanin.sweep.grid import GridPlan
from fanin.sweep.schedule import Tally
from fanin.sweep.study import name_of
from fanin.sweep.summary import summarise


def test_mappings_lists_and_nothing_are_values_of_a_study_like_any_others(tmp_path: Path) -> None:
    study = make_study({"a": "null,{x:1,y:null},[1,2],true"})
    plan = GridPlan(study, grid(study), open_folder(tmp_path))
    values = {"None": 0.1, "{'x': 1, 'y': None}": 0.2, "[1, 2]": 0.4, "True": 0.3}
    played = Play(lambda config, _: Result([values[str(config["a"])]]))
    played.run(plan)
    assert played.names == ["a=null r0", "a={x:1,y:null} r0", "a=1-2 r0", "a=true r0"]
    lines = summarise(study, plan.ended(), Tally()).text.splitlines()
    rows = [line.split("  ")[1] for line in lines if line[:1].isdigit()]
    assert rows[:3] == ["[1, 2]", "True", "{x:1,y:null}"]


def test_values_are_named_as_they_are_typed() -> None:
    assert name_of({"a": None, "b": {"x": None}, "c": True, "d": [0.1, None]}) == "a=null b={x:null} c=true d=0.1-null"


def test_of_many_failures_five_are_told_and_the_others_counted(capsys) -> None:
    tally = Tally(failed=7, failures={f"a={i} r0": "RuntimeError: no" for i in range(7)})
    assert exit_code(tally) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "fanin: a=0 r0 failed: RuntimeError: no"
    assert len(lines) == 6 and lines[-1] == "fanin: and 2 more failed"
