"""Metrics of sequences against their definitions."""

from types import SimpleNamespace

import pytest
import torch

from wenet.tasks.measures import measure_of


def gathered(kind, data, outputs, targets, there=None):
    """The metric from two batches of different size."""
    measure = measure_of(kind, data)
    there = torch.ones(targets.shape[:1]) if there is None else there
    for part in (slice(0, 5), slice(5, None)):
        measure.add(outputs[:, part], targets[part], there[part])
    return measure.value()


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
