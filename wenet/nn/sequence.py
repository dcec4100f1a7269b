"""Models of sequences of numbers around a recurrent layer: one model, or one for each network of the layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from wenet.data import LAYOUTS, Series, check_columns, first_values, inputs_of, is_list, sequences_alone, series_of
from wenet.nn.checks import check_no_end, check_probability
from wenet.nn.dropout import locked_dropout
from wenet.nn.losses import LOSSES, batch_losses, is_loss, row_losses
from wenet.nn.standalone_cells import StandaloneCellRNN
from wenet.nn.weighted import draw_networks
from wenet_kernels import WenetError, check_choice

PREDICTED_ROWS = 256  # at a time
READOUTS = ("last", "mean", "steps")


def _is_one(x: Any) -> bool:
    """Whether x is a single sequence that is to be continued."""
    if is_list(x):
        return all(np.isscalar(each) for each in x)
    return np.ndim(x) in (1, 2)


class _Readout(nn.Module):
    """What a prediction is made from, and the step from there to a prediction, for n networks at once."""

    def __init__(self, readout: str, repeats: Sequence[int], horizon: int) -> None:
        super().__init__()
        check_choice("readout", readout, READOUTS)
        self.readout, self.repeats, self.horizon = readout, tuple(repeats), horizon

    def features(self, output: Tensor, there: Tensor) -> Tensor:
        """Of the layer's output `[T, n, M, H]`: the last, or the mean, `[n, M, H]`, or all, `[n, T, M, H]`."""
        if self.readout == "steps":
            return output.transpose(0, 1)
        lengths = there.sum(0)  # [M]
        if self.readout == "mean":
            return (output * there[:, None, :, None]).sum(0) / lengths[:, None]
        last = (lengths.long() - 1).view(1, 1, -1, 1).expand(1, output.shape[1], -1, output.shape[3])
        return output.gather(0, last)[0]

    def added(self, inputs: Tensor, there: Tensor) -> Tensor | float:
        """The last values of what is forecast, `[M, K]`, from which a forecast counts; else 0."""
        if not self.repeats:
            return 0.0
        last = (there.sum(0).long() - 1).view(1, -1, 1).expand(1, -1, inputs.shape[2])
        return self.known(inputs.gather(0, last)[0])[:, list(self.repeats)].repeat(1, self.horizon)

    def known(self, step: Tensor) -> Tensor:
        """What a forecast counts from in a step `[M, I]`; examples of training have no missing value there."""
        return step


class StandaloneSequenceModels(_Readout):
    """`n` standalone models of sequences with different cells, each with a head of its own, trained at once.

    Args:
        rnn: n networks with independent coupling, which read inputs `[T, M, I]`.
        outputs: numbers in a prediction, K.
        loss: "ce" of classes; "mse" or "mae" of numbers; or what `named_loss` gave for a function.
        readout: what a prediction is made from: "last" (the state behind the last step), "mean" (of the states of all
            steps) or "steps" (a prediction at each step).
        repeats, horizon: the places of inputs whose last values are added to a forecast of `horizon` steps.
        dropout_output: on what a prediction is made from, the same for all networks.

    Parameters: head_weight `[n, H, K]`, head_bias `[n, K]`; the parameters of `rnn`.

    The last feature of an input is 1, and 0 behind the end of a sequence: what stands there reaches no prediction.

    Raises:
        WenetError: the layer mixes its networks, or the loss or readout is unknown.
    """

    def __init__(
        self,
        rnn: Any,
        outputs: int,
        loss: str,
        readout: str = "last",
        repeats: Sequence[int] = (),
        horizon: int = 0,
        dropout_output: float = 0.0,
    ) -> None:
        super().__init__(readout, repeats, horizon)
        if not is_loss(loss):
            check_choice("loss", loss, LOSSES)
        check_probability("dropout_output", dropout_output)
        if rnn.coupling != "independent":
            raise WenetError("standalone models need a layer with coupling='independent'")
        self.rnn, self.kind, self.dropout_output, self.count = rnn, loss, dropout_output, rnn.count
        self.head_weight = nn.Parameter(torch.empty(rnn.count, rnn.hidden_size, outputs))
        self.head_bias = nn.Parameter(torch.zeros(rnn.count, outputs))
        rnn.reset_parameters()
        draw_networks(self.head_weight, rnn.hidden_size**-0.5, rnn.among)
        self._draw_smaller_heads()

    @torch.no_grad()
    def _draw_smaller_heads(self) -> None:
        """Of networks with fewer units than the layer: a wider range, as their size asks for, and 0 for other units."""
        if not self._sizes_differ():
            return
        units = self.rnn.units.to(self.head_weight.device)  # [n, H]
        wider = (self.rnn.hidden_size / units.sum(1, keepdim=True)).sqrt() * units
        self.head_weight.mul_(wider.unsqueeze(-1))

    def _sizes_differ(self) -> bool:
        return isinstance(self.rnn, StandaloneCellRNN) and self.rnn.sizes_differ

    def forward(self, inputs: Tensor) -> Tensor:
        """Predictions `[n, M, K]`, of the readout "steps" `[n, T, M, K]`, from inputs `[T, M, I]`."""
        inputs = inputs.to(self.head_bias.dtype)
        there = inputs[..., -1]  # [T, M]
        check_no_end(self.rnn.cells, there == 0)
        output, _ = self.rnn(inputs)  # [T, n, M, H]
        features = locked_dropout(self, self.features(output, there), self.dropout_output)
        if self._sizes_differ():
            features = features.where(self.rnn.units.view(self.count, *[1] * (features.dim() - 2), -1), 0)
        weight, bias = self.head_weight, self.head_bias.unsqueeze(1)
        found = torch.baddbmm(bias, features.flatten(1, -2), weight).unflatten(1, features.shape[1:-1])
        return found + self.added(inputs, there)

    def losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions, and the loss of each network on each row, `[n, M]`."""
        outputs = self(inputs)
        return outputs, row_losses(self.kind, outputs, *_as_outputs(outputs, inputs, targets))

    def loss(
        self,
        inputs: Tensor,
        targets: Tensor,
        state: None = None,
        activation_reg: float = 0.0,
        temporal_activation_reg: float = 0.0,
    ) -> tuple[Tensor, Tensor, None]:
        """The sum of the networks' losses, their losses `[n]`, and no state: each sequence starts from zero."""
        outputs = self(inputs)
        losses = batch_losses(self.kind, outputs, *_as_outputs(outputs, inputs, targets))
        return losses.sum(), losses.detach(), None


def _as_outputs(outputs: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Targets, and where they are, in the type of the outputs."""
    wanted = targets if targets.dtype == torch.long else targets.to(outputs.dtype)
    return wanted, inputs[..., -1].to(outputs.dtype)


class SequenceModel(_Readout):
    """A trained model of sequences, which reads numbers as they come and predicts in their own units.

    Args:
        rnn: a recurrent layer, called like `torch.nn.RNN` or `torch.nn.LSTM`.
        outputs: numbers in a prediction, K.
        scaling: shift and scale of the features, `[F]`, and of the targets, `[K]` or empty for classes.
        marked: whether missing values, NaN, are read as a feature more for each.
        readout, repeats, horizon: as in `StandaloneSequenceModels`.
        classes: the labels that scores stand for.
        window: steps of a history that a forecast sees.
        flat: whether `predict` gives a single number for each sequence, and not a row of them.
        relative: the features of which a forecast reads the differences from the first step.
        columns: names of the features, where they had any in training.

    Parameters: head_weight `[H, K]`, head_bias `[K]`; those of `rnn`. The scaling is in buffers.

    Examples:
        >>> import torch, wenet
        >>> from wenet.nn import SequenceModel
        >>> scaling = (torch.zeros(3), torch.ones(3), torch.zeros(2), torch.ones(2))
        >>> model = SequenceModel(wenet.nn.DagRNN(4, 8, "darts-v2"), 2, scaling)
        >>> x = torch.randn(5, 7, 3)  # 5 sequences of 7 steps
        >>> whole = model(x)
        >>> state = None
        >>> for step in x.unbind(1):
        ...     prediction, state = model.step(step, state)
        >>> torch.allclose(whole, prediction, atol=1e-6)
        True
    """

    def __init__(
        self,
        rnn: nn.Module,
        outputs: int,
        scaling: tuple[Tensor, Tensor, Tensor, Tensor],
        marked: bool = False,
        readout: str = "last",
        repeats: Sequence[int] = (),
        horizon: int = 0,
        classes: Sequence[str | int] = (),
        window: int = 0,
        flat: bool = False,
        relative: Sequence[int] = (),
        columns: Sequence[str] = (),
    ) -> None:
        super().__init__(readout, repeats, horizon)
        self.columns = tuple(columns)
        self.rnn, self.marked, self.classes = rnn, marked, tuple(classes)
        self.window, self.flat, self.relative = window, flat, tuple(relative)
        hidden: Any = rnn.hidden_size
        self.head_weight = nn.Parameter(torch.empty(hidden, outputs).uniform_(-(hidden**-0.5), hidden**-0.5))
        self.head_bias = nn.Parameter(torch.zeros(outputs))
        for name, value in zip(("shift", "scale", "target_shift", "target_scale"), scaling, strict=True):
            self.register_buffer(name, value.clone())

    @property
    def features_in(self) -> int:
        """Features of a step as it comes, F."""
        return len(self.get_buffer("shift"))

    def predict(self, x: Any, layout: str = "ntf") -> Any:
        """Predict from arrays; sequences of different length come as a list.

        Args:
            x: as in training, `[N, T, F]`, `[N, T]`, a list of `[T, F]` or a data set of them, in whose order
                predictions are; of a forecast also one sequence `[T, F]` or `[T]`, of which the last steps count.
            layout: as in training.

        Returns:
            The labels `[N]`; numbers `[N, K]`, or `[N]` where there is one; a forecast `[N, h, C]`, of one sequence
            `[h, C]`. With a prediction at each step `[N, T]` or `[N, T, K]`, a list where lengths differ.

        Raises:
            WenetError: x has another number of features, or columns of other names; values are infinite, or so large
                that no prediction is finite, or missing as none was in training, or where a forecast counts from them.
        """
        x = sequences_alone(x)
        found = self._outputs(x, layout)
        if not self.classes:
            found = [each[..., 0] if self.flat else each for each in found]
        else:
            labels = np.array(self.classes)
            found = [labels[each.argmax(-1)] for each in found]
        if self.horizon and _is_one(x):
            return found[0]
        return np.stack(found) if len({each.shape for each in found}) == 1 else found

    def predict_proba(self, x: Any, layout: str = "ntf") -> Any:
        """Probabilities of the classes, `[N, K]`, in the order of `classes`; x as in `predict`.

        Raises:
            WenetError: as in `predict`; or the model predicts numbers.
        """
        if not self.classes:
            raise WenetError("this model predicts numbers, and so has no probabilities; call predict")
        scores = [
            torch.softmax(torch.from_numpy(each), -1).numpy() for each in self._outputs(sequences_alone(x), layout)
        ]
        return np.stack(scores) if len({each.shape for each in scores}) == 1 else scores

    @torch.no_grad()
    def _outputs(self, x: Any, layout: str) -> list[NDArray[Any]]:
        """What the model gives for each sequence."""
        check_choice("layout", layout, LAYOUTS)
        series = series_of(x, False, layout, "x") if self.horizon else inputs_of(x, layout)
        if series.features != self.features_in:
            alone = not is_list(x) and np.ndim(x) == 2 and np.shape(x)[1] == self.features_in
            mend = "; [T, F] of one sequence is x[None]" if alone else ""
            raise WenetError(
                f"x needs as many features as in training, {self.features_in}, not {series.features}{mend}"
            )
        check_columns(series.columns, self.columns, "x", "training")
        self._check_values(series)
        values = np.split(series.values, series.starts[1:])
        if self.window:
            values = [each[-self.window :] for each in values]
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            return self._outputs_of(values)
        finally:
            for module, training in modes:
                module.training = training

    def _outputs_of(self, values: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """What the model gives for sequences `[T, F]`, some at a time."""
        found = []
        for first in range(0, len(values), PREDICTED_ROWS):
            some = [torch.from_numpy(each) for each in values[first : first + PREDICTED_ROWS]]
            lengths = torch.tensor([len(each) for each in some])
            device = self.head_bias.device
            padded = pad_sequence(some, batch_first=True).to(device)
            scores = self(padded, lengths.to(device)).cpu()
            outputs = (scores.float() if scores.dtype == torch.bfloat16 else scores).numpy()  # NumPy has no bf16
            self._check_near(padded, outputs, first)
            each_step = self.readout == "steps"
            found += [row[:length] if each_step else row for row, length in zip(outputs, lengths.tolist(), strict=True)]
        return found

    def _check_values(self, series: Series) -> None:
        """Refuse values that are infinite, or missing as none was in training or where a forecast counts from them."""
        if not self.marked and np.isnan(series.values).any():
            step = int(np.isnan(series.values).any(1).argmax())
            raise WenetError(f"x, {series.place(step)}: a value is missing, as none was in training; fill it in")
        if np.isinf(series.values).any():
            step = int(np.isinf(series.values).any(1).argmax())
            raise WenetError(f"x, {series.place(step)}: a value is infinite; give finite ones")
        if self.window:
            self._check_counted_from(series)

    def _check_near(self, x: Tensor, outputs: NDArray[Any], before: int) -> None:
        """Refuse values that are not finite once they are standardised, or of which no prediction is finite.

        Args:
            x: `[M, T, F]`.
            before: sequences before these, which are counted on in the message.
        """
        finite = self.standardised(x).isfinite().flatten(1).all(1).cpu().numpy()
        finite &= np.isfinite(outputs.reshape(len(outputs), -1)).all(1)
        if not finite.all():
            number = before + int(finite.argmin()) + 1
            raise WenetError(f"x, sequence {number}: values are too far from those of training for a prediction")

    def _check_counted_from(self, series: Series) -> None:
        """Refuse series in which a value is missing from which the forecast counts."""
        ends = series.starts + series.lengths
        first = np.maximum(series.starts, ends - self.window)
        for what, steps, features in (("last", ends - 1, self.repeats), ("first", first, self.relative)):
            missing = np.isnan(series.values[steps][:, list(features)])
            if missing.any():
                sequence, place = (int(each) for each in np.argwhere(missing)[0])
                where = f"x, {series.place(int(steps[sequence]))}: {series.feature(features[place])}"
                raise WenetError(f"{where} is missing, the {what} value that the forecast counts from; fill it in")

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Predictions from whole sequences.

        Args:
            x: `[M, T, F]`, NaN where a value is missing, if the model was trained with missing values.
            lengths: steps of each sequence, `[M]`; by default all T.

        Returns:
            Scores of the classes `[M, K]`, or numbers `[M, K]`, of a forecast `[M, h, C]`; with a prediction at each
            step `[M, T, K]`.

        Raises:
            WenetError: x has another shape, or a length is not among 1 to T.
        """
        self._check(x, 3, "[M, T, F]", lengths)
        inputs = self.standardised(x).transpose(0, 1)  # [T, M, I]
        first = self._first(inputs[0])
        inputs = inputs - first.nan_to_num() if self.relative else inputs
        there = torch.ones_like(inputs[..., -1])  # [T, M]
        if lengths is not None:
            within = torch.arange(x.shape[1], device=x.device).unsqueeze(1) < lengths
            check_no_end(getattr(self.rnn, "cells", None), ~within)  # which a layer of PyTorch lacks
            inputs, there = inputs.where(within.unsqueeze(-1), 0), within.to(inputs.dtype)
        output, _ = self.rnn(inputs)  # [T, M, H]
        features = self.features(output.unsqueeze(1), there)[0]
        outputs = features @ self.head_weight + self.head_bias + self.added(inputs, there)
        return self._in_units(outputs + self._first_of_targets(first))

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The prediction after one more step, and the state for the next one.

        Args:
            x: `[M, F]`.
            state: what the last step returned; None at the first.
        """
        self._check(x, 2, "[M, F]")
        inputs = self.standardised(x).unsqueeze(0)  # [1, M, I]
        if state is None:
            state = None, 0.0, 0, self._first(inputs[0])
        carried, total, count, first = state
        if len(first) != len(x):
            raise WenetError(f"x has {len(x)} rows and the state {len(first)}; they go on together")
        inputs = inputs - first.nan_to_num() if self.relative else inputs
        output, carried = self.rnn(inputs, carried)
        total, count = total + output[0], count + 1
        features = total / count if self.readout == "mean" else output[0]
        outputs = features @ self.head_weight + self.head_bias + self.added(inputs, inputs[..., -1])
        return self._in_units(outputs + self._first_of_targets(first)), (carried, total, count, first)

    def known(self, step: Tensor) -> Tensor:
        """A step `[M, I]` with NaN where a value is missing, in place of the 0 that the layer reads: a forecast that
        counts from it is NaN too."""
        if not self.marked:
            return step
        values, missing, ones = step.split([self.features_in, self.features_in, 1], -1)
        return torch.cat([values.masked_fill(missing > 0, torch.nan), missing, ones], -1)

    def _check(self, x: Tensor, dimensions: int, named: str, lengths: Tensor | None = None) -> None:
        if not isinstance(x, Tensor):
            raise WenetError(f"x must be a tensor {named}, not {type(x).__name__}; `predict` takes arrays and lists")
        if x.is_complex():
            raise WenetError(f"x must be real numbers, not {x.dtype}; give real and imaginary parts as features")
        if x.dim() != dimensions or x.shape[-1] != self.features_in:
            raise WenetError(f"x must have shape {named} with F = {self.features_in}, not {list(x.shape)}")
        if dimensions == 3 and x.shape[1] == 0:
            raise WenetError(f"x has no steps: its shape is {list(x.shape)}")
        if lengths is None or torch.compiler.is_compiling():  # which reads no values
            return
        rows, steps = x.shape[:2]
        if not isinstance(lengths, Tensor) or lengths.shape != (rows,):
            raise WenetError(f"lengths must be a tensor of shape [{rows}]")
        if rows and not (lengths.min() >= 1 and lengths.max() <= steps):
            raise WenetError(f"lengths must be from 1 to {steps}, the steps of x")

    def _first(self, step: Tensor) -> Tensor:
        """Of the first step `[M, I]` what others are relative to, all of it NaN where a part is missing."""
        first = first_values(self.known(step), self.relative)
        return first.masked_fill(first.isnan().any(-1, keepdim=True), torch.nan)

    def _first_of_targets(self, first: Tensor) -> Tensor | float:
        """What is added to relative predictions, `[M, K]`, of the first values `[M, I]`."""
        return first[:, list(self.repeats)].repeat(1, self.horizon) if self.relative else 0.0

    def standardised(self, x: Tensor) -> Tensor:
        """Values `[..., F]` as the layer reads them, `[..., I]`; rounded once, like those that it was trained on."""
        missing = x.isnan()
        scaled = (x - self.get_buffer("shift")) / self.get_buffer("scale")
        parts = [scaled.where(~missing, 0), missing.to(scaled.dtype)] if self.marked else [scaled]
        ones = scaled.new_ones(*scaled.shape[:-1], 1)
        return torch.cat([*parts, ones], -1).to(self.head_bias.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> SequenceModel:
        """Convert or move the weights. Shift and scale stay in double precision, in which a price or a time of today
        differs from its neighbours."""
        kept = {name: buffer for name, buffer in self.named_buffers(recurse=False)}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            setattr(self, name, buffer.to(self.get_buffer(name).device))
        return self

    def _in_units(self, outputs: Tensor) -> Tensor:
        """Predictions in the targets' own units; scores of classes as they are."""
        if not self.classes:
            outputs = outputs * self.get_buffer("target_scale") + self.get_buffer("target_shift")  # in double precision
        if self.horizon:
            return outputs.unflatten(-1, (self.horizon, -1))
        return outputs.transpose(0, 1) if self.readout == "steps" and outputs.dim() == 3 else outputs
