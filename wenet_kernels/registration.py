"""Register an operator with PyTorch: autograd, forward-mode differentiation, vmap, autocast and compilers."""

import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from wenet_kernels.autocast import without_autocast
from wenet_kernels.errors import WenetError

LIBRARY = torch.library.Library("wenet_kernels", "DEF")

Outputs = Any  # a tensor or a tuple of them


class Operator:
    """The description of an operator. Arguments are positional, in the order of the schema."""

    name: ClassVar[str]
    schema: ClassVar[str]
    variables: ClassVar[tuple[int, ...]]  # positions of differentiable arguments
    constants: ClassVar[tuple[int, ...]] = ()  # positions of tensors without a derivative
    differentiable_outputs: ClassVar[int | None] = None  # number of leading ones; None: all
    keeps_outputs: ClassVar[bool] = False  # for `backward`
    batched: Callable[..., tuple[Outputs, Any]]  # its rule for vmap, a function of `batching`

    @staticmethod
    def compute(*arguments: Any) -> Outputs:
        """Compute the result from real tensors, after checking everything that memory access depends on."""
        raise NotImplementedError

    @staticmethod
    def fake(*arguments: Any) -> Outputs:
        """Tensors with the result's shapes, for compilers."""
        raise NotImplementedError

    @staticmethod
    def formula(*arguments: Any) -> Outputs:
        """The differentiable outputs, by functions that PyTorch can differentiate any number of times."""
        raise NotImplementedError

    @staticmethod
    def for_derivatives(*arguments: Any) -> tuple[Any, ...]:
        """The arguments of a call that may be differentiated."""
        return arguments

    # Computes the variables' derivatives from those of the outputs; None: use the formula.
    backward: ClassVar[Callable[..., Sequence[Tensor | None]] | None] = None


def register(operator: type[Operator]) -> Callable[..., Any]:
    """Register an operator and return the function that calls it.

    Where PyTorch's dispatcher would only lead to `compute`, that function takes the shorter way: the dispatcher takes
    longer than a small call computes.
    """
    name = operator.name
    LIBRARY.define(name + operator.schema, tags=(torch.Tag.pt2_compliant_tag,))
    overload = getattr(torch.ops.wenet_kernels, name).default
    function = _function(operator, overload)
    LIBRARY.impl(name, operator.compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"wenet_kernels::{name}", operator.fake, lib=LIBRARY)
    LIBRARY.impl(name, _autograd_kernel(operator, overload, function), "Autograd", with_keyset=True)

    # Transforms (torch.func) are handled first, because only a Function works under several of them at once.
    def transformed(*arguments: Any) -> Outputs:
        return function.apply(*operator.for_derivatives(*arguments))

    LIBRARY.impl(name, transformed, "FuncTorchDynamicLayerFrontMode")
    for key in (torch._C.DispatchKey.AutocastCPU, torch._C.DispatchKey.AutocastCUDA):
        LIBRARY.impl(name, _without_autocast(overload, key), key.name)

    def call(*arguments: Any) -> Outputs:
        if not is_plain(arguments):
            return overload(*arguments)
        if recorded(arguments):
            return function.recorded(*operator.for_derivatives(*arguments))
        with torch._C._AutoDispatchBelowAutograd():
            return operator.compute(*arguments)

    return call


def _dispatch_state() -> tuple[int, int]:
    """What the dispatcher includes and excludes by default on this thread: it tells all modes and transforms."""
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    return included.raw_repr(), excluded.raw_repr()


def _ordinary() -> tuple[tuple[int, int], int]:
    """The state of a thread without modes and transforms, and the keys of a tensor made there."""
    return _dispatch_state(), torch._C._dispatch_keys(torch.empty(0, device="cpu")).raw_repr()


@lru_cache(1)
def _plain() -> tuple[tuple[int, int], int]:
    """As `_ordinary`, from a new thread: this one may be in a mode or transform."""
    with ThreadPoolExecutor(1) as fresh_thread:
        return fresh_thread.submit(_ordinary).result()


def is_plain(arguments: Sequence[Any]) -> bool:
    """Whether these are ordinary tensors on the CPU and no mode, transform, compiler or profiler wants to see the
    call."""
    if torch.compiler.is_compiling():
        return False
    state, tensor = _plain()
    return (
        _dispatch_state() == state
        and torch._C._len_torch_function_stack() == 0
        and forward_ad._current_level < 0
        and not torch.autograd._profiler_enabled()
        and all(torch._C._dispatch_keys(each).raw_repr() == tensor for each in arguments if isinstance(each, Tensor))
    )


def recorded(arguments: Sequence[Any]) -> bool:
    """Whether autograd records a call."""
    return torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)


def _autograd_kernel(operator: type[Operator], overload: Any, function: Any) -> Callable[..., Outputs]:
    def kernel(keyset: torch._C.DispatchKeySet, *arguments: Any) -> Outputs:
        if recorded(arguments) or forward_ad._current_level >= 0:
            return function.apply(*operator.for_derivatives(*arguments))
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    return kernel


def _without_autocast(overload: Any, key: Any) -> Callable[..., Outputs]:
    """What an operator computes follows from its arguments alone."""

    def kernel(*arguments: Any) -> Outputs:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return overload(*arguments)

    return kernel


def _function(operator: type[Operator], overload: Any) -> Any:
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: Any) -> Outputs:
            with torch._C._AutoDispatchBelowAutograd():
                return overload(*arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
            _refuse_constants(operator, ctx.needs_input_grad)
            tensors = [argument for argument in inputs if isinstance(argument, Tensor)]
            outputs = output if isinstance(output, tuple) else (output,)
            ctx.arguments = [None if isinstance(argument, Tensor) else argument for argument in inputs]
            ctx.positions = [k for k, argument in enumerate(inputs) if isinstance(argument, Tensor)]
            ctx.save_for_backward(*tensors, *(outputs if operator.keeps_outputs else ()))
            ctx.save_for_forward(*tensors)
            ctx.outputs = len(outputs)
            if operator.differentiable_outputs is not None:
                ctx.mark_non_differentiable(*outputs[operator.differentiable_outputs :])
            ctx.set_materialize_grads(False)  # else zeros as large as all kept tensors would be made

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            results: list[Tensor | None] = [None] * len(ctx.arguments)
            if all(grad is None for grad in grads):
                return tuple(results)
            arguments, outputs = _restored(ctx)
            if operator.backward is not None:
                found = operator.backward(arguments, outputs, grads)
            else:
                found = _pulled_back(operator, arguments, grads)
            for position, gradient in zip(_given(operator, arguments), found, strict=True):
                results[position] = gradient
            return tuple(results)

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Outputs:
            _refuse_constants(operator, [tangent is not None for tangent in tangents])
            return _pushed_forward(operator, _restored(ctx)[0], tangents, ctx.outputs)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Outputs, Any]:
            if info.batch_size == 0:
                return _of_no_calls(operator, in_dims, arguments)
            return operator.batched(overload, info.batch_size, in_dims, *arguments)

    class Direct(Function):
        @staticmethod
        def forward(*arguments: Any) -> Outputs:
            with torch._C._AutoDispatchBelowAutograd():
                return operator.compute(*arguments)

        @classmethod
        def recorded(cls, *arguments: Any) -> Outputs:
            """`apply` without looking for transforms."""
            return super(torch.autograd.Function, cls).apply(*arguments)  # type: ignore[misc]

    Function.__name__ = Function.__qualname__ = operator.__name__
    # PyTorch asks for it in every call, and to find it out anew takes a tenth of a small call's time.
    Function.forward.__signature__ = inspect.signature(Function.forward)  # type: ignore[attr-defined]
    Function.recorded = Direct.recorded  # type: ignore[attr-defined]
    return Function


def _of_no_calls(operator: type[Operator], dims: Sequence[int | None], arguments: Sequence[Any]) -> tuple[Outputs, Any]:
    """The results of an empty vmap batch, shaped like those of one call; for example the derivatives of no outputs."""
    one = [x if dim is None else x.movedim(dim, 0).sum(0) for x, dim in zip(arguments, dims, strict=True)]
    outputs = operator.fake(*one)
    if isinstance(outputs, Tensor):
        return outputs.new_empty(0, *outputs.shape), 0
    return tuple(output.new_empty(0, *output.shape) for output in outputs), (0,) * len(outputs)


def _restored(ctx: Any) -> tuple[list[Any], Sequence[Tensor]]:
    """The arguments of a call, and its outputs if they were kept."""
    arguments = list(ctx.arguments)
    tensors = ctx.saved_tensors
    for position, tensor in zip(ctx.positions, tensors, strict=False):
        arguments[position] = tensor
    return arguments, tensors[len(ctx.positions) :]


def _refuse_constants(operator: type[Operator], differentiated: Sequence[bool]) -> None:
    if any(differentiated[position] for position in operator.constants):
        raise WenetError("a mask, and the statistics of a norm, have no derivative; pass them detached")


def _given(operator: type[Operator], arguments: Sequence[Any]) -> list[int]:
    """The positions of the variables that are not None."""
    return [position for position in operator.variables if arguments[position] is not None]


def _formula_of(operator: type[Operator], arguments: Sequence[Any]) -> tuple[Callable[..., Any], list[Tensor]]:
    """The formula as a function of only the variables, and the variables."""
    positions = _given(operator, arguments)

    def function(*variables: Tensor) -> tuple[Tensor, ...]:
        filled = list(arguments)
        for position, variable in zip(positions, variables, strict=True):
            filled[position] = variable
        outputs = operator.formula(*filled)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return function, [arguments[position] for position in positions]


def _pulled_back(
    operator: type[Operator], arguments: Sequence[Any], grads: Sequence[Tensor | None]
) -> Sequence[Tensor]:
    """Compute the variables' derivatives from those of the outputs."""
    function, variables = _formula_of(operator, arguments)
    with without_autocast(variables[0].device):
        outputs, pull_back = vjp(function, *variables)
        found: Sequence[Tensor] = pull_back(_with_zeros(grads, outputs))
    return found


def _pushed_forward(
    operator: type[Operator], arguments: Sequence[Any], tangents: Sequence[Tensor | None], count: int
) -> Outputs:
    """Compute the outputs' tangents from those of the arguments. The pullback of derivatives is linear, and its own
    pullback is the pushforward. So this needs no nested forward mode, which does not exist."""
    function, variables = _formula_of(operator, arguments)
    given = _with_zeros([tangents[position] for position in _given(operator, arguments)], variables)
    with without_autocast(variables[0].device):
        outputs, pull_back = vjp(function, *variables)
        _, push_forward = vjp(pull_back, tuple(torch.zeros_like(output) for output in outputs))
        found = push_forward(given)[0]
    return found[0] if count == 1 else (*found, *(None,) * (count - len(found)))


def vjp(function: Callable[..., Any], *variables: Any) -> tuple[Any, Callable[..., Any]]:
    """`torch.func.vjp` with correct types; its own name a third result, which it does not return here."""
    return torch.func.vjp(function, *variables)  # type: ignore[return-value]


def _with_zeros(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(y) if x is None else x for x, y in zip(tensors, like, strict=True))
