"""`DagRNN` where code expects `torch.nn.RNN`: shapes, options, packed sequences, copies."""

import copy
import io
import pickle

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from wenet import Genotype, WenetError
from wenet.nn import DagRNN

CELL = Genotype.from_text("sigmoid0 relu1 tanh1 mean 2,3")


def layer(**options):
    torch.manual_seed(3)
    return DagRNN(5, 7, CELL, dtype=torch.float64, **options)


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


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_sequences(num_layers, enforce_sorted):
    """Every sequence comes out as it does alone, padding has no gradient, and the order is the caller's."""
    rnn = layer(num_layers=num_layers)
    lengths = [5, 3, 1] if enforce_sorted else [1, 5, 3]
    sequences = [numbers(length, 5) for length in lengths]
    h0 = numbers(num_layers, 3, 7)
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
    rnn, x = layer(num_layers=2, batch_first=True), numbers(4, 3, 5)
    expected, _ = rnn(x)
    other = layer(num_layers=2, batch_first=True)
    torch.nn.init.zeros_(other.weight_hidden_l1)
    other.load_state_dict(rnn.state_dict())
    buffer = io.BytesIO()
    torch.save(rnn, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    for copied in (other, copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn)), saved):
        assert torch.equal(copied(x)[0], expected)


@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 5)])
def test_compiles_into_one_graph(shape):
    rnn, x = layer(num_layers=2, batch_first=True), numbers(*shape)
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


def test_factory_arguments():
    rnn = DagRNN(5, 7, CELL, num_layers=2, device="meta", dtype=torch.float64)
    assert all(tensor.device.type == "meta" for tensor in [*rnn.parameters(), *rnn.buffers()])
    assert rnn.weight_nodes_l1.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layer(num_layers=0), "num_layers must be at least 1"),
        (lambda: layer(dropout=1.0), "dropout must lie in"),
        (lambda: layer()(numbers(5)), r"\[T, M, 5\]"),
        (lambda: layer(batch_first=True)(numbers(4, 3, 6)), r"\[M, T, 5\]"),
        (lambda: layer()(numbers(4, 6)), r"\[T, M, 5\]"),
        (lambda: layer(num_layers=2)(numbers(4, 3, 5), numbers(1, 3, 7)), r"h0 must have shape \[2, 3, 7\]"),
        (lambda: layer()(numbers(4, 5), numbers(1, 1, 7)), r"h0 must have shape \[1, 7\]"),
        (lambda: layer()(pack_sequence([numbers(4, 5)]), numbers(1, 2, 7)), r"h0 must have shape \[1, 1, 7\]"),
        (lambda: layer()(pack_sequence([numbers(4, 6)])), r"\[T, M, 5\]"),
    ],
)
def test_errors(make, message):
    with pytest.raises(WenetError, match=message):
        make()
