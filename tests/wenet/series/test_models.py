"""Models of sequences: many at once equal each alone, padding is never read, a step at a time gives the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from wenet import WenetError, random_genotypes
from wenet.nn import DagRNN, SequenceModel, StandaloneRNN, StandaloneSequenceModels, WeightedDagRNN

STEPS, ROWS, FEATURES, HIDDEN, OUTPUTS = 7, 5, 3, 6, 4
CELLS = random_genotypes(3, nodes=3, seed=2)


def batch(seed=1):
    """Sequences of different length, `[T, M, F + 1]`."""
    torch.manual_seed(seed)
    lengths = torch.tensor([7, 1, 4, 7, 2])
    there = (torch.arange(STEPS)[:, None] < lengths).double()
    return torch.cat([torch.randn(STEPS, ROWS, FEATURES).double(), torch.ones(STEPS, ROWS, 1)], -1) * there[..., None]


def models(readout, loss, repeats=(), horizon=0):
    torch.manual_seed(3)
    layer = WeightedDagRNN(FEATURES + 1, HIDDEN, CELLS, coupling="independent", backend="reference")
    return StandaloneSequenceModels(layer, OUTPUTS, loss, readout, repeats, horizon).double()


def one_of(whole, place, readout, repeats=(), horizon=0, classes=()):
    """A single model with the weights of one of many, which reads values as they come."""
    zero, one = torch.zeros(FEATURES), torch.ones(FEATURES)
    targets = (zero[:0], one[:0]) if classes else (torch.zeros(OUTPUTS), torch.ones(OUTPUTS))
    layer = DagRNN(FEATURES + 1, HIDDEN, CELLS[place], backend="reference")
    single = SequenceModel(layer, OUTPUTS, (zero, one, *targets), False, readout, repeats, horizon, classes).double()
    weights = {name: p.detach()[place] for name, p in whole.named_parameters()}
    single.load_state_dict({**single.state_dict(), **weights})
    return single


def targets_of(loss, readout):
    shape = (STEPS, ROWS) if readout == "steps" else (ROWS,)
    return torch.randint(OUTPUTS, shape) if loss == "ce" else torch.randn(*shape, OUTPUTS).double()


@pytest.mark.parametrize("readout", ["last", "mean", "steps"])
@pytest.mark.parametrize("loss", ["ce", "mse", "mae"])
def test_many_at_once_are_each_alone(readout, loss):
    """Losses and gradients, against a plain loop over sequences in double precision."""
    inputs, whole, targets = batch(), models(readout, loss), targets_of(loss, readout)
    total, losses, state = whole.loss(inputs, targets)
    total.backward()
    assert state is None and losses.shape == (3,) and float(losses.std()) > 0
    of_kind = {"ce": functional.cross_entropy, "mse": functional.mse_loss, "mae": functional.l1_loss}[loss]
    for place in range(3):
        single = one_of(whole, place, readout)
        each = []
        for row in range(ROWS):
            length = int(inputs[:, row, -1].sum())
            output, _ = single.rnn(inputs[:length, row : row + 1])  # [T, 1, H]
            read = {"last": output[-1], "mean": output.mean(0), "steps": output[:, 0]}[readout]
            wanted = targets[:length, row] if readout == "steps" else targets[row : row + 1]
            each.append(of_kind(read @ single.head_weight + single.head_bias, wanted))
        alone = torch.stack(each).mean()
        assert float(losses[place]) == pytest.approx(alone.item(), rel=1e-12)
        alone.backward()
        for name, parameter in single.named_parameters():
            assert torch.allclose(whole.get_parameter(name).grad[place], parameter.grad, atol=1e-12), name


@pytest.mark.parametrize("readout", ["last", "mean", "steps"])
def test_what_stands_behind_the_end_is_never_read(readout):
    inputs, whole = batch(), models(readout, "mse")
    targets = targets_of("mse", readout)
    behind = inputs[..., -1] == 0
    garbage = inputs.clone()
    garbage[..., :-1][behind] = 1e3
    ours, theirs = (whole.loss(each, targets)[1] for each in (inputs, garbage))
    assert torch.equal(ours, theirs)
    single = one_of(whole, 0, readout)
    lengths = inputs[..., -1].sum(0).long()
    x = inputs[..., :-1].transpose(0, 1).clone()
    x[behind.T] = float("nan")
    found, clean = single(x, lengths), single(inputs[..., :-1].transpose(0, 1), lengths)
    within = ~behind.T if readout == "steps" else slice(None)
    assert torch.equal(found[within], clean[within]) and found[within].isfinite().all()


def test_a_forecast_counts_from_the_last_values():
    inputs, whole = batch(), models("last", "mse", repeats=(2, 0), horizon=2)
    with torch.no_grad():
        whole.head_weight.zero_()
        whole.head_bias.zero_()
    found = whole(inputs)
    for row, length in enumerate(inputs[..., -1].sum(0).long()):
        last = inputs[length - 1, row]
        assert found[1, row].tolist() == [last[2], last[0], last[2], last[0]]


@pytest.mark.parametrize("readout", ["last", "mean", "steps"])
def test_a_step_at_a_time_gives_the_same(readout):
    single = one_of(models(readout, "mse"), 1, readout)
    x, state = torch.randn(ROWS, STEPS, FEATURES).double(), None
    for number in range(STEPS):
        found, state = single.step(x[:, number], state)
        whole = single(x[:, : number + 1])
        assert torch.allclose(found, whole[:, -1] if readout == "steps" else whole, atol=1e-12)


def test_a_model_reads_and_predicts_in_units():
    """Also where values differ only behind the digits that single precision has."""
    layer = DagRNN(2, HIDDEN, CELLS[0])
    scaling = tuple(torch.tensor([value], dtype=torch.float64) for value in (1.7e9, 2.0, 5e8, 10.0))
    model = SequenceModel(layer, 1, scaling).to(torch.float32)
    x = torch.tensor([1.7e9 + 1, 1.7e9 - 1], dtype=torch.float64).view(1, 2, 1)
    assert model.standardised(x).flatten().tolist() == [0.5, 1.0, -0.5, 1.0]
    with torch.no_grad():
        model.head_weight.zero_()
        model.head_bias.fill_(0.25)
    assert model(x).item() == 5e8 + 2.5


def test_predictions_are_labels():
    single = one_of(models("last", "ce"), 0, "last", classes=("a", "b", "c", "d"))
    x = [np.random.default_rng(1).normal(size=(length, FEATURES)) for length in (3, 5, 2)]
    found, shares = single.predict(x), single.predict_proba(x)
    assert set(found) <= set("abcd") and shares.shape == (3, 4)
    for row, one in enumerate(x):
        assert found[row] == "abcd"[int(single(torch.from_numpy(one)[None]).argmax())]
        assert shares[row].sum() == pytest.approx(1)
    with pytest.raises(WenetError, match="as many features as in training, 3, not 2"):
        single.predict([one[:, :2] for one in x])
    with pytest.raises(WenetError, match=r"training, 3, not 1; \[T, F\] of one sequence is x\[None\]"):
        single.predict(x[0])
    x[1][2, 0] = np.nan
    with pytest.raises(WenetError, match="x, sequence 2, step 3: a value is missing"):
        single.predict(x)
    with pytest.raises(WenetError, match="x must be real numbers, not torch.complex128"):
        single(torch.zeros(3, 9, 2, dtype=torch.complex128))
    with pytest.raises(WenetError, match="x must be a tensor .*, not ndarray; `predict` takes arrays"):
        single(x[0])


class Numbered(torch.utils.data.Dataset):
    """Sequences by number, without an error behind the last."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, number):
        return self.items[number % len(self.items)]


@pytest.mark.parametrize("horizon", [0, 1])
def test_predictions_from_data_sets(horizon):
    """As from a list; of a forecast from each sequence, also where there is one or its items are rows."""
    kind = {"repeats": (0, 1, 2, 0), "horizon": 1} if horizon else {"classes": ("a", "b", "c", "d")}
    single = one_of(models("last", "mse"), 0, "last", **kind)
    x = np.random.default_rng(1).normal(size=(4, STEPS, FEATURES))
    wanted, tensor = single.predict(x), torch.from_numpy(x)
    assert len(wanted) == 4
    alone = torch.utils.data.TensorDataset(tensor)
    for form in (Numbered(list(x)), Numbered(tensor), alone, torch.utils.data.DataLoader(alone, 2), (x, None)):
        assert (single.predict(form) == wanted).all()
        if not horizon:
            assert np.allclose(single.predict_proba(form), single.predict_proba(x))
    assert single.predict(Numbered(list(x[:1]))).shape == wanted[:1].shape
    with pytest.raises(WenetError, match="give a data set of sequences alone"):
        single.predict(torch.utils.data.TensorDataset(tensor, tensor))
    with pytest.raises(WenetError, match="x is a dictionary; give the sequences of one part"):
        single.predict({"train": x, "test": x})


def test_a_layer_of_pytorch_reads_sequences_of_any_length():
    torch.manual_seed(1)
    scaling = (torch.zeros(FEATURES), torch.ones(FEATURES), torch.zeros(OUTPUTS), torch.ones(OUTPUTS))
    single = SequenceModel(nn.LSTM(FEATURES + 1, HIDDEN), OUTPUTS, scaling)
    x = torch.randn(2, STEPS, FEATURES)
    found = single(x, torch.tensor([STEPS, 3]))
    assert torch.allclose(found[1], single(x[1:, :3])[0], atol=1e-6)
    assert np.allclose(single.predict([x[0], x[1, :3]]), found.detach(), atol=1e-6)


@pytest.mark.parametrize("classes", [(), ("a", "b", "c", "d")])
def test_predictions_of_a_model_in_bf16(classes):
    targets = (torch.zeros(0), torch.ones(0)) if classes else (torch.zeros(OUTPUTS), torch.ones(OUTPUTS))
    single = SequenceModel(
        nn.GRU(FEATURES + 1, HIDDEN), OUTPUTS, (torch.zeros(FEATURES), torch.ones(FEATURES), *targets), classes=classes
    ).bfloat16()
    x = np.random.default_rng(1).normal(size=(3, STEPS, FEATURES))
    scores = single(torch.from_numpy(x)).float().detach().numpy()
    if classes:
        assert single.predict(x).tolist() == ["abcd"[row.argmax()] for row in scores]
        assert np.allclose(single.predict_proba(x).sum(1), 1, atol=1e-5)
    else:
        assert np.allclose(single.predict(x), scores, atol=0.01)


def test_a_prediction_leaves_the_mode_as_it_was():
    single = one_of(models("last", "ce"), 0, "last", classes=("a", "b", "c", "d")).train()
    single.rnn.eval()
    single.predict(np.zeros((2, STEPS, FEATURES)))
    assert single.training and not single.rnn.training
    with pytest.raises(WenetError, match="NaN|too far"):
        single.float().predict(np.full((2, STEPS, FEATURES), 1e300))
    assert single.training


@pytest.mark.parametrize(
    ("shape", "lengths", "message"),
    [
        ((2, 5, FEATURES + 1), None, "x must have shape \\[M, T, F\\] with F = 3"),
        ((5, FEATURES), None, "x must have shape"),
        ((2, 0, FEATURES), None, "x has no steps"),
        ((2, 5, FEATURES), torch.tensor([5, 9]), "lengths must be from 1 to 5"),
        ((2, 5, FEATURES), torch.tensor([0, 5]), "lengths must be from 1 to 5"),
        ((2, 5, FEATURES), torch.tensor([5]), "a tensor of shape \\[2\\]"),
        ((2, 5, FEATURES), [5, 3], "a tensor of shape \\[2\\]"),
    ],
)
def test_a_model_refuses_what_does_not_fit(shape, lengths, message):
    single = one_of(models("last", "ce"), 0, "last", classes=("a", "b", "c", "d"))
    with pytest.raises(WenetError, match=message):
        single(torch.randn(*shape), lengths)
    with pytest.raises(WenetError, match="x must have shape \\[M, F\\]"):
        single.step(torch.randn(*shape[:2], 1))


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_rivals_are_pytorchs_layers(kind):
    torch.manual_seed(1)
    ours = StandaloneRNN(kind, FEATURES, HIDDEN, 2).double()
    x = torch.randn(STEPS, ROWS, FEATURES).double()
    output, state = ours(x)
    each, _ = ours(x.expand(2, -1, -1, -1))
    assert torch.equal(output, each)
    for place in range(2):
        theirs = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind](FEATURES, HIDDEN).double()
        names = ("weight_input", "weight_hidden", "bias_input", "bias_hidden")
        for name, parameter in zip(names, theirs.parameters(), strict=True):
            parameter.data.copy_(ours.get_parameter(name)[place])
        expected, last = theirs(x)
        assert torch.allclose(output[:, place], expected, atol=1e-12)
        states = torch.cat(last, -1) if kind == "lstm" else last
        assert torch.allclose(state[place], states[0], atol=1e-12)


@pytest.mark.parametrize("space", ["dag", "gated"])
def test_hidden_sizes_follow_from_parameters(space):
    """The count at other sizes is the one foreseen from the smallest."""
    from wenet.searching import resolve_config
    from wenet.searching.space import draw_pool
    from wenet.tasks import task_of
    from wenet.training import hidden_for, parameter_count

    settings = {"device": "cpu", "precision": "fp32", "backend": "cpu", "space": space, "pool": 12, "seed": 3}
    config = resolve_config("numbers", settings)
    task = task_of(config)
    generator = np.random.default_rng(1)
    data = task.take((generator.normal(size=(60, 4, 2)), generator.integers(2, size=60)))
    for architecture in (*draw_pool(config)[-4:], "lstm", "rnn"):
        for wanted in (700, 5000):
            size = hidden_for(wanted, config, architecture, task, data)
            found, more = (
                parameter_count(replace(config, hidden=each), architecture, task, data) for each in (size, size + 1)
            )
            assert found <= wanted < more


def small_and_large():
    """Networks of different sizes in one call, and each of them alone, with the same weights."""
    from wenet.nn import StandaloneCellRNN
    from wenet.programs import random_programs

    programs, sizes = random_programs(4, states=2, seed=3), (5, 8, 6, 8)
    models = StandaloneSequenceModels(StandaloneCellRNN(3, 8, programs, sizes=sizes), 2, "mse").double()
    single = []
    for place, (program, size) in enumerate(zip(programs, sizes, strict=True)):
        model = StandaloneSequenceModels(StandaloneCellRNN(3, size, [program]), 2, "mse").double()
        with torch.no_grad():
            model.rnn.weights.copy_(models.rnn.weights[place : place + 1, : model.rnn.weights.shape[1]])
            model.head_weight.copy_(models.head_weight[place : place + 1, :size])
        single.append(model)
    return models, single, sizes


def test_weights_name_their_sizes():
    """Also where a layer without values, of which no memory is read, takes them."""
    from wenet.nn import StandaloneCellRNN
    from wenet.programs import random_programs

    programs, x = random_programs(2, states=1, seed=3), torch.randn(4, 2, 3)

    def layer(*sizes):
        return StandaloneCellRNN(3, 8, programs, sizes=sizes)

    rnn = layer(8, 5)
    weights, wanted = rnn.state_dict(), rnn(x)[0]
    for other in (layer(8, 6), layer(8, 8)):
        assert other.weights.shape == rnn.weights.shape
        with pytest.raises(WenetError, match="the weights of this layer are of hidden sizes 8, 5, but the layer has 8"):
            other.load_state_dict(weights)
        other.load_state_dict({"weights": weights["weights"]})  # as an earlier version wrote them
    with torch.device("meta"):
        empty, assigned = layer(8, 5), layer(8, 5)
    empty.to_empty(device="cpu").load_state_dict(weights)
    assigned.load_state_dict(weights, assign=True)
    moved = layer(8, 5).to_empty(device="cpu")
    moved.load_state_dict(weights)
    for each in (empty, assigned, moved):
        assert torch.equal(each(x)[0][:, 0], wanted[:, 0]) and torch.equal(each(x)[0][:, 1, :, :5], wanted[:, 1, :, :5])
        assert torch.equal(each.units, rnn.units)


def test_networks_of_different_sizes_train_as_each_alone():
    torch.manual_seed(4)
    models, single, sizes = small_and_large()
    inputs, targets = torch.randn(7, 5, 3).double(), torch.randn(5, 2).double()
    inputs[..., -1] = 1
    losses = models.loss(inputs, targets)[1]
    models.loss(inputs, targets)[0].backward()
    for place, (model, size) in enumerate(zip(single, sizes, strict=True)):
        loss, each, _ = model.loss(inputs, targets)
        loss.backward()
        assert losses[place] == pytest.approx(float(each[0]), rel=1e-12)
        own = model.rnn.weights.grad[0]
        assert torch.allclose(models.rnn.weights.grad[place, : len(own)], own, rtol=1e-10, atol=1e-13)
        assert not models.rnn.weights.grad[place, len(own) :].any() and own.abs().max() > 1e-4
        assert torch.allclose(models.head_weight.grad[place, :size], model.head_weight.grad[0], rtol=1e-10)
        assert not models.head_weight.grad[place, size:].any()


def test_networks_of_different_sizes_start_as_their_size_asks():
    from wenet.nn import StandaloneCellRNN
    from wenet.programs import random_programs

    torch.manual_seed(1)
    layer = StandaloneCellRNN(3, 100, random_programs(2, states=1, seed=3), sizes=(25, 100))
    models = StandaloneSequenceModels(layer, 50, "mse")
    largest = models.head_weight.detach().abs().amax((1, 2))
    assert largest.tolist() == pytest.approx([0.2, 0.1], rel=0.05)
    assert not models.head_weight[0, 25:].any()
    own = layer.cells.programs[0].parameters(3, 25)
    assert float(layer.weights.detach()[0, :own].abs().max()) == pytest.approx(0.2, rel=0.05)
    assert not layer.weights[0, own:].any()
    with pytest.raises(WenetError, match="sizes must name a size from 1 to 100"):
        StandaloneCellRNN(3, 100, random_programs(2, states=1, seed=3), sizes=(25, 101))
