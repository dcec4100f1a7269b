"""The source of a trained model of sequences of numbers, with its standardisation."""

from __future__ import annotations

from collections.abc import Sequence
from string import Template

from wenet.cells import layer_source
from wenet.cells.source import IMPORTS, READ_SAFETENSORS
from wenet.nn import CellRNN, DagRNN, SequenceModel
from wenet_kernels import Program

SOURCE = Template('''

class SequenceModel(nn.Module):
    """Predictions from sequences of numbers as they come.

    It is called with x `[M, T, $features]` and, where sequences end before T, their lengths `[M]`; it returns
    $returns.
    """

    classes = $classes

    def __init__(self) -> None:
        super().__init__()
        self.rnn = Cell($inputs, $hidden)
        self.head_weight = nn.Parameter(torch.zeros($hidden, $outputs))
        self.head_bias = nn.Parameter(torch.zeros($outputs))
        sizes = {"shift": $features, "scale": $features, "target_shift": $numbers, "target_scale": $numbers}
        for name, size in sizes.items():
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        inputs = self.standardised(x).transpose(0, 1)  # [T, M, I]
$relative        there = torch.ones_like(inputs[..., -1])  # [T, M]
        if lengths is not None:
$refused            within = torch.arange(x.shape[1], device=x.device).unsqueeze(1) < lengths
            inputs, there = inputs.where(within.unsqueeze(-1), 0), within.to(inputs.dtype)
        output, _ = self.rnn(inputs)  # [T, M, H]
        last = (there.sum(0).long() - 1).view(1, -1, 1)
        features = $read
        outputs = features @ self.head_weight + self.head_bias$added
        return $result

    def standardised(self, x: Tensor) -> Tensor:
        scaled = (x - self.shift) / self.scale
        parts = $parts
        ones = scaled.new_ones(*scaled.shape[:-1], 1)
        return torch.cat([*parts, ones], -1).to(self.head_bias.dtype)


def load(weights: str | Path) -> SequenceModel:
    """Load the trained model from its file of weights, ready for evaluation."""
    model = SequenceModel()
    found = read_safetensors(Path(weights))
    model.load_state_dict({**model.state_dict(), **found})
    return model.eval()
''')
REFUSED = """\
            if bool((lengths < x.shape[1]).any()):
                raise ValueError("batchnorm compares the rows of a batch, so all sequences of one must be equally long")
"""
RELATIVE = Template("""\
        first = torch.zeros_like(inputs[0])  # [M, I]
        first[:, $features] = $values
        first = first.masked_fill(first.isnan().any(1, keepdim=True), float("nan"))
        inputs = inputs - first.nan_to_num()
""")
READ = {"last": "output.gather(0, last.expand(1, -1, output.shape[2]))[0]", "steps": "output"}
READ["mean"] = "(output * there.unsqueeze(-1)).sum(0) / there.sum(0).unsqueeze(-1)"


def sequence_source(model: SequenceModel) -> str:
    """The model as readable Python that needs only PyTorch."""
    layer = model.rnn
    assert isinstance(layer, DagRNN | CellRNN)
    cell = layer.program if isinstance(layer, CellRNN) else layer.genotype
    numbers = len(model.get_buffer("target_shift"))
    of_last = "inputs.gather(0, last.expand(1, -1, inputs.shape[2]))[0]"
    in_units = "outputs" if model.classes else "outputs * self.target_scale + self.target_shift"
    shape = f".unflatten(-1, ({model.horizon}, -1))" if model.horizon else ""
    shape += ".transpose(0, 1)" if model.readout == "steps" else ""
    marked = "[scaled.where(~x.isnan(), 0), x.isnan().to(scaled.dtype)]"
    outputs = model.head_weight.shape[1]
    returns = f"scores of the classes `[M, {outputs}]`" if model.classes else f"numbers `[M, {outputs}]`"
    returns = f"a forecast `[M, {model.horizon}, {outputs // model.horizon}]`" if model.horizon else returns
    added = f" + {_counted_from(model, of_last, model.repeats)}.repeat(1, {model.horizon})" if model.repeats else ""
    drift = {"features": list(model.relative), "values": _counted_from(model, "inputs[0]", model.relative)}
    first = f" + first[:, {list(model.repeats)}].repeat(1, {model.horizon})" if model.relative else ""
    written = SOURCE.substitute(
        features=model.features_in,
        inputs=layer.input_size,
        hidden=layer.hidden_size,
        outputs=outputs,
        numbers=numbers,
        classes=repr(model.classes),
        returns=returns if model.readout != "steps" else returns.replace("[M", "[M, T"),
        read=READ[model.readout],
        refused=REFUSED if isinstance(cell, Program) and cell.normalises else "",
        relative=RELATIVE.substitute(drift) if model.relative else "",
        added=added + first,
        result=f"({in_units}){shape}" if shape else in_units,
        parts=marked if model.marked else "[scaled]",
    )
    return layer_source("Cell", cell, layer.form, IMPORTS) + written + READ_SAFETENSORS


def _counted_from(model: SequenceModel, step: str, features: Sequence[int]) -> str:
    """Features of a step, in Python, from which a forecast counts: NaN, and so the forecast, where they are missing."""
    values = f"{step}[:, {list(features)}]"
    if not model.marked:
        return values
    marks = f"{step}[:, {[model.features_in + each for each in features]}]"
    return f"{values}.masked_fill({marks} > 0, float('nan'))"
