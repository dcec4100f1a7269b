"""Published recurrent cells as programs, by their equations."""

from __future__ import annotations

from wenet.cells.genotype import Genotype
from wenet.cells.source import reaching_output
from wenet.cells.traced import (
    Value,
    batchnorm,
    blend,
    cell,
    identity,
    linear,
    mean,
    product,
    relu,
    scalar,
    sigmoid,
    tanh,
    vector,
)
from wenet_kernels import ACTIVATIONS, FORMS, Program, WenetError, check_choice, registered_among


@cell
def RNN_TANH(x: Value, h: Value) -> Value:
    return tanh(linear(x, h))


@cell
def RNN_RELU(x: Value, h: Value) -> Value:
    return relu(linear(x, h))


@cell
def LSTM(x: Value, h: Value, c: Value) -> tuple[Value, Value]:
    i, f = sigmoid(linear(x, h)), sigmoid(linear(x, h))
    g, o = tanh(linear(x, h)), sigmoid(linear(x, h))
    c = f * c + i * g
    return o * tanh(c), c


@cell
def GRU(x: Value, h: Value) -> Value:
    r, z = sigmoid(linear(x, h)), sigmoid(linear(x, h))
    n = tanh(linear(x) + r * linear(h))
    return blend(z, n, h)


@cell
def MGU(x: Value, h: Value) -> Value:
    f = sigmoid(linear(x, h))
    return blend(f, h, tanh(linear(x, f * h)))


@cell
def NAS(x: Value, h: Value, c: Value) -> tuple[Value, Value]:
    first = sigmoid(linear(x, h)) * relu(linear(x, h))
    second = sigmoid(linear(x, h)) + relu(product(x) * linear(h))
    third = tanh(linear(x, h)) * sigmoid(linear(x, h))
    fourth = tanh(linear(x, h)) + sigmoid(linear(x, h))
    c = tanh(tanh(first) + c) * tanh(second)
    return tanh(c * tanh(tanh(third) + sigmoid(fourth))), c


@cell
def INDRNN(x: Value, h: Value) -> Value:
    return relu(linear(x) + vector() * h)


@cell
def FASTGRNN(x: Value, h: Value) -> Value:
    both = product(x, h)
    z = sigmoid(both + vector())
    candidate = tanh(both + vector())
    return (sigmoid(scalar(1)) * (1 - z) + sigmoid(scalar(-4))) * candidate + z * h


@cell
def LEM(x: Value, y: Value, z: Value) -> tuple[Value, Value]:
    z = blend(sigmoid(linear(x, y)), z, tanh(linear(x, y)))
    return blend(sigmoid(linear(x, y)), y, tanh(linear(x, z))), z


@cell
def RHN(x: Value, h: Value) -> Value:
    """Ten layers a step, the carry gate one minus the transform gate."""
    h = blend(sigmoid(linear(x, h)), h, tanh(linear(x, h)))
    for _ in range(9):
        h = blend(sigmoid(linear(h)), h, tanh(linear(h)))
    return h


PROGRAMS: dict[str, tuple[Program, str]] = {
    "rnn-tanh": (RNN_TANH, "Elman 1990; torch.nn.RNN"),
    "rnn-relu": (RNN_RELU, "Le et al. 2015; torch.nn.RNN(nonlinearity='relu')"),
    "lstm": (LSTM, "Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000; torch.nn.LSTM"),
    "gru": (GRU, "Cho et al. 2014, reset after the product; torch.nn.GRU"),
    "mgu": (MGU, "Zhou et al. 2016"),
    "nas": (NAS, "Zoph and Le 2017"),
    "indrnn": (INDRNN, "Li et al. 2018"),
    "fastgrnn": (FASTGRNN, "Kusupati et al. 2018"),
    "lem": (LEM, "Rusch et al. 2022, with time steps of at most 1"),
    "rhn": (RHN, "Zilly et al. 2017, ten layers a step"),
}


def program_of(genotype: Genotype, form: str = "highway", bias: bool = False, norm: str | None = None) -> Program:
    """The program of a DAG cell; its products are in the order of the weights of `wenet.nn.DagRNN`.

    Those of gate and value follow one another; a node that reaches no output has none.

    Args:
        bias: where `DagRNN` has it.
        norm: "batch" normalises the state of every node as `WeightedDagRNN` does; None does not.

    Raises:
        WenetError: an unknown form or norm, or an activation that was registered.
    """
    check_choice("form", form, FORMS)
    check_choice("norm", norm or "none", ("batch", "none"))
    for name in registered_among(genotype.activations):
        raise WenetError(f"the activation {name!r} is a registered function; a program has {', '.join(ACTIVATIONS)}")
    reaching = reaching_output(genotype)
    activations = {"tanh": tanh, "relu": relu, "sigmoid": sigmoid, "identity": identity}
    of_input = linear if bias else product
    formed = batchnorm if norm == "batch" else identity

    @cell
    def dag(x: Value, h: Value) -> Value:
        if form == "highway":
            states = {0: formed(blend(sigmoid(of_input(x, h)), h, tanh(of_input(x, h))))}
        else:
            states = {0: formed(blend(sigmoid(of_input(x)), h, tanh(product(h))))}
        for node in sorted(reaching):
            name, ancestor = genotype.recurrent[node - 1]
            below = states[ancestor]
            if form == "highway":
                gate = sigmoid(product(below))
                states[node] = formed(blend(gate, below, activations[name](product(below))))
            else:
                states[node] = formed(activations[name](product(below)))
        return mean([states[node] for node in genotype.concat])

    return dag
