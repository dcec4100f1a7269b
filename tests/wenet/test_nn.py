import copy
import math

import pytest
import torch

from wenet import Genotype, WenetError, random_genotypes
from wenet.cells.published import DARTS_V1, DARTS_V2, NAONET, load_genotype
from wenet.nn.dropout import locked_dropout
from wenet.nn.language import LanguageModel, StandaloneLanguageModels, sample_words
from wenet.nn.lstm import StackedLSTM, StandaloneRNN
from wenet.nn.rnn import DagRNN
from wenet.nn.softmaxes import MixtureOfSoftmaxes
from wenet.nn.standalone_cells import StandaloneCellRNN
from wenet.nn.weighted import WeightedDagRNN
from wenet.nn.weighted_cells import WeightedCellRNN
from wenet.programs import random_programs
from wenet.tasks import LanguageModelling
from wenet.training.nt_asgd import build_model
from wenet.training.settings import LSTMS, resolve_train_config

from ..needs import needs_bf16
from .helpers import words

CELL = Genotype.from_text("sigmoid0 relu1 tanh1 mean 2,3")


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("vocabulary", "size", "genotype", "form", "expected"),
    [
        (10_000, 850, DARTS_V2, "highway", 22_960_000),
        (33_278, 700, DARTS_V2, "highway", 33_127_878),
        (10_000, 850, random_genotypes(1, 7, 0)[0], "highway", 21_515_000),
        (33_278, 700, random_genotypes(1, 7, 0)[0], "highway", 32_147_878),
        (10_000, 850, NAONET, "highway", 27_295_000),
        (33_278, 700, NAONET, "highway", 36_067_878),
        (10_000, 850, DARTS_V2, "plain", 10_000 * 850 + 10_000 + 2 * 850**2 + 8 * 850**2),
        (33_278, 700, DARTS_V2, "plain", 33_278 * 700 + 33_278 + 2 * 700**2 + 8 * 700**2),
    ],
)
def test_parameter_counts_are_the_published_ones(vocabulary, size, genotype, form, expected):
    with torch.device("meta"):
        model = LanguageModel(vocabulary, DagRNN(size, size, genotype, form=form))
    assert count(model) == expected


@pytest.mark.parametrize(
    ("settings", "vocabulary", "millions"),
    [
        ({"cell": "lstm"}, 10_000, 24),
        ({"cell": "lstm", "dataset": "wikitext-2"}, 33_278, 33),
        ({"cell": "lstm-skip"}, 10_000, 24),
        ({"cell": "lstm-skip", "dataset": "wikitext-2"}, 33_278, 24),
        ({"cell": "rhn"}, 10_000, 23),
        ({"cell": "lstm", "softmax": "mos"}, 10_000, 22),
        ({"cell": "lstm", "softmax": "mos", "dataset": "wikitext-2"}, 33_278, 35),  # Yang et al.; 33 in the paper
        ({"cell": "darts-v1"}, 10_000, 23),
        ({"cell": "enas-lm"}, 10_000, 23),
        ({"cell": "naonet-ws"}, 10_000, 27),
        ({"cell": "random:1"}, 10_000, 23),
        ({"cell": "naonet-ws", "dataset": "wikitext-2"}, 33_278, 36),
    ],
)
def test_parameter_counts_of_trained_architectures(settings, vocabulary, millions):
    config = resolve_train_config("paper", {**settings, "precision": "fp32"})
    genotype = None if config.cell in LSTMS else load_genotype(config.cell)
    with torch.device("meta"):
        model = build_model(config, genotype, LanguageModelling(), words(vocabulary))
    assert millions - 0.5 <= count(model) / 1e6 < millions + 0.6


def test_weights_of_a_search_network():
    with torch.device("meta"):
        rnn = WeightedDagRNN(200, 200, [DARTS_V2] * 120)
    assert count(rnn) - 120 == 120 * 800_000  # 96M, and one mixing weight each


def test_dag_rnn_is_called_like_torch_rnn():
    ours, torchs = DagRNN(5, 7, CELL), torch.nn.RNN(5, 7)
    x = torch.randn(4, 3, 5)
    for h0 in (None, torch.randn(1, 3, 7)):
        (output, h), (expected, h_expected) = ours(x, h0), torchs(x, h0)
        assert output.shape == expected.shape
        assert h.shape == h_expected.shape
        assert torch.equal(output[-1:], h)


def test_carrying_the_state_equals_one_long_sequence():
    rnn, x = DagRNN(5, 7, CELL).double(), torch.randn(6, 3, 5, dtype=torch.float64)
    whole, _ = rnn(x)
    first, h = rnn(x[:2])
    second, _ = rnn(x[2:], h)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["highway", "plain"])
def test_independent_networks_equal_single_ones(form):
    cells = random_genotypes(3, 4, seed=2)
    batch = WeightedDagRNN(5, 7, cells, form=form, coupling="independent").double()
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    output, h = batch(x)
    assert output.shape == (6, 3, 3, 7)
    assert h.shape == (3, 3, 7)
    for k, cell in enumerate(cells):
        single = DagRNN(5, 7, cell, form=form).double()
        with torch.no_grad():
            single.weight_input.copy_(batch.weight_input[k])
            single.weight_hidden.copy_(batch.weight_hidden[k])
            single.weight_nodes.copy_(batch.weight_nodes[k])
        torch.testing.assert_close(output[:, k], single(x)[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("cell", "norm", "stays"), [("tanh0 relu1", None, True), ("sigmoid0", None, False), ("sigmoid0", "batch", True)]
)
def test_a_plain_cell_gets_away_from_zero_by_a_sigmoid_alone(cell, norm, stays):
    rnn = WeightedDagRNN(5, 7, [Genotype.from_text(cell)], form="plain", norm=norm).double()
    output, _ = rnn(torch.randn(6, 3, 5, dtype=torch.float64))
    assert bool((output == 0).all()) is stays


def test_a_mixture_that_trusts_one_network_is_that_network():
    cells = random_genotypes(3, 4, seed=2)
    mixture = WeightedDagRNN(5, 7, cells).double()
    with torch.no_grad():
        mixture.mix_logits.copy_(torch.tensor([-1e3, 0.0, -1e3]))
    single = DagRNN(5, 7, cells[1]).double()
    with torch.no_grad():
        for name in ("weight_input", "weight_hidden", "weight_nodes"):
            getattr(single, name).copy_(getattr(mixture, name)[1])
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(mixture(x)[0], single(x)[0], rtol=1e-10, atol=1e-12)


def test_networks_left_out_of_the_mixture():
    """In training some are left out, and the others share the whole in their proportions; in evaluation none is."""
    torch.manual_seed(0)
    rnn = WeightedDagRNN(5, 7, random_genotypes(4, 4, seed=2), mix_dropout=0.5).double()
    with torch.no_grad():
        rnn.mix_logits.copy_(torch.tensor([0.1, 0.2, 0.4, 0.8]))
    weights, left_out = rnn.mixing_weights(), torch.zeros(4)
    for _ in range(400):
        mix = rnn._mix()
        kept = mix > 0
        torch.testing.assert_close(mix[kept], weights[kept] / weights[kept].sum())
        left_out += ~kept
    assert bool(((left_out / 400 - 0.5 * (1 - 0.5**3)).abs() < 0.1).all())  # at least one stays
    assert torch.equal(rnn.eval()._mix(), weights)


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("form", ["highway", "plain"])
def test_own_outputs_add_up_to_the_mixture(norm, form):
    rnn = WeightedDagRNN(5, 7, random_genotypes(3, 4, seed=2), form=form, norm=norm).double()
    with torch.no_grad():
        rnn.mix_logits.copy_(torch.tensor([0.1, 0.2, 0.9]))
    x, h = torch.randn(6, 3, 5, dtype=torch.float64), torch.randn(1, 3, 7, dtype=torch.float64)
    rnn(x)
    mixed, _ = rnn.eval()(x, h)
    own = rnn.own_outputs(x, torch.cat([h, mixed[:-1]]))
    torch.testing.assert_close(torch.tensordot(rnn.mixing_weights(), own, dims=1), mixed, rtol=1e-10, atol=1e-12)


def test_without_a_mixture_nothing_of_it_can_be_set():
    with pytest.raises(WenetError, match="needs a mixture"):
        WeightedDagRNN(5, 7, random_genotypes(2, 4, seed=2), coupling="independent", mix_dropout=0.1)


def test_loss_of_each_network_by_itself():
    """A mixture that trusts one network has that network's loss, and the others have losses of their own."""
    rnn = WeightedDagRNN(7, 7, random_genotypes(3, 4, seed=2))
    model = LanguageModel(11, rnn, init_range=0.5).double().eval()
    with torch.no_grad():
        rnn.mix_logits.copy_(torch.tensor([-1e3, 0.0, -1e3]))
    text, h = torch.randint(11, (6, 3)), torch.randn(1, 3, 7, dtype=torch.float64)
    losses, state = model.network_losses(text[:-1], text[1:], h)
    _, expected, expected_state = model.loss(text[:-1], text[1:], h)
    torch.testing.assert_close(losses[1], expected)
    assert torch.equal(state, expected_state)
    assert len(set(losses.tolist())) == 3


def waves(shape, phase):
    """Numbers that every program can make again: the sine of a running number."""
    return torch.sin(1.7 * torch.arange(1, math.prod(shape) + 1, dtype=torch.float64) + phase).view(shape)


@pytest.mark.parametrize("training", [True, False])
def test_normalised_states_are_those_of_darts(training):
    """Its search cell with one operation and one ancestor a node, in training, on the same weights: the last output of
    three steps. In evaluation ours are the same, of the batch too, which those of DARTS are not."""
    rnn = WeightedDagRNN(3, 3, [DARTS_V2], norm="batch").double().train(training)
    both = waves((6, 6), 0)
    with torch.no_grad():
        rnn.weight_input.copy_(both[:3])
        rnn.weight_hidden.copy_(both[3:])
        rnn.weight_nodes.copy_(torch.stack([waves((3, 6), node) for node in range(1, 9)]))
    output, _ = rnn(waves((3, 4, 3), 20), waves((1, 4, 3), 30))
    of_darts = [
        [-0.9091294669773304, 0.6176441319493209, -0.14250869489212709],
        [-0.37192650445575126, -1.0153771417957618, 0.990814634370287],
        [0.6127610164150262, -0.4366328893041195, -1.3112021791606954],
        [0.6682949550180556, 0.8343658991505604, 0.4628962396825353],
    ]
    torch.testing.assert_close(output[-1], torch.tensor(of_darts, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_networks_that_share_their_weights_are_those_of_darts():
    """Its search cell once with each of two cells, on the same weights in every step, a quarter and three quarters of
    their outputs handed on; and the gradients that both of them add to."""
    rnn = WeightedDagRNN(3, 3, [DARTS_V2, DARTS_V1], norm="batch", shared_weights=True).double()
    both = waves((6, 6), 0)
    with torch.no_grad():
        rnn.weight_input.copy_(both[:3])
        rnn.weight_hidden.copy_(both[3:])
        rnn.weight_nodes.copy_(torch.stack([waves((3, 6), node) for node in range(1, 9)]))
        rnn.mix_logits.copy_(torch.tensor([0.25, 0.75], dtype=torch.float64).log())
    assert rnn.weight_nodes.shape == (1, 8, 3, 6)
    output, _ = rnn(waves((3, 4, 3), 20), waves((1, 4, 3), 30))
    output[-1].square().sum().backward()
    of_darts = [
        [-0.6379993946279364, -0.5359891735277053, -0.05237916991728628],
        [-0.4844633332570685, -0.3710043472305872, 0.8034439406301067],
        [0.5084289359998339, -0.14399465418080154, -0.6969628116162305],
        [0.614033791885171, 1.0509881749390941, -0.05410195909658986],
    ]
    close = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(output[-1].detach(), torch.tensor(of_darts, dtype=torch.float64), **close)
    gradients = [rnn.weight_input.grad.sum() + rnn.weight_hidden.grad.sum(), rnn.weight_nodes.grad[0, 2].square().sum()]
    expected = torch.tensor([-0.08128553632833757, 28.67187071682511], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(gradients), expected, **close)


def test_checkpoints_with_running_statistics_still_open():
    rnn = WeightedDagRNN(3, 4, random_genotypes(2, 3, seed=0), norm="batch")
    former = {"running_mean": torch.zeros(2, 4, 4), "running_var": torch.ones(2, 4, 4), "running_scale": torch.ones(2)}
    again = WeightedDagRNN(3, 4, random_genotypes(2, 3, seed=0), norm="batch")
    again.load_state_dict({**rnn.state_dict(), **former})
    assert torch.equal(again.weight_nodes, rnn.weight_nodes)
    model = LanguageModel(5, WeightedDagRNN(4, 4, random_genotypes(2, 3, seed=0), norm="batch"))
    model.load_state_dict({**model.state_dict(), **{f"rnn.{name}": tensor for name, tensor in former.items()}})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        again.load_state_dict({**rnn.state_dict(), "running_norm": torch.ones(2)})


def test_dropout_masks_are_locked_over_time_and_off_in_evaluation():
    torch.manual_seed(0)
    model = LanguageModel(50, DagRNN(64, 64, CELL, dropout_x=0.5, dropout_h=0.5), 0.5, 0.5)
    embedded = locked_dropout(model, torch.ones(7, 3, 64), 0.5)
    assert torch.equal(embedded[0], embedded[6])
    assert set(embedded.unique().tolist()) == {0.0, 2.0}
    tokens = torch.randint(50, (7, 3))
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])


def test_stacked_lstm_is_torch_lstm():
    """Layers of one size without dropout are those of torch; the state carries over."""
    ours, torchs = StackedLSTM(5, [7, 7, 7]).double(), torch.nn.LSTM(5, 7, num_layers=3).double()
    with torch.no_grad():
        for index, layer in enumerate(ours.layers):
            for name, parameter in layer.named_parameters():
                parameter.copy_(getattr(torchs, name.replace("l0", f"l{index}")))
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    expected, _ = torchs(x)
    whole, state = ours(x)
    torch.testing.assert_close(whole, expected)
    first, h = ours(x[:2])
    second, last = ours(x[2:], h)
    torch.testing.assert_close(torch.cat([first, second]), expected)
    torch.testing.assert_close(last, state)


def test_lstm_that_adds_up_its_layers():
    plain, skip = StackedLSTM(5, [7, 7]), StackedLSTM(5, [7, 7], skip=True)
    skip.load_state_dict(plain.state_dict())
    lower = StackedLSTM(5, [7])
    lower.load_state_dict({name: value for name, value in plain.state_dict().items() if ".0." in name})
    x = torch.randn(6, 3, 5)
    torch.testing.assert_close(skip(x)[0], lower(x)[0] + plain(x)[0])


def test_dropped_hidden_weights():
    """With all but none of the hidden weights kept, a layer sees its input alone; the gradient reaches those kept."""
    torch.manual_seed(0)
    lstm = StackedLSTM(5, [64], dropout_h=0.5)
    x = torch.randn(3, 2, 5)
    assert not torch.equal(lstm(x)[0], lstm(x)[0])
    lstm(x)[0].square().sum().backward()
    gradient = lstm.layers[0].weight_hh_l0.grad
    assert 0.4 < (gradient == 0).float().mean() < 0.6
    lstm.eval()
    assert torch.equal(lstm(x)[0], lstm(x)[0])


def test_mixture_of_softmaxes():
    """Its loss, computed in parts, is that of its log-probabilities, which are those of the formula."""
    torch.manual_seed(0)
    mixture = MixtureOfSoftmaxes(6, 4, 3).double()
    features, words = torch.randn(50, 20, 6, dtype=torch.float64, requires_grad=True), torch.randn(11, 4).double()
    bias, targets = torch.randn(11, dtype=torch.float64), torch.randint(11, (50, 20))
    prior = torch.softmax(features @ mixture.prior.weight.T, -1)
    contexts = torch.tanh(mixture.context(features)).view(50, 20, 3, 4)
    expected = (prior.unsqueeze(-1) * torch.softmax(contexts @ words.T + bias, -1)).sum(-2).log()
    torch.testing.assert_close(mixture(features, words, bias), expected)
    nats = -expected.gather(-1, targets.unsqueeze(-1)).mean()
    found = mixture.cross_entropy(features, targets, words, bias)
    torch.testing.assert_close(found, nats)
    gradients = (torch.autograd.grad(value, features, retain_graph=True)[0] for value in (found, nats))
    torch.testing.assert_close(*gradients)


def test_a_mixture_of_one_is_a_softmax():
    model = LanguageModel(11, DagRNN(4, 6, CELL), mixture=MixtureOfSoftmaxes(6, 4, 1))
    tokens, targets = torch.randint(11, (2, 5, 3))
    scores, _ = model(tokens)
    expected = torch.nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model.loss(tokens, targets)[1], expected.detach())


def test_loss_and_regularisers():
    model = LanguageModel(11, DagRNN(6, 6, CELL)).double()
    tokens, targets = torch.randint(11, (2, 5, 3))
    logits, _ = model(tokens)
    raw, _ = model.rnn(model.embedding(tokens))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss, cross_entropy, _ = model.loss(tokens, targets, None, 2.0, 3.0)
    torch.testing.assert_close(cross_entropy, expected.detach())
    penalty = 2 * (raw**2).mean() + 3 * ((raw[1:] - raw[:-1]) ** 2).mean()
    torch.testing.assert_close(loss, expected + penalty)
    assert model.loss(tokens[:1], targets[:1], None, 0.0, 3.0)[0].isfinite()


def test_untrained_model_knows_nothing():
    model = LanguageModel(1000, DagRNN(8, 8, CELL))
    _, cross_entropy, _ = model.loss(*torch.randint(1000, (2, 5, 3)))
    assert float(cross_entropy) == pytest.approx(math.log(1000), abs=0.02)


def test_state_dict_deepcopy_and_compile():
    rnn, x = DagRNN(5, 7, CELL), torch.randn(4, 3, 5)
    expected, _ = rnn(x)
    other = DagRNN(5, 7, CELL)
    other.load_state_dict(rnn.state_dict())
    assert torch.equal(other(x)[0], expected)
    assert torch.equal(copy.deepcopy(rnn)(x)[0], expected)
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[0], expected)
    compiled(x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in rnn.parameters())


def test_a_search_model_compiles_into_one_graph():
    model = LanguageModel(50, WeightedDagRNN(8, 8, random_genotypes(2, 3, 0), norm="batch"))
    tokens = torch.randint(50, (4, 3))
    loss, _, _ = torch.compile(model.loss, fullgraph=True, backend="aot_eager")(tokens, tokens)
    loss.backward()
    assert model.rnn.mix_logits.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DagRNN(0, 7, CELL), "at least 1"),
        (lambda: DagRNN(5, 7, CELL, form="round"), "unknown form 'round'"),
        (lambda: DagRNN(5, 7, CELL, precision="fp8"), "unknown precision 'fp8'"),
        (lambda: DagRNN(5, 7, CELL, precision="fp64")(torch.randn(4, 3, 5)), "'fp64' needs operands of torch.float64"),
        (lambda: DagRNN(5, 7, CELL, precision="bf16", backend="reference")(torch.randn(4, 3, 5)), "no products"),
        (lambda: DagRNN(5, 7, CELL, dropout_x=1.0), "dropout_x must lie in"),
        (lambda: WeightedDagRNN(5, 7, []), "at least one genotype"),
        (lambda: WeightedDagRNN(5, 7, [CELL, DARTS_V2]), "same number of nodes"),
        (lambda: WeightedDagRNN(5, 7, [CELL], coupling="loose"), "unknown coupling"),
        (lambda: WeightedDagRNN(5, 7, [CELL], norm="layer"), "unknown norm"),
        (
            lambda: WeightedDagRNN(5, 7, [CELL], precision="bf16", backend="reference")(torch.randn(4, 3, 5)),
            "no products",
        ),
        (lambda: LanguageModel(9, DagRNN(5, 7, CELL)), "input_size == hidden_size"),
        (lambda: StackedLSTM(5, []), "at least one layer"),
        (lambda: StackedLSTM(5, [4, 3], skip=True), "sizes must be equal"),
        (lambda: DagRNN(5, 7, CELL)(torch.randn(4, 3, 6)), r"\[T, M, 5\]"),
        (lambda: DagRNN(5, 7, CELL)(torch.randn(4, 3, 5), torch.zeros(1, 2, 7)), "h0 must have shape"),
        (lambda: WeightedDagRNN(5, 7, [CELL])(torch.randn(4, 3, 5), torch.zeros(2, 3, 7)), "h0 must have shape"),
        (lambda: DagRNN(5, 7, CELL)(torch.full((4, 3, 5), math.nan)), "NaN"),
    ],
)
def test_errors(make, message):
    with pytest.raises(WenetError, match=message):
        make()


def independent(cells, size=5, **options):
    rnn = WeightedDagRNN(size, size, cells, coupling="independent", backend="reference")
    return StandaloneLanguageModels(11, rnn, init_range=0.5, **options).double()


def standalone(models, k, size=5):
    """Network k of them as a language model of its own."""
    cell = random_genotypes(3, 3, 0)[k]
    model = LanguageModel(11, DagRNN(size, size, cell, backend="reference")).double()
    with torch.no_grad():
        model.embedding.weight.copy_(models.embedding[k])
        model.decoder_bias.copy_(models.decoder_bias[k])
        for name in ("weight_input", "weight_hidden", "weight_nodes"):
            getattr(model.rnn, name).copy_(getattr(models.rnn, name)[k])
    return model


def test_independent_models_equal_standalone_ones():
    """Losses, regularisers, states and every gradient."""
    torch.manual_seed(0)
    models = independent(random_genotypes(3, 3, 0))
    torch.nn.init.normal_(models.decoder_bias)
    tokens, targets = torch.randint(11, (2, 7, 4))
    h0 = torch.randn(3, 4, 5, dtype=torch.double)
    loss, cross_entropy, h = models.loss(tokens, targets, h0, 0.3, 0.7)
    loss.backward()
    total, embedding = torch.tensor(0.0).double(), torch.zeros_like(models.embedding)
    for k in range(3):
        model = standalone(models, k)
        own_loss, own_cross_entropy, own_h = model.loss(tokens, targets, h0[k : k + 1], 0.3, 0.7)
        own_loss.backward()
        total += own_loss.detach()
        torch.testing.assert_close(cross_entropy[k], own_cross_entropy)
        torch.testing.assert_close(h[k], own_h[0])
        torch.testing.assert_close(models.decoder_bias.grad[k], model.decoder_bias.grad)
        for name in ("weight_input", "weight_hidden", "weight_nodes"):
            torch.testing.assert_close(getattr(models.rnn, name).grad[k], getattr(model.rnn, name).grad)
        embedding[k] += model.embedding.weight.grad
    torch.testing.assert_close(loss.detach(), total)
    torch.testing.assert_close(models.embedding.grad, embedding)
    with torch.no_grad():
        torch.testing.assert_close(models.loss(tokens, targets, h0)[1], cross_entropy)


def test_cross_entropy_of_independent_models_is_stable():
    """Logits far apart: the log of a share that vanishes is never taken."""
    models = independent(random_genotypes(3, 3, 0)).float()
    with torch.no_grad():
        models.decoder_bias.fill_(-300.0)[:, 0] = 300.0
    _, cross_entropy, _ = models.loss(torch.zeros(2, 2, dtype=torch.long), torch.ones(2, 2, dtype=torch.long))
    torch.testing.assert_close(cross_entropy, torch.full((3,), 600.0), rtol=1e-2, atol=0)


def cells_mixed(**options):
    return LanguageModel(11, WeightedDagRNN(5, 5, random_genotypes(3, 3, 0), **options), 0.0, 0.0, 0.5, 0.5)


def programs_mixed(**options):
    return LanguageModel(11, WeightedCellRNN(5, 5, random_programs(3, states=2, seed=1), **options), 0.0, 0.0, 0.5, 0.5)


def of_rnn(rnn):
    return StandaloneLanguageModels(11, rnn, 0.0, 0.0, 0.5, 0.5)


def cells_apart(**options):
    return of_rnn(WeightedDagRNN(5, 5, random_genotypes(3, 3, 0), coupling="independent", **options))


def programs_apart(**options):
    return of_rnn(StandaloneCellRNN(5, 5, random_programs(3, states=2, seed=1), **options))


def layers_apart(**options):
    return of_rnn(StandaloneRNN("gru", 5, 5, 3, **options))


MODELS = [cells_mixed, programs_mixed, cells_apart, programs_apart, layers_apart]


def loss_and_gradients(model, tokens, targets, h0=None):
    model.zero_grad()
    torch.manual_seed(2)  # of the words dropped
    loss, each, h = model.loss(tokens, targets, h0)
    loss.backward()
    return loss.detach(), each, h.detach(), *(parameter.grad.clone() for parameter in model.parameters())


def shapes_projected(model, monkeypatch):
    """Steps and rows of what the layer projects, from now on."""
    shapes = []
    project = model.rnn.project
    monkeypatch.setattr(model.rnn, "project", lambda x: shapes.append(tuple(x.shape[-3:-1])) or project(x))
    return shapes


def looked_up_and_not(model, monkeypatch, *given):
    """Loss, state and gradients with the vocabulary projected as a whole, and with tokens one by one."""
    shapes = shapes_projected(model, monkeypatch)
    looked_up = loss_and_gradients(model, *given)
    monkeypatch.setattr(model, "_looks_up", lambda rnn, tokens: False)
    one_by_one = loss_and_gradients(model, *given)
    assert shapes == [(1, 11), (7, 4)]
    assert all(one.abs().sum() > 0 for one in one_by_one)
    return looked_up, one_by_one


@pytest.mark.parametrize("make", MODELS)
def test_a_small_vocabulary_is_projected_as_a_whole(make, monkeypatch):
    """With the loss, state and gradients that tokens projected one by one have, where words are dropped too."""
    torch.manual_seed(0)
    model = make(backend="reference").double()
    looked_up, one_by_one = looked_up_and_not(model, monkeypatch, *torch.randint(11, (2, 7, 4)))
    torch.testing.assert_close(looked_up, one_by_one)


@pytest.mark.parametrize("make", [cells_mixed, programs_mixed, cells_apart, programs_apart])
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({"norm": "batch"}, 1e-4), pytest.param({"precision": "bf16"}, 3e-2, marks=needs_bf16)],
)
def test_a_vocabulary_is_projected_as_precisely(make, options, tolerance, monkeypatch):
    """From a state that is given, as in every window but the first."""
    if make is programs_apart and "norm" in options:
        options = {}
    torch.manual_seed(0)
    model = make(**options)
    tokens, targets = torch.randint(11, (2, 7, 4))
    with torch.no_grad():
        h0 = torch.tanh(model.loss(tokens, targets)[2])
    looked_up, one_by_one = looked_up_and_not(model, monkeypatch, tokens, targets, h0)
    for found, wanted in zip(looked_up, one_by_one, strict=True):
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


@pytest.mark.parametrize("make", MODELS)
def test_a_vocabulary_is_projected_under_autocast(make, monkeypatch):
    torch.manual_seed(0)
    model = make()
    tokens, targets = torch.randint(11, (2, 7, 4))
    with torch.autocast("cpu", torch.bfloat16):
        looked_up, one_by_one = looked_up_and_not(model, monkeypatch, tokens, targets)
    for found, wanted in zip(looked_up, one_by_one, strict=True):
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted, rtol=3e-2, atol=3e-2 * float(wanted.abs().max()))


@pytest.mark.parametrize("make", MODELS)
def test_a_vocabulary_is_not_projected_where_features_are_dropped_or_words_many(make, monkeypatch):
    model = make(dropout_x=0.5)
    shapes = shapes_projected(model, monkeypatch)
    many, few = torch.randint(11, (7, 4)), torch.randint(11, (2, 4))
    model.loss(many, many)
    model.eval()
    model.loss(many, many)
    model.loss(few, few)
    assert shapes == [(7, 4), (1, 11), (2, 4)]


@pytest.mark.parametrize("make", [cells_mixed, programs_mixed])
def test_tokens_have_steps_and_rows(make):
    tokens = torch.randint(11, (28,))
    with pytest.raises(WenetError, match="must have shape"):
        make().loss(tokens, tokens)


def test_independent_models_refuse_a_mixture():
    with pytest.raises(WenetError, match="coupling='independent'"):
        StandaloneLanguageModels(11, WeightedDagRNN(5, 5, [CELL]))
    with pytest.raises(WenetError, match="sampled_words"):
        independent(random_genotypes(3, 3, 0), sampled_words=-1)


def test_sampled_words_are_targets_and_others_at_equal_chance():
    torch.manual_seed(0)
    targets = torch.tensor([7, 2, 7])
    seen = torch.zeros(10)
    for _ in range(400):
        words, correction, places = sample_words(targets, 10, 4)
        assert torch.equal(words[places], targets) and words[:2].tolist() == [2, 7] and len(words.unique()) == 6
        assert correction[:2].tolist() == [0, 0] and correction[2:].tolist() == pytest.approx([math.log(2)] * 4)
        seen[words] += 1
    assert seen[[2, 7]].tolist() == [400, 400]
    assert all(150 < count < 250 for count in seen[[0, 1, 3, 4, 5, 6, 8, 9]])


def test_a_sampled_softmax_has_the_right_sum_in_the_mean():
    """The loss is that over all words where all are drawn; else the mean of the softmax's sum is right."""
    torch.manual_seed(0)
    models = independent(random_genotypes(3, 3, 0), sampled_words=11)
    torch.nn.init.normal_(models.decoder_bias)
    tokens, targets = torch.randint(11, (2, 1, 1))
    models.eval()
    full = models.loss(tokens, targets)[1]
    models.train()
    torch.testing.assert_close(models.loss(tokens, targets)[1], full)
    models.sampled_words = 3
    with torch.no_grad():
        sampled = torch.stack([models.loss(tokens, targets)[1] for _ in range(4000)])  # [draws, n]
    assert (sampled - full).abs().max() > 0.05
    # With one target the loss is the log of the sum, less the target's logit.
    torch.testing.assert_close((sampled - full).exp().mean(0), torch.ones(3).double(), rtol=0.03, atol=0)


def test_a_sampled_softmax_leaves_other_words_alone():
    torch.manual_seed(0)
    models = independent(random_genotypes(3, 3, 0), sampled_words=2)
    tokens, targets = torch.randint(4, (2, 5, 2))
    models.loss(tokens, targets)[0].backward()
    touched = models.decoder_bias.grad.ne(0)  # [n, V]
    assert touched.sum(1).tolist() == [len(targets.unique()) + 2] * 3
    assert torch.equal(touched[0], touched[2])


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("fp64", torch.float64)])
def test_layers_take_the_precisions_of_the_commands(precision, dtype):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, dtype=dtype)
    for named in (DagRNN(5, 7, CELL, precision=precision), WeightedDagRNN(5, 7, [CELL, CELL], precision=precision)):
        named, usual = named.to(dtype), copy.deepcopy(named).to(dtype)
        usual.precision = "full"
        assert torch.equal(named(x)[0], usual(x)[0]) and named(x)[0].count_nonzero() > 0


@pytest.mark.parametrize(("kind", "layer"), [("lstm", torch.nn.LSTM), ("gru", torch.nn.GRU)])
def test_standalone_layers_are_those_of_torch(kind, layer):
    """Each of the networks, over a sequence in two parts."""
    ours = StandaloneRNN(kind, 5, 5, 2).double()
    assert all(p.abs().max() <= 5**-0.5 and p.std() > 0.1 for p in ours.parameters())
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    first, state = ours(x[:, :2])
    second, last = ours(x[:, 2:], state)
    for network in range(2):
        torchs = layer(5, 5).double()
        with torch.no_grad():
            for own, parameter in zip(ours.parameters(), torchs.parameters(), strict=True):
                parameter.copy_(own[network])
        expected, states = torchs(x[network])
        torch.testing.assert_close(torch.cat([first, second])[:, network], expected)
        torch.testing.assert_close(last[network], torch.cat(states, -1)[0] if kind == "lstm" else states[0])
    assert not torch.equal(second[:, 0], second[:, 1])


def test_dropout_of_standalone_layers():
    """On the input one draw for all steps, on the hidden weights one for each call; none in evaluation."""
    torch.manual_seed(0)
    x = torch.ones(1, 4, 1, 64)
    for options in ({"dropout_x": 0.5}, {"dropout_h": 0.5}):
        lstm = StandaloneRNN("lstm", 64, 64, **options)
        assert not torch.equal(lstm(x)[0], lstm(x)[0])
        lstm(x)[0].square().sum().backward()
        weight = lstm.weight_input if "dropout_x" in options else lstm.weight_hidden
        assert 0.3 < (weight.grad == 0).float().mean() < 0.7
        lstm.eval()
        assert torch.equal(lstm(x)[0], lstm(x)[0])
