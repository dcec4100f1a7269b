"""Metrics of sequences against their definitions."""

from types import SimpleNamespace

import pytest
import torch

from wenet import WenetError
from wenet.tasks.measures import METRICS, measure_of
from wenet.tasks.task import Baseline, failure_to_learn


def gathered(kind, data, outputs, targets, there=None):
    """The metric from two batches of different size."""
    measure = measure_of(kind, data)
    there = torch.ones(targets.shape[:1]) if there is None else there
    for part in (slice(0, 5), slice(5, None)):
        measure.add(outputs[:, part], targets[part], there[part])
    return measure.value()


def test_mase_of_a_series_that_never_changes_is_refused():
    with pytest.raises(WenetError, match="--metric mase divides by a series' mean change, and one never changes"):
        measure_of("mase", of_numbers(1.0, 1.0, naive=(0.5, 0.0)))


@pytest.mark.parametrize(
    ("value", "words"), [(0.25, "0.2500"), (6.4e-9, "6.40e-09"), (0.0, "0.0000"), (4e20, "4.00e+20")]
)
def test_a_failure_to_learn_shows_small_and_large_figures(value, words):
    said = failure_to_learn("the model", value, METRICS["rmse"], Baseline("the training mean", value / 2))
    assert f"validation RMSE is {words}, where the training mean alone" in said


def of_numbers(*scale, naive=(), horizon=1):
    scaling = SimpleNamespace(target_scale=torch.tensor(scale, dtype=torch.float64))
    return SimpleNamespace(classes=(), scaling=scaling, naive=torch.tensor(naive), horizon=horizon)


def test_accuracy_and_f1():
    torch.manual_seed(1)
    outputs, targets = torch.randn(2, 12, 3), torch.randint(3, (12,))
    data = SimpleNamespace(classes=("a", "b", "c", "never"))
    outputs = torch.cat([outputs, torch.full((2, 12, 1), -9.0)], -1)
    found = outputs.argmax(-1)
    right = (found == targets).double().mean(1)
    assert gathered("accuracy", data, outputs, targets).tolist() == pytest.approx(right.tolist())
    f1 = gathered("f1", data, outputs, targets)
    for network in range(2):
        each = []
        for label in range(3):
            hit = int(((found[network] == label) & (targets == label)).sum())
            claimed, true = int((found[network] == label).sum()), int((targets == label).sum())
            each.append(2 * hit / (claimed + true))
        assert float(f1[network]) == pytest.approx(sum(each) / 3)
    assert f1[0] != f1[1]


def test_errors_are_in_units_of_the_targets():
    torch.manual_seed(1)
    outputs, targets = torch.randn(2, 9, 2), torch.randn(9, 2)
    difference = (outputs - targets).double() * torch.tensor([10.0, 0.5])
    data = of_numbers(10.0, 0.5)
    rmse, mae = difference.square().mean((1, 2)).sqrt(), difference.abs().mean((1, 2))
    assert gathered("rmse", data, outputs, targets).tolist() == pytest.approx(rmse.tolist())
    assert gathered("mae", data, outputs, targets).tolist() == pytest.approx(mae.tolist())
    scaled = difference.abs() / torch.tensor([4.0, 4.0])
    mase = gathered("mase", of_numbers(10.0, 0.5, naive=(4.0,), horizon=2), outputs, targets)
    assert mase.tolist() == pytest.approx(scaled.mean((1, 2)).tolist())


def test_what_is_behind_the_end_does_not_count():
    outputs, targets = torch.zeros(1, 6, 2, 3), torch.zeros(6, 2, dtype=torch.long)
    outputs[..., 0] = 1
    there = torch.ones(6, 2)
    there[4:, 1], targets[4:, 1] = 0, -100
    data = SimpleNamespace(classes=("a", "b", "c"))
    assert gathered("accuracy", data, outputs, targets, there).tolist() == [1.0]
    targets[0, 0] = 1
    assert gathered("accuracy", data, outputs, targets, there).tolist() == pytest.approx([9 / 10])
