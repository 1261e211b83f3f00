"""The average of the weights, against the recursion worked out by hand."""

import pytest
import torch
from torch import nn

from fanin.averaging import WeightAverage


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_the_average_is_its_recursion_with_a_decay_that_grows_to_the_one_asked_for() -> None:
    model = make_model()
    average = WeightAverage(model, decay=0.3, state={}, steps=0)
    expected = model[0].weight.detach().double().clone()
    for step in range(1, 8):
        with torch.no_grad():
            model[0].weight.add_(step)
        average.update()
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach().double()
        torch.testing.assert_close(average.state["0.weight"], expected.float())
    assert (1 + 7) / (10 + 7) > 0.3 > (1 + 2) / (10 + 2)  # both branches were taken


def test_running_means_are_averaged_and_counters_copied() -> None:
    model = make_model()
    average = WeightAverage(model, decay=0.9, state={}, steps=10**6)
    start = model[1].running_mean.clone()
    model(torch.ones(4, 3))
    average.update()
    expected = 0.9 * start + 0.1 * model[1].running_mean
    torch.testing.assert_close(average.state["1.running_mean"], expected)
    assert average.state["1.num_batches_tracked"] == 1


def test_applying_the_average_gives_the_model_its_own_weights_back_bit_for_bit() -> None:
    model = make_model()
    average = WeightAverage(model, decay=0.9, state={}, steps=0)
    with torch.no_grad():
        model[0].weight.mul_(3)
    average.update()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="on the way"), average.applied():
        assert torch.equal(model[0].weight, average.state["0.weight"])
        assert not torch.equal(model[0].weight, before["0.weight"])
        raise RuntimeError("on the way")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_state_that_is_handed_in_goes_on_from_where_it_was() -> None:
    def step(model: nn.Sequential, average: WeightAverage) -> None:
        with torch.no_grad():
            model[0].weight.add_(1)
        average.update()

    model = make_model()
    whole = WeightAverage(model, decay=0.999, state={}, steps=0)
    for _ in range(3):
        step(model, whole)
    kept = {key: value.clone() for key, value in whole.state.items()}
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    step(model, whole)
    model.load_state_dict(weights)
    step(model, resumed := WeightAverage(model, decay=0.999, state=kept, steps=3))
    assert all(torch.equal(value, whole.state[key]) for key, value in resumed.state.items())
