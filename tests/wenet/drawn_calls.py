"""Calls of a recurrent layer drawn at random: sizes, layouts, options, mistakes, and what PyTorch does to a module."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from tests.wenet.helpers import AS_TORCH_RNN, take_weights
from wenet import Genotype
from wenet.nn.rnn import DagRNN

Tensors = tuple[Tensor, ...]
CELLS = (str(AS_TORCH_RNN), "tanh0", "sigmoid0 relu1 tanh1 mean 2,3", "relu0 relu1 identity1 tanh2 sigmoid0")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PACKED = ("packed", "packed, not sorted")


@dataclass(frozen=True)
class Call:
    """A layer, what it is given, how it came to be and what is done with it."""

    steps: int
    rows: int
    inputs: int
    hidden: int
    num_layers: int
    layout: str
    memory: str
    dtype: torch.dtype
    device: str
    bias: bool
    bidirectional: bool
    dropout: float
    cell: str
    form: str
    backend: str
    x: str
    h0: str
    made: str
    used: str
    seed: int

    @property
    def batch_first(self) -> bool:
        return self.layout == "rows first"

    @property
    def as_torch_rnn(self) -> bool:
        """Whether the cell computes what `torch.nn.RNN` does, so that numbers can be compared."""
        return self.cell == CELLS[0]

    @property
    def comparable(self) -> bool:
        drops = self.dropout > 0 and self.num_layers > 1 and self.used != "eval"
        return self.as_torch_rnn and self.device == "cpu" and not drops and self.x != "inf"

    @property
    def tolerance(self) -> float:
        dtypes = {torch.float64: 1e-7, torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.2}
        autocast = "autocast" in self.used and self.dtype != torch.float64
        return dtypes[torch.bfloat16 if autocast else self.dtype]


def calls(used: tuple[str, ...], faults: bool = True) -> st.SearchStrategy[Call]:
    """Mostly valid ones, with one of the uses.

    Args:
        faults: whether what the layer is given may be wrong.
    """
    mostly = [3, 2, 1, 5, 17] if faults else [3, 2, 1, 4]
    size = st.sampled_from([*mostly, *mostly, 0]) if faults else st.sampled_from(mostly)
    few = st.sampled_from([1, 2, 1, 3, 1, 2, 0] if faults else [1, 2])
    drawn = st.builds(
        Call,
        steps=size,
        rows=st.sampled_from([*mostly, 0]),
        inputs=size,
        hidden=size,
        num_layers=few,
        layout=st.sampled_from(["steps first", "rows first", "single", *PACKED]),
        memory=st.sampled_from(list(MEMORY)),
        dtype=st.sampled_from(DTYPES),
        device=st.sampled_from(["cpu", "cpu", "cpu", "meta"]),
        bias=st.booleans(),
        bidirectional=st.booleans(),
        dropout=st.sampled_from([0.0, 0.0, 0.5, 1.0, *([1.5] if faults else [])]),
        cell=st.sampled_from([CELLS[0], *CELLS]),
        form=st.sampled_from(["highway", "plain"]),
        backend=st.sampled_from(["auto", "auto", "reference"]),
        x=st.sampled_from([*["right"] * 12, *(WRONG_X if faults else [])]),
        h0=st.sampled_from([*["none", "right"] * 8, *(WRONG_STATES if faults else [])]),
        made=st.sampled_from(list(MADE)),
        used=st.sampled_from(used),
        seed=st.integers(0, 9),
    )
    return drawn.filter(_can_be_written)


def _can_be_written(call: Call) -> bool:
    """Whether a program comes as far as the layer: not where PyTorch refuses to pack, or to differentiate integers."""
    unpackable = ("list", "none", "too few dimensions", "too many dimensions")
    if call.layout in PACKED and (0 in (call.rows, call.steps) or call.x in unpackable):
        return False
    if call.used == "func.jvp" and call.memory == "expanded":  # to which PyTorch can give no tangent
        return False
    if call.used == "func.jacrev" and call.num_layers * call.rows * call.hidden > 50:  # one derivative for each
        return False
    if call.device == "meta" and call.used in NEED_VALUES:
        return False
    if call.used in NEED_TENSORS and (call.layout in PACKED or call.x in ("list", "none", "integers")):
        return False
    return not (call.used in DIFFERENTIATE and call.x in ("list", "none", "integers"))


# How the numbers of the input lie in memory.
MEMORY: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1) if x.dim() > 1 else x,
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "expanded": lambda x: x[:1].expand_as(x),
    "misaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}
WRONG_X = (
    *("nan", "inf", "dtype", "integers", "device", "list", "none"),
    *("features", "too few dimensions", "too many dimensions"),
)
WRONG_STATES = ("nan", "tuple", "number", "rows", "layers", "features", "dimensions", "dtype", "device")


class Arguments:
    """Of one call of a layer: an input that can be differentiated, and a state."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.generator = torch.Generator().manual_seed(call.seed)
        self.lengths = 1 + torch.randint(max(call.steps, 1), (call.rows,), generator=self.generator)
        self.x: Any = self._x()
        self.h0: Any = self._h0()

    def _numbers(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def _placed(self, x: Tensor, fault: str) -> Tensor:
        other = torch.float32 if self.call.dtype == torch.float64 else torch.float64
        if fault == "nan" and x.numel():
            x.flatten()[-1] = torch.nan
        if fault == "inf" and x.numel():
            x.flatten()[-1] = torch.inf
        x = x.to({"dtype": other, "integers": torch.int32}.get(fault, self.call.dtype))
        elsewhere = "cpu" if self.call.device == "meta" else "meta"
        return MEMORY[self.call.memory](x).to(elsewhere if fault == "device" else self.call.device)

    def _x(self) -> Any:
        call = self.call
        features = call.inputs + (call.x == "features")
        shape = [call.steps, call.rows]
        if call.batch_first:
            shape.reverse()
        if call.layout == "single":
            shape = shape[:1]
        if call.x == "too few dimensions":
            shape = []
        if call.x == "too many dimensions":
            shape = [2, *shape, 1]
        x = self._placed(self._numbers(*shape, features), call.x)
        return {"list": [[1.0] * features], "none": None}.get(call.x, x)

    def _h0(self) -> Any:
        call = self.call
        if call.h0 == "none":
            return None
        states = call.num_layers * (2 if call.bidirectional else 1) + (call.h0 == "layers")
        rows = [] if call.layout == "single" else [call.rows + (call.h0 == "rows")]
        if call.layout == "single" and call.h0 == "rows":
            rows = [1]
        shape = [states, *rows, call.hidden + (call.h0 == "features"), *([1] if call.h0 == "dimensions" else [])]
        h0 = self._placed(self._numbers(*shape), call.h0)
        return {"tuple": (h0, h0), "number": 0}.get(call.h0, h0)

    def give(self, layer: Callable[..., Any], x: Any) -> Tensors:
        """What the layer makes of an input, as tensors."""
        if self.call.layout not in PACKED:
            return layer(x, self.h0)
        lengths, is_sorted = self.lengths, self.call.layout == "packed"
        lengths = lengths.sort(descending=True)[0] if is_sorted else lengths
        with torch.autocast("cpu", enabled=False):  # under which PyTorch packs no half type but that asked for
            packed = pack_padded_sequence(x, lengths, enforce_sorted=is_sorted)
        output, h = layer(packed, self.h0)
        assert isinstance(output, PackedSequence)
        order = [indices for indices in (output.sorted_indices, output.unsorted_indices) if indices is not None]
        return output.data, h, output.batch_sizes, *order

    def loss(self, layer: Callable[..., Any], x: Any) -> Tensor:
        """Of numbers that differ everywhere, so that no derivative vanishes."""
        output, h, *_ = self.give(layer, x)
        return sum((y * torch.arange(1.0, y.numel() + 1).view(y.shape).to(y).cos()).sum() for y in (output, h))


# How a layer comes to be: of a class and arguments, in a type.
def _under_meta(make: Callable[..., nn.Module], dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        return make(dtype=dtype).to_empty(device="cpu")


def _of_default_type(make: Callable[..., nn.Module], dtype: torch.dtype) -> nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return make()
    finally:
        torch.set_default_dtype(before)


def _assigned(layer: nn.Module) -> nn.Module:
    empty = copy.deepcopy(layer).to("meta")
    empty.load_state_dict(layer.state_dict(), assign=True)
    return empty


def _skip_init(make: functools.partial[nn.Module], dtype: torch.dtype) -> nn.Module:
    return nn.utils.skip_init(make.func, *make.args, **make.keywords, dtype=dtype)


MADE: dict[str, Callable[..., nn.Module]] = {
    "at once": lambda make, dtype: make(dtype=dtype),
    "converted": lambda make, dtype: make().to(dtype),
    "to_empty": lambda make, dtype: make(device="meta", dtype=dtype).to_empty(device="cpu"),
    "under meta": _under_meta,
    "skip_init": _skip_init,
    "assigned": lambda make, dtype: _assigned(make(dtype=dtype)),
    "of default type": _of_default_type,
}


def _saved(layer: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIED: tuple[Callable[[nn.Module], nn.Module], ...] = (
    lambda layer: layer,
    copy.deepcopy,
    lambda layer: pickle.loads(pickle.dumps(layer)),
    _saved,
)


def torch_layer(call: Call) -> nn.Module:
    """The `torch.nn.RNN`."""
    torch.manual_seed(call.seed)
    options = {"batch_first": call.batch_first, "bidirectional": call.bidirectional, "dropout": call.dropout}
    layer = nn.RNN(call.inputs, call.hidden, call.num_layers, bias=call.bias, **options)
    return layer.to(call.device, call.dtype)


def our_layer(call: Call) -> nn.Module:
    """The `DagRNN`, with weights that do the same where the cell can."""
    torch.manual_seed(call.seed)
    make = functools.partial(
        DagRNN,
        call.inputs,
        call.hidden,
        Genotype.from_text(call.cell),
        form="highway" if call.as_torch_rnn else call.form,
        backend=call.backend,
        num_layers=call.num_layers,
        batch_first=call.batch_first,
        dropout=call.dropout,
        bias=call.bias or call.as_torch_rnn,
        bidirectional=call.bidirectional,
    )
    source = make(dtype=call.dtype)
    if call.as_torch_rnn:
        take_weights(source, torch_layer(Call(**{**vars(call), "device": "cpu"})))
    layer = MADE[call.made](make, call.dtype)
    layer.load_state_dict(source.state_dict())
    return COPIED[call.seed % len(COPIED)](layer).to(call.device)


# What is done with a layer: every function has its results as tensors.
Use = Callable[[nn.Module, Arguments], Tensors]


def _train(layer: nn.Module, arguments: Arguments) -> Tensors:
    return arguments.give(layer, arguments.x)


def _functional(layer: nn.Module, arguments: Arguments) -> Tensors:
    weights = dict(layer.named_parameters())
    return arguments.give(lambda *inputs: torch.func.functional_call(layer, weights, inputs), arguments.x)


def _within(context: Callable[[], Any], use: Use) -> Use:
    def used(layer: nn.Module, arguments: Arguments) -> Tensors:
        with context():
            return use(layer, arguments)

    return used


def _eval(layer: nn.Module, arguments: Arguments) -> Tensors:
    return _train(layer.eval(), arguments)


def _frozen(layer: nn.Module, arguments: Arguments) -> Tensors:
    return _train(layer.requires_grad_(False), arguments)


def _differentiated(layer: nn.Module, arguments: Arguments) -> Tensors:
    """The derivative of the input; those of the parameters must be there."""
    x = arguments.x.detach().requires_grad_()
    arguments.loss(layer, x).backward()
    holds_values = arguments.call.device == "cpu" and arguments.call.x == "right"
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.shape == parameter.shape, name
        assert not holds_values or not parameter.grad.isnan().any(), name
    return (x.grad,)


def _penalty(layer: nn.Module, arguments: Arguments) -> Tensors:
    """A gradient penalty on the input, differentiated."""
    x = arguments.x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(arguments.loss(layer, x), x, create_graph=True)
    return torch.autograd.grad(slope.square().sum(), x)


def _checkpointed(layer: nn.Module, arguments: Arguments) -> Tensors:
    x = arguments.x.detach().requires_grad_()
    loss = checkpoint(arguments.loss, layer, x, use_reentrant=False)
    return torch.autograd.grad(loss, x)


def _func_grad(layer: nn.Module, arguments: Arguments) -> Tensors:
    return (torch.func.grad(lambda x: arguments.loss(layer, x))(arguments.x),)


def _func_vjp(layer: nn.Module, arguments: Arguments) -> Tensors:
    output, pull_back = torch.func.vjp(lambda x: arguments.give(layer, x)[0], arguments.x)
    return output, pull_back(torch.ones_like(output))[0]


def _func_jvp(layer: nn.Module, arguments: Arguments) -> Tensors:
    x = arguments.x
    return torch.func.jvp(lambda x: arguments.give(layer, x)[0], (x,), (torch.ones_like(x),))


def _jacrev(layer: nn.Module, arguments: Arguments) -> Tensors:
    return (torch.func.jacrev(lambda x: arguments.give(layer, x)[1])(arguments.x).detach(),)


def _jacobian(layer: nn.Module, arguments: Arguments) -> Tensors:
    """The same by one derivative after another, of which there may be none."""
    h = arguments.give(layer, arguments.x)[1].detach()
    if h.numel() == 0:
        return (h.new_empty(*h.shape, *arguments.x.shape),)
    return (torch.autograd.functional.jacobian(lambda x: arguments.give(layer, x)[1], arguments.x),)


def _batch(arguments: Arguments) -> Tensor:
    return torch.stack([arguments.x, 2 * arguments.x])


def _vmap(layer: nn.Module, arguments: Arguments) -> Tensors:
    return torch.vmap(lambda x: arguments.give(layer, x), randomness="different")(_batch(arguments))


def _loop(layer: nn.Module, arguments: Arguments) -> Tensors:
    each = [arguments.give(layer, x) for x in _batch(arguments)]
    return tuple(torch.stack(tensors) for tensors in zip(*each, strict=True))


def _vmap_of_grad(layer: nn.Module, arguments: Arguments) -> Tensors:
    gradient = torch.func.grad(lambda x: arguments.loss(layer, x))
    return (torch.vmap(gradient, randomness="different")(_batch(arguments)),)


def _loop_of_grad(layer: nn.Module, arguments: Arguments) -> Tensors:
    gradient = torch.func.grad(lambda x: arguments.loss(layer, x))
    return (torch.stack([gradient(x) for x in _batch(arguments)]),)


def _ensemble(layer: nn.Module, arguments: Arguments) -> Tensors:
    """Two layers in a call, and the derivative of all their parameters."""
    parameters, buffers = torch.func.stack_module_state([layer, copy.deepcopy(layer)])

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensors:
        return arguments.give(lambda *inputs: torch.func.functional_call(layer, (parameters, buffers), inputs), x)

    outputs = torch.vmap(one, in_dims=(0, 0, None), randomness="different")(parameters, buffers, arguments.x)
    gradients = torch.autograd.grad(sum(output.sum() for output in outputs), list(parameters.values()))
    for parameter, gradient in zip(parameters.values(), gradients, strict=True):
        assert gradient.shape == parameter.shape
    return tuple(output.detach() for output in outputs)


def _pair(layer: nn.Module, arguments: Arguments) -> Tensors:
    return tuple(torch.stack([output, output]).detach() for output in arguments.give(layer, arguments.x))


def _compiled(backend: str) -> Use:
    def used(layer: nn.Module, arguments: Arguments) -> Tensors:
        torch._dynamo.reset()
        return _differentiated(torch.compile(layer, backend=backend), arguments)

    return used


def _traced(layer: nn.Module, arguments: Arguments) -> Tensors:
    inputs = (arguments.x,) if arguments.h0 is None else (arguments.x, arguments.h0)
    return torch.jit.trace(layer.eval(), inputs, check_trace=False)(*inputs)


def _exported(layer: nn.Module, arguments: Arguments) -> Tensors:
    return torch.export.export(layer.eval(), (arguments.x, arguments.h0)).module()(arguments.x, arguments.h0)


def _autocast(dtype: torch.dtype) -> Callable[[], Any]:
    return lambda: torch.autocast("cpu", dtype)


# With ours, and with what `torch.nn.RNN` has to be used like for the same numbers.
USES: dict[str, tuple[Use, Use]] = {
    **{
        name: (use, use)
        for name, use in {
            "train": _train,
            "eval": _eval,
            "functional_call": _functional,
            "frozen": _frozen,
            "no_grad": _within(torch.no_grad, _train),
            "inference_mode": _within(torch.inference_mode, _train),
            "autocast": _within(_autocast(torch.bfloat16), _train),
            "autocast to half": _within(_autocast(torch.float16), _train),
            "backward": _differentiated,
            "autocast, backward": _within(_autocast(torch.bfloat16), _differentiated),
            "checkpoint": _checkpointed,
            "penalty": _penalty,
            "func.grad": _func_grad,
            "func.vjp": _func_vjp,
            "func.jvp": _func_jvp,
        }.items()
    },
    "func.jacrev": (_jacrev, _jacobian),
    "vmap": (_vmap, _loop),
    "vmap of grad": (_vmap_of_grad, _loop_of_grad),
    "vmap of layers": (_ensemble, _pair),
    "compile, eager": (_compiled("eager"), _differentiated),
    "compile, aot_eager": (_compiled("aot_eager"), _differentiated),
    "trace": (_traced, _eval),
    "export": (_exported, _eval),
}
SLOW = ("compile, eager", "compile, aot_eager", "trace", "export")
DIFFERENTIATE = tuple(
    name
    for name in USES
    if name
    not in ("train", "eval", "functional_call", "frozen", "no_grad", "inference_mode", "autocast", "autocast to half")
)
NEED_TENSORS = ("vmap", "vmap of grad", "vmap of layers", "func.grad", "func.vjp", "func.jvp", "func.jacrev", *SLOW)
NEED_VALUES = SLOW
