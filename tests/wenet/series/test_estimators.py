"""The estimators alone, and where scikit-learn is installed within its tools."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wenet import WenetError
from wenet.estimators import Forecaster, SequenceClassifier, SequenceRegressor

from .test_searches import sums, waves
from .test_series import Frame

SHORT = {"minutes": None, "pool": 2, "parameters": 300}
OPTIONS = {"rungs": 1, "epochs_per_round": 1.0, "contest_epochs": 16.0, "contest_seeds": 2, "rates": "0.03"}
OPTIONS |= {"space": "dag", "nodes": "1"}


def test_arguments_and_copies():
    model = SequenceClassifier(pool=7, seed=3)
    assert model.get_params()["pool"] == 7 and model.set_params(pool=5) is model and model.pool == 5
    assert repr(model) == "SequenceClassifier(pool=5, seed=3)"
    assert Forecaster(24).get_params()["window"] == 24
    with pytest.raises(WenetError, match="SequenceClassifier has no argument 'pol'"):
        model.set_params(pol=1)
    with pytest.raises(WenetError, match="has no model yet; call fit first"):
        model.predict(sums()[0])


def test_a_classifier():
    x, y = sums()
    model = SequenceClassifier(**SHORT, options=OPTIONS).fit(x, y)
    assert list(model.classes_) == ["down", "up"] and model.score(*sums(300, seed=2)) > 0.75
    few, column = x[:30], y[:30, np.newaxis]
    assert model.score(few, column) == model.score(few, y[:30])
    with pytest.raises(WenetError, match="30 sequences but 7 targets; there must be one for each"):
        model.score(few, y[:7])
    with pytest.raises(WenetError, match="30 sequences but 0 targets"):
        model.score(few, [])
    with pytest.raises(WenetError, match=r"y has the shape \[30, 2\] and predictions \[30\]"):
        model.score(few, np.stack([y[:30]] * 2, 1))
    again = SequenceClassifier(**SHORT, options=OPTIONS).fit(x, y[:, np.newaxis])
    assert (again.predict(few) == model.predict(few)).all()
    with pytest.raises(WenetError, match="all labels are 'up'; a classification needs two classes"):
        model.fit(x, ["up"] * len(x))
    shares = model.predict_proba(x)
    assert (model.classes_[shares.argmax(1)] == model.predict(x)).all()


@pytest.mark.parametrize("classes", [(7, -3), (2.0, 1.0), (b"b", b"a"), (2**60, 2**60 + 1)])
def test_labels_of_any_kind(classes):
    """What is predicted has their type, and is right more often than the other class would be."""
    x, y = sums()
    labels = np.array(classes)[(y == "up").astype(int)]
    model = SequenceClassifier(**SHORT, options=OPTIONS).fit(x, labels)
    found = model.predict(x)
    assert found.dtype == labels.dtype and set(found.tolist()) == set(classes)
    assert (found == labels).mean() == model.score(x, labels) > 0.75
    assert model.classes_.tolist() == sorted(classes)


def test_frames_whose_columns_are_steps():
    """In another order they are other sequences; other steps may have other names."""
    x, y = sums(60)
    values, names = x[:, :, 0], [f"t{step}" for step in range(x.shape[1])]
    model = SequenceClassifier(**SHORT, options=OPTIONS).fit(Frame(values, names), y)
    found = model.predict(Frame(values, names))
    for call in (model.predict, model.predict_proba, lambda given: model.score(given, y)):
        with pytest.raises(WenetError, match="x: column 1 is 't7', and 't0' in fit; put columns in that order"):
            call(Frame(values[:, ::-1], names[::-1]))
    later = Frame(values, [name.replace("t", "u") for name in names])
    assert (model.predict(later) == found).all() and (model.predict(values) == found).all()


@pytest.mark.parametrize("labels", [("up", "down", "rare"), (3, 4, 7)])
def test_a_label_that_is_too_rare_is_named(labels):
    x, y = sums(60)
    y = np.where(y == "up", *labels[:2]).astype(object)
    y[0] = labels[2]
    with pytest.raises(WenetError, match=f"too few sequences with the label '{labels[2]}', 1"):
        SequenceClassifier(**SHORT, options=OPTIONS).fit(x, y.astype(type(labels[2])))


def test_a_regressor():
    x, _ = sums()
    model = SequenceRegressor(**SHORT, options=OPTIONS).fit(x, x[:, :, 0].sum(1))
    fresh, _ = sums(300, seed=2)
    wanted, found = fresh[:, :, 0].sum(1), model.predict(fresh)
    expected = 1 - ((wanted - found) ** 2).mean() / wanted.var()
    assert model.score(fresh, wanted) == pytest.approx(expected) and expected > 0.3
    with pytest.raises(WenetError, match="300 sequences but 30 targets"):
        model.score(fresh, wanted[:30])
    with pytest.raises(WenetError, match="this model predicts numbers, and so has no probabilities"):
        model.model_.predict_proba(fresh)
    turned = SequenceRegressor(**SHORT, options={**OPTIONS, "layout": "nft"}).fit(x.swapaxes(1, 2), x[:, :, 0].sum(1))
    assert (turned.predict(fresh.swapaxes(1, 2)) == found).all()


class Fixed(SequenceRegressor):
    """It predicts 1 and 2 by turns."""

    def predict(self, x):
        return np.resize([1.0, 2.0], len(x))


def test_scores_of_targets_that_do_not_vary():
    x = np.zeros((4, 3, 1))
    assert Fixed().score(x, np.full(4, 7.0)) == 0.0 and np.isnan(Fixed().score(x[:1], [1.0]))
    assert Fixed().score(x, Fixed().predict(x)) == 1.0 and Fixed().score(x[:2], [1.0, 2.0]) == 1.0
    assert Fixed().score(x, [[1.0], [2.0], [1.0], [2.0]]) == 1.0
    for y, message in (
        ([], "4 sequences but 0 targets"),
        ([1.0, 2.0, np.nan, 2.0], "y has a number that is missing or not finite"),
        (np.ones((4, 2)), r"y has the shape \[4, 2\] and predictions \[4, 1\]"),
    ):
        with pytest.raises(WenetError, match=message):
            Fixed().score(x, y)
    with pytest.raises(WenetError, match="a label such as 0.5 is no class; SequenceRegressor predicts numbers"):
        SequenceClassifier().fit(np.zeros((4, 3, 1)), [0.5, 1.0, 0.5, 1.0])


class Steady(Forecaster):
    """It repeats the last value."""

    def _fitted(self):
        return SimpleNamespace(repeats=[0], columns=("a",), predict=lambda known: known[-1:].repeat(self.horizon, 0))


def test_a_forecaster(tmp_path):
    model = Forecaster(12, 3, **SHORT, options=OPTIONS, folder=str(tmp_path / "run")).fit(waves())
    assert model.predict(waves()).shape == (3, 2) and model.score(waves()) > 0
    assert Steady(12, 3).score(waves()[:, 0].tolist()) == Steady(12, 3).score(waves()[:, :1]) == 0
    assert model.score(torch.from_numpy(waves())) == model.score(waves()) == model.score(waves()[np.newaxis])
    assert (tmp_path / "run" / "contest.json").exists() and model.found_.finished
    gap = waves()
    gap[-1, 1] = np.nan
    assert np.isfinite(model.score(gap))
    with pytest.raises(WenetError, match="x has a series of 3 steps; a score needs more than horizon=3"):
        model.score(waves()[:3])
    several = np.empty(2, dtype=object)
    several[:] = [waves()[:50], waves()[:70]]
    assert model.predict(several).shape == model.predict(list(several)).shape == (2, 3, 2)


def test_a_folder_is_for_one_fit(tmp_path):
    model = Forecaster(12, 3, **SHORT, options={**OPTIONS, "contest_epochs": 1.0}, folder=str(tmp_path / "run"))
    assert model.fit(waves()).found_.finished
    with pytest.raises(WenetError, match="run is not empty, and one folder is for one fit; set folder to a new place"):
        model.fit(waves())
    assert model.found_.finished
    assert not hasattr(model.set_params(folder=None).fit(waves()), "found_")


def test_what_cannot_be_fitted_is_said_in_words():
    x, y = sums(60)
    for model, target, message in (
        (SequenceClassifier(), None, "there is no y"),
        (SequenceClassifier(), 3, "there is no y"),
        (SequenceClassifier(options=["a"]), y, "options must be a dictionary of settings, not list"),
        (SequenceClassifier(), np.where(np.arange(60) == 3, np.nan, np.arange(60) % 2), "a label is missing"),
        (SequenceClassifier(), np.array([1, "a"] * 30, dtype=object), "labels are of several types"),
        (SequenceRegressor(), None, "there is no y"),
        (SequenceRegressor(), y, "SequenceClassifier takes labels"),
        (SequenceClassifier(options={"task": "regress"}), y, "options cannot name 'task'"),
    ):
        with pytest.raises(WenetError, match=message):
            model.fit(x, target)


def test_within_scikit_learn():
    pytest.importorskip("sklearn")
    from sklearn.base import clone, is_classifier, is_regressor
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = sums(120)
    model = SequenceClassifier(**SHORT, options=OPTIONS)
    assert is_classifier(model) and is_regressor(SequenceRegressor()) and not is_classifier(Forecaster())
    copied = clone(model)
    assert copied is not model and copied.get_params() == model.get_params()
    scores = cross_val_score(model, x, y, cv=2)
    assert scores.shape == (2,) and np.isfinite(scores).all() and not hasattr(model, "model_")
    piped = make_pipeline(StandardScaler(), clone(model)).fit(x[:, :, 0], y)
    assert piped.predict(x[:, :, 0]).shape == (120,)
    search = GridSearchCV(model, {"parameters": np.array([250, 300])}, cv=2, refit=False).fit(x, y)
    assert set(search.cv_results_["param_parameters"]) == {250, 300}
