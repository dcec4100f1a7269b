"""A cell as Python source that needs only PyTorch: one line per node, named as in the paper's equations."""

from __future__ import annotations

from collections.abc import Callable
from string import Template
from typing import Any

import torch
from torch import Tensor

from wenet.cells.description import Description
from wenet.cells.genotype import Genotype
from wenet.cells.program_source import program_layer_source
from wenet_kernels import Program, WenetError
from wenet_kernels.activations import REGISTERED, registered_among

LAYER = Template('''\
"""A recurrent cell in the form $form, written by WeNet. It needs only PyTorch.

$genotype

$drawing
"""

from __future__ import annotations

${imports}import torch
from torch import Tensor, nn

WEIGHTS = '$weights'  # the label that a state dict of this cell carries


class $name(nn.Module):
    """One layer over a sequence, called like `torch.nn.RNN`.

    Sizes: T time steps, M rows of the data batch, I input and H hidden features.
    """

    def __init__(self, input_size: int, hidden_size: int, batch_first: bool = False) -> None:
        super().__init__()
        self.hidden_size, self.batch_first = hidden_size, batch_first
        self.weight_input = nn.Parameter(torch.empty(input_size, $width))
        self.weight_hidden = nn.Parameter(torch.empty(hidden_size, $width))
        self.weight_nodes = nn.Parameter(torch.empty($nodes, hidden_size, $width))
${biases}        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5)

    def forward(self, x: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Input `[T, M, I]` and state `[1, M, H]`, zero by default, give output `[T, M, H]` and the last state.

        With `batch_first`, input and output are `[M, T, I]` and `[M, T, H]`.
        """
        x = x.transpose(0, 1) if self.batch_first else x
        h = x.new_zeros(x.shape[1], self.hidden_size) if h0 is None else h0[0]
        W = self.weight_nodes.unbind()
        states = []
        for x_t in x @ self.weight_input$added:
            h = self.step(x_t, h, W)
            states.append(h)
        output = torch.stack(states, dim=1 if self.batch_first else 0)
        return output, h.unsqueeze(0)

    def step(self, x: Tensor, h: Tensor, W: tuple[Tensor, ...]) -> Tensor:
        """One time step: the projected input `[M, $columns]` and the state `[M, H]` give the next state.

        W holds the nodes' weights; node i has W[i - 1].
        """
        weight_hidden = self.weight_hidden
$equations

    def get_extra_state(self) -> Tensor:
        return torch.tensor(list(WEIGHTS.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        if (found := bytes(state.tolist()).decode()) != WEIGHTS:
            raise ValueError(f"these weights are {found}, but this module needs {WEIGHTS}")
''')

BIASES = """\
        self.bias_input = nn.Parameter(torch.empty($width))
        self.bias_hidden = nn.Parameter(torch.empty($width))
"""

LAYERS = Template('''

class Layers(nn.Module):
    """$layers of `$name`$both, called like `torch.nn.$like`.

    Sizes: as in `$name`.
    """

    def __init__(self, input_size: int, hidden_size: int, batch_first: bool = False) -> None:
        super().__init__()
        self.batch_first = batch_first
        sizes = [input_size$above]
        self.cells = nn.ModuleList($name(size, hidden_size) for size in sizes)

    def forward(self, x: Tensor, h0: $type | None = None) -> tuple[Tensor, $type]:
        """Input `[T, M, I]` and $what `[$states, M, H]`, zero by default, give output `[T, M, $features]` and states.

        With `batch_first`, input and output have M before T.
        """
        x = x.transpose(0, 1) if self.batch_first else x
        states = [None] * $states if h0 is None else $split
        last = []
$run
        return x.transpose(0, 1) if self.batch_first else x, $joined
''')

# How `Layers` takes and gives the states of cells that carry one or several.
ONE = {"type": "Tensor", "what": "states", "split": "h0.split(1)", "joined": "torch.cat(last)", "like": "RNN"}
SEVERAL = {
    "type": "tuple[Tensor, ...]",
    "what": "a tuple of states, each",
    "split": "list(zip(*(each.split(1) for each in h0), strict=True))",
    "joined": "tuple(torch.cat(each) for each in zip(*last, strict=True))",
    "like": "LSTM",
}

ONE_DIRECTION = """\
        for cell, state in zip(self.cells, states, strict=True):
            x, h = cell(x, state)
            last.append(h)"""

BOTH_DIRECTIONS = """\
        for first in range(0, $states, 2):
            forward, h_forward = self.cells[first](x, states[first])
            backward, h_backward = self.cells[first + 1](x.flip(0), states[first + 1])
            x = torch.cat([forward, backward.flip(0)], -1)
            last += [h_forward, h_backward]"""

LOAD_LAYER = Template('''

def load(weights: str | Path, batch_first: bool = False) -> $name:
    """Load the trained layer from its file of weights, ready for evaluation."""
    tensors = read_safetensors(Path(weights))
    layer = $name($input, $hidden, batch_first).to(tensors["$weight"].dtype)
    layer.load_state_dict(tensors)
    return layer.eval()
''')

IMPORTS = """\
import json
from pathlib import Path

"""

LANGUAGE_MODEL = Template('''

class LanguageModel(nn.Module):
    """Next-word prediction: embedding, recurrent layer, and a decoder that shares the embedding's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding($vocabulary, $embedding)
        self.rnn = $name($embedding, $hidden)
        self.decoder_bias = nn.Parameter(torch.zeros($vocabulary))
$mixture
    def forward(self, tokens: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens `[T, M]` and state $state give $scores `[T, M, V]` of the next words, and the last state.

        Line n of the vocabulary file, counted from zero, holds the word of token n.
        """
$run
        return $decoded, h


def load(weights: str | Path) -> LanguageModel:
    """Load the trained model from its file of weights, ready for evaluation."""
    tensors = read_safetensors(Path(weights))
    model = LanguageModel().to(tensors["decoder_bias"].dtype)
    model.load_state_dict(tensors)
    return model.eval()
''')

RUN_ONE_STATE = """\
        output, h = self.rnn(self.embedding(tokens), h0)"""

RUN_STATES = """\
        output, states = self.rnn(self.embedding(tokens), None if h0 is None else h0.chunk($states, -1))
        h = torch.cat(states, -1)"""

READ_SAFETENSORS = '''

def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file: 8 bytes with the length of a JSON header, the header, then the tensors' bytes."""
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    dtypes = {"F16": torch.half, "BF16": torch.bfloat16, "F32": torch.float, "F64": torch.double, "U8": torch.uint8}
    return {
        name: torch.frombuffer(
            data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]], dtype=dtypes[entry["dtype"]]
        ).view(entry["shape"])
        for name, entry in header.items()
    }
'''

MIXTURE = '''

class MixtureOfSoftmaxes(nn.Module):
    """Softmaxes over the vocabulary, mixed by weights that depend on the context."""

    def __init__(self, hidden_size: int, embedding_size: int, experts: int) -> None:
        super().__init__()
        self.experts = experts
        self.prior = nn.Linear(hidden_size, experts, bias=False)
        self.context = nn.Linear(hidden_size, experts * embedding_size)

    def forward(self, features: Tensor, words: Tensor, bias: Tensor) -> Tensor:
        """Log-probabilities `[T, M, V]` from features `[T, M, H]`, word vectors `[V, d]` and a bias `[V]`."""
        log_prior = torch.log_softmax(self.prior(features), -1)  # [T, M, K]
        contexts = torch.tanh(self.context(features)).unflatten(-1, (self.experts, -1))  # [T, M, K, d]
        each = torch.log_softmax(contexts @ words.T + bias, -1)  # [T, M, K, V]
        return torch.logsumexp(log_prior.unsqueeze(-1) + each, -2)
'''

CANDIDATES = {"tanh": "torch.tanh(u)", "relu": "torch.relu(u)", "sigmoid": "torch.sigmoid(u)", "identity": "u"}


def layer_source(name: str, cell: Genotype | Program, form: str, imports: str = "", bias: bool = False) -> str:
    """Source of a class `name` that computes what `wenet.nn.DagRNN` or `CellRNN` does without dropout, with the same
    parameters.

    The class is a single layer in one direction.

    Args:
        form, bias: of a genotype.

    Raises:
        WenetError: the cell has a registered activation, which has no source.
    """
    if isinstance(cell, Program):
        return program_layer_source(name, cell, imports)
    return _dag_layer_source(name, cell, form, imports, bias)


def _dag_layer_source(name: str, genotype: Genotype, form: str, imports: str, bias: bool) -> str:
    for activation in registered_among(genotype.activations):
        raise WenetError(f"the activation {activation!r} is a registered function, which has no source to write")
    width = "2 * hidden_size" if form == "highway" else "hidden_size"
    return LAYER.substitute(
        form=form,
        genotype=genotype,
        drawing=genotype.draw(),
        imports=imports,
        weights=Description(str(genotype), form).to_json(),
        name=name,
        nodes=genotype.nodes,
        width=width,
        biases=BIASES.replace("$width", width) if bias else "",
        added=" + self.bias_input + self.bias_hidden" if bias else "",
        columns="2H" if form == "highway" else "H",
        equations=_indented(_equations(genotype, form), 8),
    )


def model_source(
    name: str, cell: Genotype | Program, form: str, vocabulary: int, embedding: int, hidden: int, experts: int | None
) -> str:
    """Source of a layer and a class `LanguageModel` around it, with the parameters of `wenet.nn.LanguageModel`.

    Args:
        vocabulary, embedding, hidden: V, d, H.
        experts: number of softmaxes in the mixture; None for a single softmax.
    """
    states = cell.states if isinstance(cell, Program) else 1
    model = LANGUAGE_MODEL.substitute(
        state="`[1, M, H]`" if states == 1 else f"`[1, M, {states} * H]`",
        run=RUN_ONE_STATE if states == 1 else RUN_STATES.replace("$states", str(states)),
        vocabulary=vocabulary,
        embedding=embedding,
        name=name,
        hidden=hidden,
        scores="logits" if experts is None else "log-probabilities",
        mixture=""
        if experts is None
        else f"        self.mixture = MixtureOfSoftmaxes({hidden}, {embedding}, {experts})\n",
        decoded="output @ self.embedding.weight.T + self.decoder_bias"
        if experts is None
        else "self.mixture(output, self.embedding.weight, self.decoder_bias)",
    )
    parts = (layer_source(name, cell, form, IMPORTS), "" if experts is None else MIXTURE, model, READ_SAFETENSORS)
    return "".join(parts)


def trained_layer_source(
    name: str, cell: Genotype | Program, form: str, sizes: tuple[int, int], layers: int, directions: int, bias: bool
) -> str:
    """Source of a trained layer: the cell, a class `Layers` if it has several layers or directions, and `load`.

    Parameters are named as in `wenet.nn.DagRNN` or `CellRNN`. In `Layers` they are numbered by layer and direction, as
    in `cells.0.weight_input`.

    Args:
        sizes: I, H.
    """
    code = layer_source(name, cell, form, IMPORTS, bias)
    several = isinstance(cell, Program) and cell.states > 1
    states = layers * directions
    load = {"name": name, "weight": "weight_input"}
    if states > 1:
        load = {"name": "Layers", "weight": "cells.0.weight_input"}
        code += LAYERS.substitute(
            name=name,
            layers=f"{layers} layers" if layers > 1 else "A layer",
            both=" in both directions" if directions == 2 else "",
            above=_sizes_above(layers, directions),
            states=states,
            **(SEVERAL if several else ONE),
            features="H" if directions == 1 else "2H",
            run=ONE_DIRECTION if directions == 1 else BOTH_DIRECTIONS.replace("$states", str(states)),
        )
    return code + LOAD_LAYER.substitute(load, input=sizes[0], hidden=sizes[1]) + READ_SAFETENSORS


def _sizes_above(layers: int, directions: int) -> str:
    """The input sizes of all cells after the first, as the rest of a list."""
    beside = ", input_size" * (directions - 1)
    above = "hidden_size" if directions == 1 else "2 * hidden_size"
    return beside + (f", *[{above}] * {(layers - 1) * directions}" if layers > 1 else "")


def written_step(genotype: Genotype, form: str) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The step that `layer_source` writes, as a function; unlike in a file, registered activations work here.

    Returns:
        A function of the projected input `[M, G]`, the state `[M, H]`, weight_hidden `[H, G]` and weight_nodes
        `[L, H, G]` that returns the next state `[M, H]`.
    """
    names: dict[str, Any] = {"torch": torch}
    names |= {f"f_{name}": REGISTERED[name].forward for name in registered_among(genotype.activations)}
    exec(f"def step(x, h, weight_hidden, W):\n{_indented(_equations(genotype, form), 4)}", names)
    step: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = names["step"]
    return step


def _indented(lines: list[str], spaces: int) -> str:
    return "\n".join(" " * spaces + line for line in lines)


def _equations(genotype: Genotype, form: str) -> list[str]:
    """Eqs. (1) to (3), one line for each product and each state."""
    if form == "highway":
        lines = ["c, u = (x + h @ weight_hidden).chunk(2, dim=-1)"]
    else:
        lines = ["c, u = x, h @ weight_hidden"]
    lines.append("s0 = h + torch.sigmoid(c) * (torch.tanh(u) - h)")
    reaching = reaching_output(genotype)
    for node, (activation, ancestor) in enumerate(genotype.recurrent, start=1):
        product, candidate = f"s{ancestor} @ W[{node - 1}]", CANDIDATES.get(activation, f"f_{activation}(u)")
        if node not in reaching:
            lines.append(f"# s{node} would reach no output")
        elif form == "highway":
            lines.append(f"c, u = ({product}).chunk(2, dim=-1)")
            lines.append(f"s{node} = s{ancestor} + torch.sigmoid(c) * ({candidate} - s{ancestor})")
        else:
            lines += [f"u = {product}", f"s{node} = {candidate}"]
    averaged = " + ".join(f"s{node}" for node in genotype.concat)
    count = len(genotype.concat)
    return [*lines, f"return {averaged}" if count == 1 else f"return ({averaged}) / {count}"]


def reaching_output(genotype: Genotype) -> set[int]:
    """The averaged nodes and all nodes that they depend on."""
    reaching: set[int] = set()
    for node in genotype.concat:
        while node > 0:
            reaching.add(node)
            node = genotype.recurrent[node - 1][1]
    return reaching
