"""The equations in plain PyTorch, on any device and dtype. Every other backend is tested against this one.

Backward is written by hand because the fused backends follow the same plan. Forward keeps only the results of
activations (gate and candidate). Backward rebuilds the states from them elementwise, visits the nodes in reverse, and
computes the weight gradients in one batched product over all time steps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from wenet_kernels.activations import REGISTERED, Activation, activation_names
from wenet_kernels.ranks import sum_over_ranks
from wenet_kernels.recurrence import NORM_EPS, Evaluation, Gradients, Recurrence


def status() -> str:
    return "ready"


def runs_on(kind: str) -> bool:
    return True


def refusal(dtype: torch.dtype, precision: str) -> str:
    if dtype.is_floating_point and precision == "full":
        return ""
    return f"it has no products of {dtype} in precision {precision!r}"


def kept_shape(
    steps: int, networks: int, rows: int, hidden: int, nodes: int, form: str, dtype: torch.dtype, precision: str
) -> tuple[int, ...]:
    return steps, networks, nodes + 1, rows, 2 * hidden if form == "highway" else hidden


def project(x: Tensor, weight: Tensor) -> Tensor:
    """The product of `[R, I]` with each network's `[I, G]`, as `[n, R, G]`."""
    return x @ weight


def project_backward(grad_output: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives with respect to input and weights."""
    return (grad_output @ weight.mT).sum(-3), x.mT @ grad_output


def forward(r: Recurrence, keep: bool) -> Evaluation:
    """Evaluate all cells over all time steps; `keep` stores what backward needs."""
    steps, networks, rows, hidden, nodes = r.sizes
    output = r.pre.new_empty(steps, *r.h0.shape)
    activated = r.pre.new_empty(kept_shape(*r.sizes, r.form, r.pre.dtype, r.precision) if keep else (0,))
    statistics_shape = (steps, networks, nodes + 1, hidden) if r.norm == "batch" else (0,)
    mean, var = r.pre.new_empty(statistics_shape), r.pre.new_empty(statistics_shape)
    states = r.pre.new_empty(nodes + 1, networks, rows, hidden)
    h = r.h0  # [M, H] weighted, [n, M, H] independent
    for t in range(steps):
        for node in range(nodes + 1):
            previous = _previous_state(r, node, h, states)  # [n, M, H]
            gate, candidate = _activate(r, node, r.pre[t], _masked(r, previous) @ _weight(r, node))
            state = _combine(previous, gate, candidate)
            if r.norm == "batch":
                mean[t, :, node] = state.mean(1)
                var[t, :, node] = state.var(1, correction=0)
            states[node] = normalise(state, *_statistics(r, node, mean, var, t))
            if keep:
                activated[t, :, node] = _beside(gate, candidate) if r.highway else candidate
        h = output[t] = _over_ranks(r, _mix(r, _cell_output(r, states)))
    return Evaluation(output, activated, mean, var)


def traced(r: Recurrence) -> Tensor:
    """The output of `forward`, computed slowly by functions that autograd and vmap can trace."""
    steps, networks, rows, hidden, nodes = r.sizes
    h, outputs = r.h0, []
    for t in range(steps):
        states: list[Tensor] = []
        for node in range(nodes + 1):
            previous = h.expand(networks, rows, hidden) if node == 0 else _ancestors(r, node, torch.stack(states))
            gate, candidate = _activate(r, node, r.pre[t], _masked(r, previous) @ _weight(r, node))
            state = _combine(previous, gate, candidate)
            if r.norm == "batch":
                mean, var = state.mean(1, keepdim=True), state.var(1, correction=0, keepdim=True)
                states.append(normalise(state, mean, var))
            else:
                states.append(normalise(state, *_running_statistics(r, node)))
        h = _mix(r, _cell_output(r, torch.stack(states)))
        outputs.append(h)
    return torch.stack(outputs)


def backward(r: Recurrence, evaluation: Evaluation, grad_output: Tensor) -> Gradients:
    """The derivatives of a loss, given its derivative with respect to the output."""
    steps, networks, rows, hidden, nodes = r.sizes
    # The factors of the weight gradients: the inputs of products, and the derivatives of their results.
    factor = r.pre.new_empty(nodes + 1, networks, steps, rows, hidden)
    grad_product = r.pre.new_empty(nodes + 1, networks, steps, rows, r.pre.shape[-1])
    grad_pre = torch.empty_like(r.pre)
    grad_mix = r.pre.new_zeros(0 if r.mix is None else networks)
    grad_h = torch.zeros_like(r.h0)
    for t in reversed(range(steps)):
        h = evaluation.output[t - 1] if t > 0 else r.h0
        states, gates, candidates = _rebuild(r, evaluation, h, t)
        grad_h = grad_h + grad_output[t]
        if r.mix is not None:
            grad_mix += (_cell_output(r, states) * grad_h).sum((1, 2))
        grad_states = _cell_output_backward(r, grad_h)  # [L+1, n, M, H]
        for node in reversed(range(nodes + 1)):
            previous = _previous_state(r, node, h, states)
            statistics = _statistics(r, node, evaluation.mean, evaluation.var, t)
            grad_state = _normalise_backward(r, states[node], grad_states[node], *statistics)
            grad_previous, grad_gate, grad_candidate = _combine_backward(
                grad_state, previous, gates[node], candidates[node]
            )
            grad_candidate = grad_candidate * _slope(r, node, candidates[node], previous)
            factor[node, :, t] = _masked(r, previous)
            grad_product[node, :, t] = _beside(grad_gate, grad_candidate) if r.highway else grad_candidate
            if node == 0:
                grad_pre[t] = grad_product[0, :, t] if r.highway else grad_gate
            grad_previous = grad_previous + _masked(r, grad_product[node, :, t] @ _weight(r, node).transpose(1, 2))
            if node > 0:
                grad_states[r.ancestor[:, node - 1], _networks(r)] += grad_previous
            else:
                grad_h = grad_previous if r.mix is None else _over_ranks(r, grad_previous.sum(0))
    grad_weights = factor.flatten(2, 3).transpose(2, 3) @ grad_product.flatten(2, 3)  # [L+1, n, H, G]
    grad_nodes = grad_weights[1:].transpose(0, 1).contiguous()  # [n, L, H, G]
    return Gradients(grad_pre, grad_h, grad_weights[0].clone(), grad_nodes, grad_mix)


def _networks(r: Recurrence) -> Tensor:
    return torch.arange(r.pre.shape[1], device=r.pre.device)


def _weight(r: Recurrence, node: int) -> Tensor:
    return r.weight_hidden if node == 0 else r.weight_nodes[:, node - 1]  # [n, H, G]


def _previous_state(r: Recurrence, node: int, h: Tensor, states: Tensor) -> Tensor:
    """The state that a node reads, [n, M, H]: h_{t-1} for the init node, else the state of its ancestor."""
    if node == 0:
        return h.expand(states.shape[1:])
    return _ancestors(r, node, states)


def _ancestors(r: Recurrence, node: int, states: Tensor) -> Tensor:
    return states[r.ancestor[:, node - 1], _networks(r)]


def _masked(r: Recurrence, state: Tensor) -> Tensor:
    return state if r.mask_h is None else state * r.mask_h


def _activate(r: Recurrence, node: int, pre: Tensor, product: Tensor) -> tuple[Tensor | None, Tensor]:
    """Gate and candidate, [n, M, H] each; a plain node has no gate."""
    if r.highway:
        c, u = (pre + product if node == 0 else product).chunk(2, dim=-1)
        return torch.sigmoid(c), _nonlinearity(r, node, u)
    return _plain_gate(node, pre), _nonlinearity(r, node, product)


def _plain_gate(node: int, pre: Tensor) -> Tensor | None:
    return torch.sigmoid(pre) if node == 0 else None


def _is(r: Recurrence, node: int, name: str) -> Tensor:
    return (r.activation[:, node - 1] == activation_names().index(name))[:, None, None]  # [n, 1, 1]


def _nonlinearity(r: Recurrence, node: int, u: Tensor) -> Tensor:
    if node == 0:
        return torch.tanh(u)
    # Networks differ in their activation: evaluate each kind and select, without reading the tables on the host.
    result = torch.where(_is(r, node, "relu"), torch.relu(u), u)
    result = torch.where(_is(r, node, "sigmoid"), torch.sigmoid(u), result)
    result = torch.where(_is(r, node, "tanh"), torch.tanh(u), result)
    for networks, activation in _registered(r, node):
        result = torch.where(networks, activation.forward(u), result)
    return result


def _slope(r: Recurrence, node: int, f: Tensor, previous: Tensor) -> Tensor:
    """The derivative of the activation, from its value f; for a registered one from its argument."""
    if node == 0:
        return 1 - f * f
    result = torch.where(_is(r, node, "relu"), (f > 0).to(f.dtype), torch.ones_like(f))
    result = torch.where(_is(r, node, "sigmoid"), f * (1 - f), result)
    result = torch.where(_is(r, node, "tanh"), 1 - f * f, result)
    for networks, activation in _registered(r, node):
        u = _masked(r, previous) @ _weight(r, node)[..., -f.shape[-1] :]
        result = torch.where(networks, activation.derivative(u), result)
    return result


def _registered(r: Recurrence, node: int) -> Iterator[tuple[Tensor, Activation]]:
    """The registered activations of a node, each with a mask of its networks, [n, 1, 1]."""
    for name, activation in REGISTERED.items():
        networks = _is(r, node, name)
        if bool(networks.any()):
            yield networks, activation


def _combine(previous: Tensor, gate: Tensor | None, candidate: Tensor) -> Tensor:
    return candidate if gate is None else previous + gate * (candidate - previous)


def _combine_backward(
    grad: Tensor, previous: Tensor, gate: Tensor | None, candidate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives with respect to the previous state, the gate's logit and the candidate."""
    if gate is None:
        zero = torch.zeros_like(grad)
        return zero, zero, grad
    return grad * (1 - gate), grad * (candidate - previous) * gate * (1 - gate), grad * gate


def _beside(gate: Tensor | None, candidate: Tensor) -> Tensor:
    assert gate is not None  # every node of the highway form has one
    return torch.cat([gate, candidate], dim=-1)  # [n, M, 2H]


def _statistics(r: Recurrence, node: int, mean: Tensor, var: Tensor, t: int) -> tuple[Tensor | None, Tensor | None]:
    """The mean and variance for normalising the states of a node, [n, 1, H] each."""
    if r.norm == "batch":
        return mean[t, :, node, None], var[t, :, node, None]
    return _running_statistics(r, node)


def _running_statistics(r: Recurrence, node: int) -> tuple[Tensor | None, Tensor | None]:
    if r.running_mean is None or r.running_var is None:
        return None, None
    return r.running_mean[:, node, None], r.running_var[:, node, None]


def normalise(state: Tensor, mean: Tensor | None, var: Tensor | None) -> Tensor:
    if mean is None or var is None:
        return state
    return (state - mean) * torch.rsqrt(var + NORM_EPS)


def _normalise_backward(
    r: Recurrence, normalised: Tensor, grad: Tensor, mean: Tensor | None, var: Tensor | None
) -> Tensor:
    if mean is None or var is None:
        return grad
    if r.norm == "batch":  # the batch's own mean and variance depend on the states too
        grad = grad - grad.mean(1, keepdim=True) - normalised * (grad * normalised).mean(1, keepdim=True)
    return grad * torch.rsqrt(var + NORM_EPS)


def _concat_share(r: Recurrence) -> Tensor:
    concat = r.concat.to(r.pre.dtype)
    return (concat / concat.sum(1, keepdim=True)).t()[:, :, None, None]  # [L, n, 1, 1]


def _cell_output(r: Recurrence, states: Tensor) -> Tensor:
    """Eq. (3): the mean of the states in `concat`, [n, M, H]."""
    return (states[1:] * _concat_share(r)).sum(0)


def _mix(r: Recurrence, cell_output: Tensor) -> Tensor:
    """Eq. (4): the weighted sum of the networks' outputs; independent networks keep their own."""
    return cell_output if r.mix is None else (r.mix[:, None, None] * cell_output).sum(0)


def _over_ranks(r: Recurrence, of_networks: Tensor) -> Tensor:
    """Complete a sum over networks by the networks of all ranks."""
    return sum_over_ranks(of_networks) if r.all_ranks else of_networks


def _cell_output_backward(r: Recurrence, grad_h: Tensor) -> Tensor:
    """The derivatives of the states 0..L from the output, [L+1, n, M, H]; state 0 is never in `concat`."""
    grad_cell = grad_h if r.mix is None else r.mix[:, None, None] * grad_h  # [n, M, H]
    grad_nodes = _concat_share(r) * grad_cell  # [L, n, M, H]
    return torch.cat([torch.zeros_like(grad_nodes[:1]), grad_nodes])


def _rebuild(
    r: Recurrence, evaluation: Evaluation, h: Tensor, t: int
) -> tuple[Tensor, list[Tensor | None], list[Tensor]]:
    """Rebuild states, gates and candidates of one time step from the kept tensors, without products."""
    gates: list[Tensor | None] = []
    candidates: list[Tensor] = []
    nodes = r.weight_nodes.shape[1]
    states = h.new_empty(nodes + 1, r.pre.shape[1], *h.shape[-2:])
    for node in range(nodes + 1):
        kept = evaluation.activated[t, :, node]  # [n, M, G]
        gate, candidate = kept.chunk(2, dim=-1) if r.highway else (_plain_gate(node, r.pre[t]), kept)
        state = _combine(_previous_state(r, node, h, states), gate, candidate)
        states[node] = normalise(state, *_statistics(r, node, evaluation.mean, evaluation.var, t))
        gates.append(gate)
        candidates.append(candidate)
    return states, gates, candidates
