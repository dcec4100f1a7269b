"""Searches as estimators with the protocol of scikit-learn, which itself is not needed."""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from wenet.api import search
from wenet.data import MOST_CLASS, check_columns, check_counts, column_names, is_missing, series_of
from wenet.nn import SequenceModel
from wenet.results import SearchResult
from wenet_kernels import WenetError

Array = NDArray[Any]


class _Estimator:
    """What the estimators share.

    After `fit`, `model_` is the trained model, `cell_` its cell, and `found_` the result of the search, whose files are
    in `folder`, where one is named.
    """

    task: ClassVar[str]
    estimator_type: ClassVar[str | None] = None

    def __init__(
        self,
        minutes: float | None = 1.0,
        pool: int = 48,
        parameters: int = 5_000,
        seed: int = 1,
        folder: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.minutes, self.pool, self.parameters, self.seed = minutes, pool, parameters, seed
        self.folder, self.options = folder, options

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the estimator by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Change arguments of the estimator.

        Raises:
            WenetError: there is no such argument.
        """
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise WenetError(f"{type(self).__name__} has no argument {name!r}; it has {', '.join(known)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        usual = {name: value.default for name, value in inspect.signature(type(self)).parameters.items()}
        given = [f"{name}={value!r}" for name, value in self.get_params().items() if value != usual[name]]
        return f"{type(self).__name__}({', '.join(given)})"

    def __sklearn_tags__(self) -> Any:
        """Only scikit-learn asks for them."""
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        is_classifier, is_regressor = self.estimator_type == "classifier", self.estimator_type == "regressor"
        return Tags(
            estimator_type=self.estimator_type,
            target_tags=TargetTags(required=self.estimator_type is not None),
            classifier_tags=ClassifierTags() if is_classifier else None,
            regressor_tags=RegressorTags() if is_regressor else None,
            input_tags=InputTags(two_d_array=True, three_d_array=True),
        )

    def _settings(self) -> dict[str, Any]:
        """Settings of a search."""
        return {}

    def _search(self, x: Any, y: Array | None = None) -> None:
        data = x if y is None else (x, y)
        if not isinstance(self.options, dict | None):
            raise WenetError(f"options must be a dictionary of settings, not {type(self.options).__name__}")
        for name in ("task", "out"):
            if name in (self.options or {}):
                raise WenetError(
                    f"options cannot name {name!r}: the estimator has one task, and folder names its place"
                )
        settings: dict[str, Any] = {
            "pool": self.pool,
            "batch": self.pool,
            "keep": min(4, self.pool),
            "parameters": self.parameters,
            "seed": self.seed,
            "minutes": self.minutes,
            "constant": "keep",
            **self._settings(),
            **(self.options or {}),
        }
        if self.folder is not None:
            _check_new(Path(self.folder))
            self._take(search(data, task=self.task, out=self.folder, **settings), keep=True)
        else:
            with tempfile.TemporaryDirectory() as folder:
                self._take(search(data, task=self.task, out=Path(folder) / "run", **settings), keep=False)
        self._columns = column_names(x)

    def _take(self, found: SearchResult, keep: bool) -> None:
        model = found.model
        assert isinstance(model, SequenceModel)
        self.model_, self.cell_, self.n_features_in_ = model, found.genotype, model.features_in
        self.contest_ = found.contest
        vars(self).pop("found_", None)  # that of an earlier fit
        if keep:
            self.found_ = found

    def _predicted(self, x: Any) -> Any:
        return self._fitted_to(x).predict(x, self._layout)

    def _fitted_to(self, x: Any) -> SequenceModel:
        """The model, unless x is a data frame with the columns of `fit` in another order; steps may have new names."""
        model, found = self._fitted(), column_names(x)
        if sorted(found) == sorted(self._columns):
            check_columns(found, self._columns, "x", "fit")
        return model

    @property
    def _layout(self) -> str:
        """Of sequences, here as in the search."""
        return str((self.options or {}).get("layout", "ntf"))

    def _fitted(self) -> SequenceModel:
        if not hasattr(self, "model_"):
            raise WenetError(f"this {type(self).__name__} has no model yet; call fit first")
        return self.model_


def _check_new(folder: Path) -> None:
    """Refuse a place that holds something; a search would advise what an estimator cannot do."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise WenetError(f"{folder} is not empty, and one folder is for one fit; set folder to a new place")


def _check_alike(found: Array, wanted: Array) -> None:
    """Refuse a y that is not one row for each prediction, with as many columns."""
    check_counts(len(found), len(wanted), "x")
    if found.shape != wanted.shape:
        raise WenetError(f"y has the shape {list(wanted.shape)} and predictions {list(found.shape)}; give it as in fit")


def _there(y: Any) -> Any:
    if y is None or np.ndim(y) == 0:
        raise WenetError("there is no y; give a target for each sequence")
    return y


def _numbers(y: Any) -> Array:
    try:
        return np.asarray(_there(y), dtype=np.float64)
    except (TypeError, ValueError):
        raise WenetError("y must be numbers; SequenceClassifier takes labels that are texts") from None


def _as_columns(numbers: Array) -> Array:
    """`[N, K]`, also of `[N]`."""
    return numbers[:, None] if numbers.ndim == 1 else numbers


def _labels(y: Any) -> Array:
    """Labels `[N]`, also from a column of them, which would be compared with all of `[N]`."""
    labels = np.asarray(_there(y))
    if labels.dtype.kind in "fOM" and any(map(is_missing, labels.ravel().tolist())):
        raise WenetError("a label is missing; leave its sequence out")
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _kept(labels: Array, numbers: Array) -> Array:
    """Labels as a search reads them and its messages name them, in the order of `numbers`, else these.

    Only text and whole numbers that a double holds stay in their order there.
    """
    if all(isinstance(label, str) for label in labels.ravel().tolist()):
        return labels.astype(str)
    small = labels.dtype.kind in "iufb" and np.abs(labels.astype(np.float64)).max() < MOST_CLASS
    return labels if small else numbers.astype(np.int64)


class SequenceClassifier(_Estimator):
    """Searches a cell that classifies sequences, and predicts with its trained model.

    Args:
        minutes: time of a fit; None trains as long as the other settings say.
        pool: number of cells.
        parameters: of each model.
        seed: of all that is drawn, also of the validation and test parts that the search takes from what `fit` gets.
        folder: keeps the run, with its report; by default it is deleted.
        options: any other arguments of `wenet.search`.

    Examples:
        >>> import numpy
        >>> from wenet.estimators import SequenceClassifier
        >>> x = numpy.random.default_rng(1).normal(size=(60, 12, 3))
        >>> y = numpy.where(x[:, :, 0].sum(1) > 0, "up", "down")
        >>> short = {"space": "dag", "rungs": 1, "epochs_per_round": 1, "contest_epochs": 2}
        >>> model = SequenceClassifier(minutes=None, pool=2, parameters=300, options=short).fit(x, y)
        >>> model.predict(x).shape, model.predict_proba(x).shape, 0 <= model.score(x, y) <= 1
        ((60,), (60, 2), True)
    """

    task = "classify"
    estimator_type = _estimator_type = "classifier"

    def fit(self, x: Any, y: Any) -> Self:
        """Search, and train the winner.

        Args:
            x: `[N, T, F]`, `[N, T]` for one feature, or a list of `[T, F]`.
            y: a label for each, `[N]` or `[N, 1]`.

        Raises:
            WenetError: as in `wenet.search`.
        """
        labels = _labels(y)
        try:
            classes, numbers = np.unique(labels, return_inverse=True)
        except TypeError:
            raise WenetError("labels are of several types, such as text and numbers; give all as text") from None
        fractions = [label for label in classes.tolist() if isinstance(label, float) and label % 1 != 0]
        if fractions:
            raise WenetError(f"a label such as {fractions[0]} is no class; SequenceRegressor predicts numbers")
        if len(classes) == 1:
            raise WenetError(f"all labels are {labels.tolist()[0]!r}; a classification needs two classes at least")
        self._search(x, _kept(labels, numbers))
        self.classes_ = classes  # once there is a model for them: a fit that fails leaves the one before
        return self

    def predict(self, x: Any) -> Array:
        """Labels `[N]`."""
        found = np.searchsorted(np.array(self._fitted().classes), self._predicted(x))
        return self.classes_[found]

    def predict_proba(self, x: Any) -> Array:
        """Probabilities `[N, K]`, in the order of `classes_`."""
        found: Array = self._fitted_to(x).predict_proba(x, self._layout)
        return found

    def score(self, x: Any, y: Any, sample_weight: Any = None) -> float:
        """The share of right labels."""
        found, labels = self.predict(x), _labels(y)
        _check_alike(found, labels)
        return float(np.average(found == labels, weights=sample_weight))


class SequenceRegressor(_Estimator):
    """Searches a cell that predicts numbers from sequences, and predicts with its trained model.

    Args:
        minutes, pool, parameters, seed, folder, options: as in `SequenceClassifier`.

    Examples:
        >>> import numpy
        >>> from wenet.estimators import SequenceRegressor
        >>> x = numpy.random.default_rng(1).normal(size=(60, 12, 3))
        >>> short = {"space": "dag", "rungs": 1, "epochs_per_round": 1, "contest_epochs": 2}
        >>> model = SequenceRegressor(minutes=None, pool=2, parameters=300, options=short).fit(x, x[:, :, 0].sum(1))
        >>> model.predict(x).shape
        (60,)
    """

    task = "regress"
    estimator_type = _estimator_type = "regressor"

    def fit(self, x: Any, y: Any) -> Self:
        """Search, and train the winner.

        Args:
            x: as in `SequenceClassifier.fit`.
            y: a number for each, `[N]`, or several, `[N, K]`.

        Raises:
            WenetError: as in `wenet.search`.
        """
        self._search(x, _numbers(y))
        return self

    def predict(self, x: Any) -> Array:
        """Numbers `[N]` or `[N, K]`."""
        return np.asarray(self._predicted(x))

    def score(self, x: Any, y: Any, sample_weight: Any = None) -> float:
        """The coefficient of determination R², the mean over targets.

        Where a target of y is constant it is 0, or 1 for the very values; NaN for a single sequence.
        """
        wanted, found = (_as_columns(each) for each in (_numbers(y), self.predict(x)))
        _check_alike(found, wanted)
        if not np.isfinite(wanted).all():
            raise WenetError("y has a number that is missing or not finite; leave its sequence out")
        weights = np.ones(len(found)) if sample_weight is None else np.asarray(sample_weight)
        mean = np.average(wanted, axis=0, weights=weights)
        left = np.average((wanted - found) ** 2, axis=0, weights=weights)
        spread = np.average((wanted - mean) ** 2, axis=0, weights=weights)
        if len(found) < 2:
            return float("nan")  # as in scikit-learn: one number has no spread
        missed = np.divide(left, spread, out=np.where(left > 0, 1.0, 0.0), where=spread > 0)
        return float(np.mean(1 - missed))


class Forecaster(_Estimator):
    """Searches a cell that continues series, and predicts with its trained model.

    Args:
        window: steps that a forecast sees.
        horizon: steps that it predicts.
        minutes, pool, parameters, seed, folder, options: as in `SequenceClassifier`.

    Examples:
        >>> import numpy
        >>> from wenet.estimators import Forecaster
        >>> series = numpy.sin(numpy.arange(300) / 5)
        >>> short = {"space": "dag", "rungs": 1, "epochs_per_round": 1, "contest_epochs": 1}
        >>> model = Forecaster(8, 3, minutes=None, pool=2, parameters=300, options=short).fit(series)
        >>> model.predict(series).shape
        (3, 1)
    """

    task = "forecast"

    def __init__(
        self,
        window: int = 48,
        horizon: int = 1,
        minutes: float | None = 1.0,
        pool: int = 48,
        parameters: int = 5_000,
        seed: int = 1,
        folder: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(minutes, pool, parameters, seed, folder, options)
        self.window, self.horizon = window, horizon

    def fit(self, x: Any, y: Any = None) -> Self:
        """Search, and train the winner.

        Args:
            x: a series `[T]` or `[T, F]`, or several as `[N, T, F]` or a list.
            y: not used.

        Raises:
            WenetError: as in `wenet.search`.
        """
        self._search(x)
        return self

    def _settings(self) -> dict[str, Any]:
        return {"window": self.window, "horizon": self.horizon}

    def predict(self, x: Any) -> Array:
        """The steps that follow a series, `[h, C]`, or several, `[N, h, C]`; the last `window` steps of each count."""
        return np.asarray(self._predicted(x))

    def score(self, x: Any, y: Any = None) -> float:
        """One minus the mean absolute error over that of repeating the last value, for the end of each series, as far
        as it is known."""
        model = self._fitted()
        given = series_of(x, False, self._layout, "x")
        if given.lengths.min() <= self.horizon:
            raise WenetError(
                f"x has a series of {given.lengths.min()} steps; a score needs more than horizon={self.horizon}"
            )
        check_columns(given.columns, model.columns, "x", "training")
        ours, naive = 0.0, 0.0
        for series in np.split(given.values, given.starts[1:]):
            known, ahead = series[: -self.horizon], series[-self.horizon :]
            columns = list(model.repeats)
            ours += float(np.nansum(np.abs(model.predict(known) - ahead[:, columns])))
            naive += float(np.nansum(np.abs(known[-1, columns] - ahead[:, columns])))
        return 1 - ours / naive if naive else 0.0
