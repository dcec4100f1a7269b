"""`DagRNN` where code expects `torch.nn.RNN`: shapes, options, packed sequences, copies."""

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from tests.wenet.helpers import AS_TORCH_RNN, take_weights
from wenet import Genotype, WenetError, genotypes
from wenet.cells.description import Description
from wenet.nn.rnn import DagRNN
from wenet.nn.weighted import WeightedDagRNN

CELL = Genotype.from_text("sigmoid0 relu1 tanh1 mean 2,3")


def layer(**options):
    torch.manual_seed(3)
    return DagRNN(5, 7, CELL, dtype=torch.float64, **options)


def twin_of(torchs):
    """A layer that computes what a `torch.nn.RNN` does."""
    sizes = {"num_layers": torchs.num_layers, "bidirectional": torchs.bidirectional, "batch_first": torchs.batch_first}
    dtype = torchs.weight_ih_l0.dtype
    ours = DagRNN(torchs.input_size, torchs.hidden_size, AS_TORCH_RNN, bias=True, dtype=dtype, **sizes)
    take_weights(ours, torchs)
    return ours


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_shapes_are_those_of_torch_rnn(num_layers, batch_first, batched, given):
    options = {"num_layers": num_layers, "batch_first": batch_first}
    ours, torchs = layer(**options), torch.nn.RNN(5, 7, **options).double()
    x = numbers(*((4, 3) if batched else (4,)), 5)
    rows = 4 if batch_first else 3
    h0 = numbers(num_layers, *((rows,) if batched else ()), 7) if given else None
    (output, h), (expected, h_expected) = ours(x, h0), torchs(x, h0)
    assert output.shape == expected.shape
    assert h.shape == h_expected.shape


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["padded", "single", "packed", "packed, not sorted"])
def test_numbers_are_those_of_torch_rnn(num_layers, bidirectional, batch_first, kind):
    torch.manual_seed(0)
    torchs = torch.nn.RNN(5, 7, num_layers, bidirectional=bidirectional, batch_first=batch_first).double()
    ours = twin_of(torchs)
    rows = () if kind == "single" else (3,)
    x, h0 = numbers(4, *rows, 5), numbers(num_layers * (2 if bidirectional else 1), *rows, 7)
    if batch_first and rows:
        x = x.transpose(0, 1)
    if kind.startswith("packed"):
        lengths, is_sorted = torch.tensor([4, 2, 1]), kind == "packed"
        lengths = lengths if is_sorted else lengths.flip(0)
        x = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=is_sorted)
    ours.flatten_parameters()
    for state in (None, h0):
        (output, h), (expected, h_expected) = ours(x, state), torchs(x, state)
        if kind.startswith("packed"):
            assert torch.equal(output.batch_sizes, expected.batch_sizes)
            output, expected = output.data, expected.data
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(h, h_expected)
        assert h.abs().min() > 1e-6
    (output.sum() + h.sum()).backward()
    (expected.sum() + h_expected.sum()).backward()
    last = f"l{num_layers - 1}" + ("_reverse" if bidirectional else "")
    found = ours.get_parameter(f"weight_hidden_{last}".replace("_l0", "")).grad[:, 7:]
    torch.testing.assert_close(found, torchs.get_parameter(f"weight_hh_{last}").grad.T)


@pytest.mark.parametrize("form", ["highway", "plain"])
def test_biases_are_as_a_feature_that_is_always_one(form):
    rnn = layer(form=form, bias=True)
    without = DagRNN(6, 7, CELL, form=form, dtype=torch.float64)
    weights = dict(rnn.named_parameters())
    biases = weights.pop("bias_input") + weights.pop("bias_hidden")
    weights["weight_input"] = torch.cat([weights["weight_input"], biases.unsqueeze(0)])
    without.load_state_dict(weights)
    x = numbers(4, 3, 5)
    output, _ = rnn(x)
    torch.testing.assert_close(output, without(torch.cat([x, torch.ones_like(x[..., :1])], -1))[0])
    assert not torch.allclose(output, rnn(x + 1)[0])
    assert not hasattr(layer(form=form), "bias_input")


@pytest.mark.parametrize("form", ["highway", "plain"])
def test_two_directions_are_two_layers(form):
    """Whatever the cell; with dropout they drop the same."""
    rnn = layer(form=form, bidirectional=True, dropout_x=0.5, dropout_h=0.5)
    alone = [layer(form=form, dropout_x=0.5, dropout_h=0.5) for _ in range(2)]
    for each, suffix in zip(alone, ("", "_reverse"), strict=True):
        each.load_state_dict({name: rnn.get_parameter(name + suffix) for name, _ in each.named_parameters()})
    x, h0 = numbers(4, 3, 5), numbers(2, 3, 7)

    def drawn_alike(rnn, *arguments):
        torch.manual_seed(5)
        return rnn(*arguments)

    output, h = drawn_alike(rnn, x, h0)
    forward, h_forward = drawn_alike(alone[0], x, h0[:1])
    backward, h_backward = drawn_alike(alone[1], x.flip(0), h0[1:])
    torch.testing.assert_close(output, torch.cat([forward, backward.flip(0)], -1))
    torch.testing.assert_close(h, torch.cat([h_forward, h_backward]))


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bias": True, "bidirectional": True}, {"batch_first": True}])
@pytest.mark.parametrize("given", [True, False])
def test_an_empty_batch(options, given):
    """Goes through and back, as through `torch.nn.RNN`, whose gradients are zero too."""
    ours, torchs = layer(**options), torch.nn.RNN(5, 7, **options).double()
    x = numbers(*((0, 4) if ours.batch_first else (4, 0)), 5).requires_grad_()
    h0 = numbers(ours.num_layers * ours.directions, 0, 7) if given else None
    (output, h), (expected, h_expected) = ours(x, h0), torchs(x, h0)
    assert (output.shape, h.shape) == (expected.shape, h_expected.shape)
    (output.sum() + h.sum()).backward()
    assert x.grad.shape == x.shape
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in ours.parameters())


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bias": True, "bidirectional": True}])
def test_nan_is_named_where_it_came_in(options):
    x, h0 = numbers(4, 3, 5), numbers(2 * (2 if options else 1), 3, 7)[: 4 if options else 1]
    for broken in ("x", "h0"):
        given = {"x": x.clone(), "h0": h0.clone()}
        given[broken][0, 1, 2] = torch.nan
        with pytest.raises(WenetError, match=f"^{broken} holds NaN"):
            layer(**options)(given["x"], given["h0"])
    for name in ("weight_input", "weight_hidden", "weight_nodes"):
        rnn = layer(**options)
        with torch.no_grad():
            rnn.get_parameter(name).flatten()[0] = torch.nan
        with pytest.raises(WenetError, match=f"^{name} holds NaN"):
            rnn(x, h0)


def test_batch_first_and_a_single_sequence_are_the_same_numbers():
    rnn, x, h0 = layer(num_layers=2), numbers(4, 3, 5), numbers(2, 3, 7)
    output, h = rnn(x, h0)
    rows_first = layer(num_layers=2, batch_first=True)
    rows_first.load_state_dict(rnn.state_dict())
    turned, h_turned = rows_first(x.transpose(0, 1), h0)
    torch.testing.assert_close(turned.transpose(0, 1), output)
    torch.testing.assert_close(h_turned, h)
    single, h_single = rnn(x[:, 1], h0[:, 1])
    torch.testing.assert_close(single, output[:, 1])
    torch.testing.assert_close(h_single, h[:, 1])


def test_layers_read_the_one_below():
    rnn, lower, upper = layer(num_layers=2), layer(), DagRNN(7, 7, CELL, dtype=torch.float64)
    lower.load_state_dict({name: value for name, value in rnn.state_dict().items() if not name.endswith("_l1")})
    upper.load_state_dict(
        {name.removesuffix("_l1"): value for name, value in rnn.state_dict().items() if name.endswith("_l1")}
    )
    x, h0 = numbers(4, 3, 5), numbers(2, 3, 7)
    output, h = rnn(x, h0)
    below, h_below = lower(x, h0[:1])
    above, h_above = upper(below, h0[1:])
    torch.testing.assert_close(output, above)
    torch.testing.assert_close(h, torch.cat([h_below, h_above]))


def test_dropout_is_between_layers_alone():
    x = numbers(4, 3, 5)
    single = layer(dropout=0.5)
    assert torch.equal(single(x)[0], single(x)[0])
    rnn = layer(num_layers=2, dropout=0.5)
    (output, h), (again, h_again) = rnn(x), rnn(x)
    assert not torch.equal(output, again)
    assert torch.equal(h[0], h_again[0])  # of the layer below the dropout
    rnn.eval()
    assert torch.equal(rnn(x)[0], rnn(x)[0])
    all_dropped = layer(num_layers=2, dropout=1.0)
    assert torch.equal(all_dropped(x)[0], all_dropped(x + 1)[0])
    assert not torch.equal(all_dropped.eval()(x)[0], all_dropped(x + 1)[0])


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_sequences(num_layers, enforce_sorted, bidirectional):
    """Every sequence comes out as it does alone, padding has no gradient, and the order is the caller's."""
    rnn = layer(num_layers=num_layers, bidirectional=bidirectional)
    lengths = [5, 3, 1] if enforce_sorted else [1, 5, 3]
    sequences = [numbers(length, 5) for length in lengths]
    h0 = numbers(num_layers * rnn.directions, 3, 7)
    output, h = rnn(pack_sequence(sequences, enforce_sorted=enforce_sorted), h0)
    padded, found = pad_packed_sequence(output)
    assert found.tolist() == lengths
    for row, sequence in enumerate(sequences):
        alone, h_alone = rnn(sequence, h0[:, row])
        torch.testing.assert_close(padded[: len(sequence), row], alone)
        torch.testing.assert_close(h[:, row], h_alone)
    torch_output, _ = torch.nn.RNN(5, 7, num_layers).double()(pack_sequence(sequences, enforce_sorted=enforce_sorted))
    assert torch.equal(output.batch_sizes, torch_output.batch_sizes)
    x = numbers(5, 3, 5).requires_grad_()
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=enforce_sorted)
    rnn(packed)[0].data.sum().backward()
    for row, length in enumerate(lengths):
        assert x.grad[:length, row].abs().sum(-1).min() > 0
        assert not x.grad[length:, row].any()


def test_packed_sequences_with_batch_first():
    sequences = [numbers(3, 5), numbers(2, 5)]
    output, _ = layer(batch_first=True)(pack_sequence(sequences))
    assert torch.equal(output.data, layer()(pack_sequence(sequences))[0].data)


def test_copies_give_the_same_numbers():
    options = {"num_layers": 2, "batch_first": True, "bias": True, "bidirectional": True}
    rnn, x = layer(**options), numbers(4, 3, 5)
    expected, _ = rnn(x)
    other = layer(**options)
    torch.nn.init.zeros_(other.weight_hidden_l1)
    other.load_state_dict(rnn.state_dict())
    buffer = io.BytesIO()
    torch.save(rnn, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    for copied in (other, copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn)), saved):
        assert torch.equal(copied(x)[0], expected)


@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 5)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_compiles_into_one_graph(shape, bidirectional):
    rnn = layer(num_layers=2, batch_first=True, bidirectional=bidirectional, bias=bidirectional)
    x = numbers(*shape)
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), rnn(x))
    compiled(x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in rnn.parameters())


def test_a_plain_training_loop():
    """What one writes around `torch.nn.RNN` works around it, and learns."""
    torch.manual_seed(0)
    rnn, head = DagRNN(1, 16, CELL, num_layers=2, batch_first=True), torch.nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()], 1e-2)
    x = torch.sin(torch.arange(40.0)).unfold(0, 9, 1).unsqueeze(-1)  # [M, T + 1, 1]
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.mse_loss(head(rnn(x[:, :-1])[0][:, -1]), x[:, -1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_repr():
    assert repr(layer()) == repr(DagRNN(5, 7, CELL))
    text = repr(layer(num_layers=2, batch_first=True, dropout=0.5))
    assert "5, 7, sigmoid0" in text
    assert "num_layers=2, batch_first=True, dropout=0.5" in text
    assert "bias=True, bidirectional=True" in repr(layer(bias=True, bidirectional=True))


def test_factory_arguments():
    rnn = DagRNN(5, 7, CELL, num_layers=2, device="meta", dtype=torch.float64)
    assert all(tensor.device.type == "meta" for tensor in [*rnn.parameters(), *rnn.buffers()])
    assert rnn.weight_nodes_l1.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layer(num_layers=0), "num_layers must be at least 1"),
        (lambda: layer(dropout=1.5), "dropout must lie in 0 <= p <= 1, not 1.5"),
        (lambda: layer()(numbers(5)), r"\[T, M, 5\]"),
        (lambda: layer(batch_first=True)(numbers(4, 3, 6)), r"\[M, T, 5\]"),
        (lambda: layer()(numbers(4, 6)), r"\[T, M, 5\]"),
        (lambda: layer(num_layers=2)(numbers(4, 3, 5), numbers(1, 3, 7)), r"h0 must have shape \[2, 3, 7\]"),
        (lambda: layer()(numbers(4, 5), numbers(1, 1, 7)), r"h0 must have shape \[1, 7\]"),
        (lambda: layer()(pack_sequence([numbers(4, 5)]), numbers(1, 2, 7)), r"h0 must have shape \[1, 1, 7\]"),
        (lambda: layer()(pack_sequence([numbers(4, 6)])), r"\[T, M, 5\]"),
        (lambda: layer(batch_first=True)(pack_sequence([numbers(4)])), r"\[T, M, 5\]"),
        (lambda: layer()(numbers(0, 3, 5)), r"the input \[0, 3, 5\] has no time steps"),
        (lambda: layer(batch_first=True)(numbers(3, 0, 5)), r"the input \[3, 0, 5\] has no time steps"),
        (lambda: layer(batch_first=True)(numbers(0, 5)), "has no time steps"),
        (lambda: layer()([[1.0] * 5]), "the input must be a tensor, not of type list"),
        (lambda: layer()(None), "the input must be a tensor, not of type NoneType"),
        (lambda: layer()(numbers(4, 3, 5), (numbers(1, 3, 7), numbers(1, 3, 7))), "h0 must be one tensor; .* leave"),
        (lambda: layer()(pack_sequence([numbers(4, 5)], False), (numbers(1, 1, 7),) * 2), "h0 must be one tensor"),
        (lambda: layer()(numbers(4, 5), (numbers(1, 7),) * 2), "h0 must be one tensor"),
        (lambda: layer()(numbers(4, 3, 5), 0), "h0 must be a tensor, not of type int"),
        (lambda: layer(bidirectional=True)(numbers(4, 3, 5), numbers(1, 3, 7)), r"h0 must have shape \[2, 3, 7\]"),
        (lambda: layer()(numbers(4, 3, 5).int()), "the input is torch.int32 on cpu, but the layer is torch.float64"),
        (lambda: layer()(pack_sequence([torch.zeros(4, 5)])), "the input is torch.float32 on cpu"),
        (lambda: layer()(numbers(4, 3, 5).to("meta")), "the input is torch.float64 on meta, .* torch.float64 on cpu"),
        (lambda: layer()(numbers(4, 3, 5), torch.zeros(1, 3, 7)), "h0 is torch.float32 on cpu"),
        (lambda: layer(device="meta")(torch.zeros(4, 3, 5, device="meta")), "the input is torch.float32 on meta"),
        (lambda: layer(nonlinearity="relu"), "no nonlinearity of its own"),
        (lambda: layer(proj_size=3), "no proj_size; put a torch.nn.Linear behind it"),
        (lambda: layer(num_layers=1.5), "num_layers must be at least 1 and an integer, not 1.5"),
        (lambda: layer(dropout="0.5"), "dropout must lie in 0 <= p <= 1, not '0.5'"),
        (lambda: DagRNN("5", 7, CELL), "input_size must be at least 1 and an integer, not '5'"),
        (lambda: DagRNN(5, 0, CELL), "hidden_size must be at least 1"),
        (lambda: DagRNN(5, 7, 2), "a cell must be a Genotype, .* not 2"),
        (lambda: DagRNN(5, 7, "darts-v7"), "no cell 'darts-v7'"),
        (lambda: WeightedDagRNN(5, 7, [CELL, None]), "a cell must be a Genotype, .* not None"),
        (lambda: WeightedDagRNN(5, 7, [CELL])(torch.zeros(0, 3, 5)), "has no time steps"),
        (lambda: WeightedDagRNN(5, 7, [CELL])([0.0]), "the input must be a tensor"),
        (lambda: WeightedDagRNN(5, 7, [CELL])(torch.zeros(4, 3, 5), ()), "h0 must be one tensor"),
    ],
)
def test_errors(make, message):
    with pytest.raises(WenetError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


class TestWhoseWeights:
    """A state dict says of which cell its weights are."""

    OTHER = Genotype.from_text("sigmoid0 relu1 tanh0 mean 2,3")
    BOTH = r"are those of the cell 'sigmoid0 relu1 tanh1 mean 2,3', but the layer has 'sigmoid0 relu1 tanh0 mean 2,3'"

    @pytest.mark.parametrize("strict", [True, False])
    def test_another_cell_is_refused(self, strict):
        other = DagRNN(5, 7, self.OTHER, dtype=torch.float64)
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(WenetError, match=f"the weights of this layer {self.BOTH}"):
            other.load_state_dict(layer().state_dict(), strict=strict)
        assert all(torch.equal(before[name], values) for name, values in other.state_dict().items())

    def test_it_is_named_within_a_model(self):
        model, other = (torch.nn.ModuleDict({"encoder": DagRNN(5, 7, cell)}) for cell in (CELL, self.OTHER))
        with pytest.raises(WenetError, match=f"the weights of encoder {self.BOTH}"):
            other.load_state_dict(model.state_dict())

    def test_another_form_is_refused(self):
        plain = layer(form="plain")
        with pytest.raises(WenetError, match="of this layer are of form 'highway', but the layer is 'plain'"):
            plain.load_state_dict(layer().state_dict())

    def test_another_layout_is_refused(self):
        weights = layer().state_dict()
        weights["_extra_state"] = Description(str(CELL), "highway", layout=2).to_tensor()
        with pytest.raises(WenetError, match="layout 2, but this version reads layout 1"):
            layer().load_state_dict(weights)

    @pytest.mark.parametrize("damaged", [torch.zeros(3, dtype=torch.uint8), "sigmoid0", None])
    def test_what_is_no_description(self, damaged):
        with pytest.raises(WenetError, match="do not name their cell; their file is damaged"):
            layer().load_state_dict({**layer().state_dict(), "_extra_state": damaged})

    def test_many_cells(self):
        rnn, same = (WeightedDagRNN(5, 7, [CELL, CELL, self.OTHER]) for _ in range(2))
        same.load_state_dict(rnn.state_dict())
        assert torch.equal(same.weight_nodes, rnn.weight_nodes)
        with pytest.raises(WenetError, match=f"the weights of this layer {self.BOTH}"):
            WeightedDagRNN(5, 7, [CELL, self.OTHER, self.OTHER]).load_state_dict(rnn.state_dict())
        with pytest.raises(WenetError, match="cells in the weights of .* number 3, in the layer 2"):
            WeightedDagRNN(5, 7, [CELL, CELL]).load_state_dict(rnn.state_dict())

    def test_weights_of_an_earlier_version_are_taken(self):
        rnn, other = layer(), layer()
        torch.nn.init.zeros_(other.weight_nodes)
        found = other.load_state_dict(dict(rnn.named_parameters()))
        assert not found.missing_keys
        assert torch.equal(other.weight_nodes, rnn.weight_nodes)

    def test_every_kind_of_file_holds_it(self, tmp_path):
        rnn = layer()
        torch.save(rnn.state_dict(), tmp_path / "rnn.pt")
        save_file(rnn.state_dict(), tmp_path / "rnn.safetensors")
        in_half = {name: values.half() for name, values in rnn.state_dict().items()}
        other = DagRNN(5, 7, self.OTHER, dtype=torch.float64)
        for weights in (torch.load(tmp_path / "rnn.pt"), load_file(tmp_path / "rnn.safetensors"), in_half):
            layer().load_state_dict(weights)
            with pytest.raises(WenetError, match=self.BOTH):
                other.load_state_dict(weights)

    def test_on_the_device_meta(self):
        with torch.device("meta"):
            rnn = layer()
            weights = rnn.state_dict()
        assert rnn.weight_nodes.device.type == "meta"
        rnn.load_state_dict({**layer().state_dict(), "_extra_state": weights["_extra_state"]}, assign=True)
        assert rnn.weight_nodes.device.type == "cpu"


def test_layers_take_what_names_a_cell(tmp_path):
    (tmp_path / "cell.json").write_text(CELL.to_json())
    for name, cell in (
        ("darts-v2", genotypes.DARTS_V2),
        ("random:3", genotypes.load_genotype("random:3")),
        (str(CELL), CELL),
        (str(tmp_path / "cell.json"), CELL),
        (tmp_path / "cell.json", CELL),
    ):
        named, given = DagRNN(5, 7, name), DagRNN(5, 7, cell)
        assert named.genotype == cell
        given.load_state_dict(named.state_dict())  # which says the cell
        x = torch.randn(4, 3, 5)
        assert torch.equal(named(x)[0], given(x)[0])
    mixed = WeightedDagRNN(5, 7, ["darts-v1", genotypes.DARTS_V2])
    mixed.load_state_dict(WeightedDagRNN(5, 7, [genotypes.DARTS_V1, genotypes.DARTS_V2]).state_dict())
