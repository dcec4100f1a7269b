"""What searching and evaluating share: windows over text, perplexity, and a training state as tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from wenet.nn import IndependentLanguageModels, LanguageModel
from wenet_kernels import LostRanks, WenetError

Predictor = LanguageModel | IndependentLanguageModels

USUAL_WINDOW = 0.95  # the share of windows around the usual length; the others are around half of it
WINDOW_SD, SHORTEST_WINDOW, LONGER_AT_MOST = 5.0, 5, 20  # time steps


def windows_per_epoch(stream: Tensor, bptt: float) -> int:
    """How many windows of `bptt` steps a stream `[steps, M]` has; the last one may be shorter."""
    return math.ceil((len(stream) - 1) / bptt)


def window(stream: Tensor, bptt: int, index: int) -> tuple[Tensor, Tensor]:
    """Tokens and targets of a window, `[T, M]` each, T <= bptt; the targets are one step ahead."""
    return window_at(stream, index * bptt, bptt)


def window_at(stream: Tensor, start: int, length: int) -> tuple[Tensor, Tensor]:
    """Tokens and targets of a window that begins at step `start`, `[T, M]` each, T <= length."""
    stop = min(start + length, len(stream) - 1)
    return stream[start:stop], stream[start + 1 : stop + 1]


def window_length(bptt: int, kind: str = "merity") -> int:
    """Time steps of the next window of a kind of `wenet.config.WINDOWS`.

    "merity": a random number, mostly near `bptt`, so that windows do not begin at the same words every epoch; "darts":
    `bptt`, or now and then half of it.
    """
    if kind == "fixed":
        return bptt
    usual = bool(torch.rand(()) < USUAL_WINDOW)
    base = bptt if usual else bptt / 2
    if kind == "darts":
        return max(1, int(base))
    return min(max(SHORTEST_WINDOW, int(torch.normal(base, WINDOW_SD, ()))), bptt + LONGER_AT_MOST)


def mean_window(bptt: int, kind: str) -> float:
    """What `window_length` comes to on average, but for its bounds."""
    return bptt if kind == "fixed" else (USUAL_WINDOW + (1 - USUAL_WINDOW) / 2) * bptt


def perplexity(model: LanguageModel, stream: Tensor, bptt: int, between: Callable[[], None] = lambda: None) -> float:
    """exp of the mean cross-entropy over every predicted token of a stream `[steps, M]`, without dropout; infinite
    where it overflows, or the model does."""
    return exponential(float(mean_cross_entropy(model, stream, bptt, between)))


@torch.no_grad()
def mean_cross_entropy(
    model: Predictor, stream: Tensor, bptt: int, between: Callable[[], None], of_networks: bool = False
) -> Tensor:
    """Nats per predicted token of a stream `[steps, M]`, without dropout; `[n]` where a model is n networks, or where
    of a mixture's networks each is to be measured by its own output.

    The mean is over predicted tokens: dividing by the rows of the stream, one more than are predicted, would read a
    little too low. `between` is called after every window and may raise. NaN where the model's state overflows on the
    way, which the operator then refuses.
    """
    total, h = torch.zeros((), dtype=torch.float64), None
    model.eval()
    try:
        for index in range(windows_per_epoch(stream, bptt)):
            tokens, targets = window(stream, bptt, index)
            if of_networks:
                assert isinstance(model, LanguageModel)
                cross_entropy, h = model.network_losses(tokens, targets, h)
            else:
                _, cross_entropy, h = model.loss(tokens, targets, h)
            total = total + cross_entropy.double().cpu() * targets.numel()
            between()
    except LostRanks:
        raise
    except WenetError:  # of a model and a text that fit one another, all that can be refused is NaN
        total = total + math.nan
    finally:
        model.train()
    return total / stream[1:].numel()


def exponential(cross_entropy: float) -> float:
    """The perplexity of a mean cross-entropy; infinite where a float overflows."""
    return math.exp(cross_entropy) if cross_entropy < 700 else math.inf


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters, buffers and the optimizer's state under flat names, for a checkpoint."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    return tensors


def restore_training(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `training_tensors` took."""
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def random_tensors(device: torch.device) -> dict[str, Tensor]:
    """The states of the random generators that training on a device draws from."""
    tensors = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def restore_random(tensors: dict[str, Tensor], device: torch.device) -> None:
    """Put back what `random_tensors` took."""
    torch.set_rng_state(tensors["random.cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], device)
