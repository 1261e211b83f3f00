"""What a run takes of its machine: only when asked, under MLflow's names, without a trace in its numbers."""

import psutil
import pytest
import torch
from trained import SMALL, configuration, train

from fanin.app import main
from fanin.usage import Usage


def test_the_numbers_are_those_of_the_machine_and_of_this_process():
    found = Usage(torch.device("cpu")).measure()
    assert 0 <= found["system/cpu_utilization_percentage"] <= 100
    total = psutil.virtual_memory().total / 1e6
    assert found["system/process_memory_megabytes"] < found["system/system_memory_usage_megabytes"] < total
    assert found["system/process_memory_megabytes"] == pytest.approx(psutil.Process().memory_info().rss / 1e6, rel=0.2)


def test_a_run_records_them_each_epoch_when_asked_and_trains_the_same(project):
    plain = train(configuration(*SMALL), project / "plain")
    watched = train(configuration(*SMALL, "tracking.system_metrics=epoch"), project / "watched")
    for before, after in zip(plain.epochs, watched.epochs, strict=True):
        extra = {key for key in after["metrics"] if key.startswith("system/")}
        assert len(extra) == 5 and not any(key.startswith("system/") for key in before["metrics"])
        same = set(before["metrics"]) - {"seconds"}
        assert {key: before["metrics"][key] for key in same} == {key: after["metrics"][key] for key in same}


def test_another_choice_is_refused_before_the_run(project, capsys):
    assert main(["train", *SMALL, "tracking.system_metrics=epochs"]) == 2
    assert "did you mean 'epoch'" in capsys.readouterr().err
