"""Cells written as Python functions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import wenet
from wenet import WenetError, programs
from wenet.programs import (
    blend,
    hardsigmoid,
    identity,
    linear,
    load_program,
    mean,
    product,
    relu,
    scalar,
    sigmoid,
    tanh,
    vector,
)


def test_a_gru_as_one_writes_it():
    @wenet.cell
    def gru(x, h):
        r, z = sigmoid(linear(x, h)), sigmoid(linear(x, h))
        n = tanh(linear(x) + r * linear(h))
        return h + (1 - z) * (n - h)

    assert str(gru) == (
        "h | v1 = sigmoid(linear(x, h)) | v2 = sigmoid(linear(x, h)) | v3 = tanh(linear(x) + v1 * linear(h)) "
        "| h + (1 - v2) * (v3 - h)"
    )


def test_the_order_of_the_factors_does_not_matter():
    @wenet.cell
    def one(x, h):
        return tanh(linear(x, h) + product(x, h))

    @wenet.cell
    def other(x, h):
        return tanh(linear(h, x) + product(h, x))

    assert str(one) == "h | tanh(linear(x, h) + product(x, h))"
    assert one == other == Program("h | tanh(linear(h, x) + product(h, x))")
    torch.manual_seed(1)
    x, layers = torch.randn(3, 2, 4), [wenet.nn.CellRNN(4, 5, cell) for cell in (one, other)]
    layers[1].load_state_dict(layers[0].state_dict())
    assert torch.equal(layers[0](x)[0], layers[1](x)[0]) and layers[0](x)[0].abs().min() > 0


@pytest.mark.parametrize(
    ("cell", "layer"),
    [(load_program("gru-program"), "wenet.nn.CellRNN"), (wenet.Genotype.from_text("tanh0"), "wenet.nn.DagRNN")],
)
def test_a_cell_is_no_layer_and_says_what_makes_one(cell, layer):
    with pytest.raises(WenetError, match=f"has no weights; make a layer of it, such as {layer}"):
        cell(torch.zeros(3, 2, 4), h=None)


def test_what_a_function_may_do():
    @wenet.cell
    def everything(x, h, c):
        a = -linear(x, h) / 2 + 1
        b = 3 * product(c) - 0.5
        g = hardsigmoid(identity(a) - b)
        c = mean(c, mean([a, blend(g, a, b)])) * vector(0.5)
        return relu(c) * 2, tanh(c) + 0, scalar() * 1 * c

    text = str(everything)
    assert Program(text) == everything
    assert "-0.5" in text and "0.5 * " in text and "vector(0.5)" in text and "scalar()" in text
    assert everything.output != everything.results[0]


def Program(text):
    return wenet.programs.load_program(text)


def test_functions_of_pytorch_are_taken_for_ours():
    @wenet.cell
    def of_torch(x, h):
        gate = torch.sigmoid(linear(x, h))
        kinds = [torch.tanh, torch.relu, functional.relu, functional.softplus, functional.silu]
        kinds += [functional.hardsigmoid, functional.hardtanh]
        return torch.lerp(h, sum(kind(linear(x)) for kind in kinds), gate)

    names = [each.name for each in of_torch.instructions]
    assert [name for name in names if name not in ("linear", "add")] == [
        *("sigmoid", "tanh", "relu", "relu", "softplus", "silu", "hardsigmoid", "hardtanh", "blend")
    ]


def decides(x, h):
    return linear(x, h) if h else linear(x)


def compares(x, h):
    return linear(x, h) if h > 0 else linear(x)


def calls_another(x, h):
    return torch.exp(linear(x, h))


def uses_an_option(x, h):
    return functional.softplus(linear(x, h), beta=2)


def takes_numpy(x, h):
    import numpy

    return numpy.tanh(linear(x, h))


def adds_a_tensor(x, h):
    return linear(x, h) + torch.zeros(3)


def adds_a_list(x, h):
    return linear(x, h) + [1]  # noqa: RUF005


def reads_x(x, h):
    return tanh(x) + h


def adds_x(x, h):
    return linear(h) + x


def two_values(x, h):
    return linear(h, tanh(linear(x)))


def without_x(x, h):
    return tanh(linear(h))


def drops_a_product(x, h):
    linear(x)
    return tanh(linear(x, h))


def drops_a_state(x, h, c):
    return tanh(linear(x, h)), linear(x)


def returns_nothing(x, h):
    linear(x, h)


def returns_too_much(x, h):
    return linear(x, h), h, h


def indexes(x, h):
    return linear(x, h)[0]


def unpacks(x, h):
    a, b = linear(x, h)
    return a + b


def has_no_method(x, h):
    return linear(x, h).tanh()


def divides(x, h):
    return h / linear(x, h)


def divides_by_nothing(x, h):
    return linear(x, h) / 0


def fails(x, h):
    return undefined(x, h)  # noqa: F821


def takes_more(x, h, c, m, n, o):
    return linear(x, h)


def takes_a_default(x, h, c=1):
    return linear(x, h)


def takes_nothing():
    return None


def begins_with_text(x, h):
    return linear(x, h) * vector("a")


def is_too_large(x, h):
    return linear(x, h) * 1e400


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        (decides, "line .*cannot decide by a value"),
        (compares, "line .*cannot compare"),
        (calls_another, "knows no torch function 'exp'"),
        (uses_an_option, "takes no options"),
        (takes_numpy, "line .*"),
        (adds_a_tensor, "there is Tensor"),
        (adds_a_list, "there is list"),
        (reads_x, "write linear\\(x\\)"),
        (adds_x, "write linear\\(x\\)"),
        (two_values, "add two of them"),
        (without_x, "does not depend on x"),
        (drops_a_product, "never reaches the output"),
        (drops_a_state, "state c never reaches"),
        (returns_nothing, "returns None"),
        (returns_too_much, "must return 1 new states"),
        (indexes, "has no parts"),
        (unpacks, "has no parts"),
        (has_no_method, "has no 'tanh'"),
        (divides, "divides by numbers"),
        (divides_by_nothing, "not by 0"),
        (fails, "NameError"),
        (takes_more, "1 to 4 states"),
        (takes_a_default, "1 to 4 states"),
        (takes_nothing, "1 to 4 states"),
        (begins_with_text, "begins with a number"),
        (is_too_large, "must be finite"),
        (3, "made of a function"),
    ],
)
def test_what_cannot_be_traced_is_told_in_one_line(function, fault):
    with pytest.raises(WenetError, match=fault) as error:
        wenet.cell(function)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_the_line_is_named():
    line = indexes.__code__.co_firstlineno + 1
    with pytest.raises(WenetError, match=f"cell indexes, line {line}: "):
        wenet.cell(indexes)


def test_values_belong_to_their_cell():
    found = []

    @wenet.cell
    def one(x, h):
        found.append(tanh(linear(x, h)))
        return found[0]

    with pytest.raises(WenetError, match="another cell"):

        @wenet.cell
        def other(x, h):
            return linear(x, h) + found[0]

    with pytest.raises(WenetError, match="under @wenet.cell"):
        tanh(found[0])


def test_a_program_is_found_by_name_text_and_file(tmp_path):
    lstm = load_program("lstm")
    assert load_program(lstm) is lstm
    assert load_program(str(lstm)) == lstm
    (tmp_path / "cell.json").write_text(lstm.to_json())
    assert load_program(tmp_path / "cell.json") == lstm
    (tmp_path / "dag.json").write_text(wenet.Genotype.from_text("tanh0").to_json())
    assert load_program(tmp_path / "dag.json") == load_program("tanh0") == load_program(wenet.Genotype([("tanh", 0)]))
    with pytest.raises(WenetError, match="did you mean 'lstm'"):
        load_program("lstn")
    with pytest.raises(WenetError, match="wenet.cell"):
        load_program(3)


@pytest.mark.parametrize("name", programs.PROGRAMS)
def test_published_cells_survive_their_text(name):
    assert load_program(str(programs.PROGRAMS[name][0])) == programs.PROGRAMS[name][0]
