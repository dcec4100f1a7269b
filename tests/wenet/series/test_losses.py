"""Losses that are functions: the gradients of PyTorch's own, whatever the targets, and what is refused."""

import pytest
import torch
from torch.nn import functional

import wenet
from wenet import WenetError
from wenet.nn import named_loss
from wenet.nn.losses import batch_losses, row_losses

from .test_searches import SHORT, sums

WEIGHTS = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)


def weighted(outputs, targets):
    return functional.cross_entropy(outputs, targets, WEIGHTS)


def test_a_function_sees_a_batch_of_each_network():
    outputs = torch.randn(4, 6, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 2, 1, 0])
    found = batch_losses(named_loss(weighted), outputs, targets, torch.ones(7, 6))
    wanted = torch.stack([weighted(one, targets) for one in outputs])
    assert torch.allclose(found, wanted, rtol=1e-12)
    ours, theirs = (torch.autograd.grad(each.sum(), outputs)[0] for each in (found, wanted))
    assert torch.allclose(ours, theirs, rtol=1e-10) and ours.abs().max() > 1e-3
    assert not torch.allclose(found, row_losses("ce", outputs, targets, torch.ones(7, 6)).mean(1), rtol=1e-2)


@pytest.mark.parametrize(
    ("kind", "function"),
    [("mse", torch.nn.MSELoss()), ("mae", functional.l1_loss), ("ce", torch.nn.CrossEntropyLoss())],
)
@pytest.mark.parametrize("every_step", [False, True])
def test_functions_give_what_names_give(kind, function, every_step):
    torch.manual_seed(2)
    there = (torch.arange(5)[:, None] < torch.tensor([5, 2, 3, 5])).double()  # [T, M]
    shape = (5, 4) if every_step else (4,)
    outputs = torch.randn(2, *shape, 3).double()
    targets = torch.randint(3, shape) if kind == "ce" else torch.randn(*shape, 3).double()
    if every_step and kind == "ce":
        targets = targets.where(there.bool(), -100)
    own = named_loss(function)
    rows = row_losses(own, outputs, targets, there)
    assert torch.allclose(rows, row_losses(kind, outputs, targets, there), rtol=1e-12) and rows.abs().min() > 1e-3
    # With a target at each step all steps count alike, and not all rows.
    wanted = (rows * there.sum(0)).sum(1) / there.sum() if every_step else rows.mean(1)
    assert torch.allclose(batch_losses(own, outputs, targets, there), wanted, rtol=1e-12)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda outputs, targets: (outputs - targets).abs(), "must give a number for a batch, not a tensor of shape"),
        (lambda outputs, targets: outputs @ targets, "cannot be computed"),
        (lambda outputs, targets: torch.tensor(1.0), "does not depend on the predictions"),
        (lambda outputs, targets: (outputs.mean() - 9).log(), "is not finite for a batch; it must be"),
    ],
)
def test_what_is_no_loss_is_refused(function, message):
    with pytest.raises(WenetError, match=message):
        outputs = torch.randn(2, 4, 3, requires_grad=True)
        batch_losses(named_loss(function), outputs, torch.randn(4, 3), torch.ones(7, 4))


def test_a_loss_that_needs_several_rows_is_refused():
    """A race measures each sequence alone; NaN there would leave its cells in the order of the pool."""
    name = named_loss(
        lambda outputs, targets: (outputs - targets).square().mean() / (targets - targets.mean()).square().mean()
    )
    outputs, targets = torch.randn(2, 4, 3), torch.randn(4, 3)
    assert batch_losses(name, outputs[..., :1], targets[:, :1], torch.ones(7, 4)).isfinite().all()
    with pytest.raises(WenetError, match="is not finite for a single sequence or step"):
        row_losses(name, outputs[..., :1], targets[:, :1], torch.ones(7, 4))
    diverged = outputs[..., :1] * 1e30
    assert not row_losses(name, diverged, targets[:, :1], torch.ones(7, 4)).isfinite().any()


@pytest.mark.parametrize("losses", [batch_losses, row_losses])
def test_a_loss_may_work_in_place(losses):
    outputs, targets, there = torch.randn(2, 4, 3), torch.randn(4, 3), torch.ones(7, 4)
    kept = outputs.clone(), targets.clone()
    wanted = losses("mse", outputs, targets, there)
    found = losses(named_loss(lambda p, q: p.sub_(q).square().mean()), outputs, targets, there)
    assert torch.allclose(found, wanted, rtol=1e-6)
    assert torch.equal(outputs, kept[0]) and torch.equal(targets, kept[1])


def test_a_search_by_a_loss_of_ones_own(tmp_path, stop_at, monkeypatch):
    from wenet.run import Stopped

    x, _ = sums()
    y = x[:, :, 0].sum(1)
    loss = torch.nn.HuberLoss()
    stop_at(40)
    with pytest.raises(Stopped):
        wenet.search((x, y), task="regress", loss=loss, out=tmp_path / "run", **SHORT)
    monkeypatch.undo()
    named_loss(torch.nn.HuberLoss(delta=9.0))  # another search of this process has one of the same name
    with pytest.raises(WenetError, match="the loss 'HuberLoss' of this run is a function; pass it again"):
        wenet.resume_search(tmp_path / "run")
    found = wenet.resume_search(tmp_path / "run", loss=loss)
    assert found.finished and found.predict(x).shape == (160,)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Its loss was a function, HuberLoss; so call <code>wenet.search</code> with it" in page
    assert "--loss own" not in page and '<th scope="col">validation loss</th>' in page
    assert "baseline  validation RMSE " in str(found) and "from the training mean alone" in str(found)
    assert (
        found.model.half()(torch.zeros(3, 8, 2)).shape
        == found.model.to("meta")(torch.zeros(3, 8, 2, device="meta")).shape
    )
