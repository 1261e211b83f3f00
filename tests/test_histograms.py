"""Histograms of weights: counts against numpy, in a run's files, and on the report's page."""

import json
import math

import numpy
import pytest
import torch
from trained import SMALL, Listener, configuration, train

from fanin.histograms import HISTOGRAMS, collect
from fanin.report.weights import density, draw
from fanin.stats.distribution import BINS, SAMPLE, histogram, sample


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_counts_are_numpys_over_the_range_of_the_largest_magnitude():
    weight = drawn(20, 30)
    bound, *counts = histogram(sample(weight))
    assert bound == weight.abs().max().item()
    wanted, _ = numpy.histogram(weight.numpy(), BINS, (-bound, bound))
    assert counts == wanted.tolist() and sum(counts) == 600


def test_of_a_large_layer_a_sample_from_all_over_it_is_counted():
    weight = drawn(1024, 512) + torch.arange(512) / 100  # every column has another mean
    bound, *counts = histogram(sample(weight))
    assert SAMPLE / 2 <= sum(counts) <= 2 * SAMPLE
    whole, _ = numpy.histogram(weight.numpy(), BINS, (-bound, bound))
    assert numpy.abs(numpy.array(counts) / sum(counts) - whole / weight.numel()).max() < 0.01


@pytest.mark.parametrize("shape", [(512, 784), (128, 64, 3, 3), (300, 9 * 11 * 13), (50_000, 1)], ids=str)
def test_a_sample_has_weights_of_every_place_in_the_fan_in(shape):
    fan_in = math.prod(shape[1:])
    place = torch.arange(fan_in).reshape(shape[1:]).expand(shape)
    found = sample(place.float())
    assert SAMPLE / 2 <= len(found) <= 2 * SAMPLE
    times = torch.bincount(found.long(), minlength=fan_in)
    assert times.min() >= 1 and times.max() - times.min() <= 1


@pytest.mark.parametrize("value", [0.0, 0.5, -1e30])
def test_equal_weights_are_in_one_bin(value):
    bound, *counts = histogram(sample(torch.full((4, 5), value)))
    assert bound == pytest.approx(abs(value)) and sorted(counts)[-2:] == [0, 20]


def test_weights_that_are_not_finite_have_no_finite_bound():
    assert not math.isfinite(histogram(sample(torch.tensor([[1.0, math.nan]])))[0])


def test_a_run_keeps_the_histograms_of_every_epoch_in_one_file_and_none_in_its_metrics(project):
    digest = train(configuration(*SMALL), project / "run")
    found = json.loads((project / "run" / "artifacts" / HISTOGRAMS).read_text())
    assert list(found) == ["layers.0", "layers.1", "layers.2"]
    for layer, one in found.items():
        assert one["epochs"] == [0, 1, 2] and all(len(counts) == BINS for counts in one["counts"])
        assert one["bounds"] == pytest.approx([record["metrics"][f"weight/{layer}/absmax"] for record in digest.epochs])
    assert not any("histogram" in key for record in digest.epochs for key in record["metrics"])


def test_a_run_that_was_stopped_and_goes_on_has_the_epochs_of_both_attempts(project):
    config = configuration(*SMALL, "epochs=3")
    train(config, project / "run", listener=Listener(stop_at=1))
    train(config, project / "run")
    found = json.loads((project / "run" / "artifacts" / HISTOGRAMS).read_text())
    assert found["layers.0"]["epochs"] == [0, 1, 2, 3]


def test_without_statistics_there_is_no_file(project):
    train(configuration(*SMALL, "stats=off"), project / "run")
    assert not (project / "run" / "artifacts" / HISTOGRAMS).exists()
    assert collect([{"epoch": 0, "metrics": {}}]) == ""


def test_densities_in_other_bins_are_the_same_distribution():
    weight = drawn(60, 50).double()
    bound, *counts = histogram(sample(weight))
    found = numpy.array(density(counts, bound, bound=2 * bound))
    width = 4 * bound / len(found)
    assert found.sum() * width == pytest.approx(1, abs=0.01)
    centers = -2 * bound + width * (numpy.arange(len(found)) + 0.5)
    assert (found * width * centers).sum() == pytest.approx(weight.mean().item(), abs=width / 2)
    assert found[: len(found) // 4 - 1].sum() == 0  # nothing beyond the largest magnitude


def test_steps_without_finite_weights_are_left_out_and_long_runs_thinned():
    counts = [[1.0] * BINS] * 40
    one = {"epochs": list(range(40)), "bounds": [1.0] * 39 + [math.nan], "counts": counts}
    found = draw({0: {"layers.10": one, "layers.2": one}, 1: {"layers.2": one | {"bounds": [math.inf] * 40}}})
    assert found is not None and list(found["of"]) == ["0"]
    first, second = found["of"]["0"]
    assert (first["name"], second["name"]) == ("layers.2", "layers.10")
    assert first["steps"][0] == 0 and first["steps"][-1] == 38 and len(first["rows"]) == len(first["steps"]) <= 8
    assert draw({}) is None
