"""Standalone training of many cells at once."""

import json
import math
import signal
from types import MappingProxyType

import numpy as np
import pytest
import torch

from wenet import Genotype, WenetError, random_genotypes
from wenet.data import load_corpus
from wenet.run import Interrupt, Session, Stopped, Surroundings
from wenet.searching.settings import resolve_config
from wenet.tasks import LanguageModelling
from wenet.training import Origin, Plan, StandaloneResult, train_standalone
from wenet.training.standalone import StandaloneTraining
from wenet_kernels import backends

from .helpers import REGULARISED

SETTINGS = {
    "hidden": 8, "nodes": 3, "data_batch": 4, "eval_batch": 2, "bptt": 6, "backend": "auto", "device": "cpu",
    "precision": "fp32", **REGULARISED, "norm": "none",
}  # fmt: skip
CELLS = random_genotypes(4, 3, 0)
# Triton's interpreter takes minutes for a training.
QUICK_BACKENDS = [
    name for name, status in backends().items() if status == "ready" and (name != "triton" or torch.cuda.is_available())
]
NOTHING = MappingProxyType({})
PLAIN = dict.fromkeys(("dropout_embedding", "dropout_x", "dropout_h", "dropout_output"), 0.0)
CHAIN = Genotype.from_text("identity0 identity1 identity2")


@pytest.fixture
def train(text, tmp_path):
    """Trains four cells; `name` is of the folder, whatever else is given overrides a setting."""

    def training(name="training", windows=30, cells=CELLS, checkpoint_every=60.0, plan=NOTHING, **settings):
        config = resolve_config("quick", {**SETTINGS, **settings, "dataset": str(text)})
        data, surroundings = load_corpus(str(text)), Surroundings(checkpoint_every=checkpoint_every)
        session = Session(config, None, LanguageModelling(), data, None, Interrupt(), surroundings)
        return train_standalone(session, tmp_path / name, Plan(cells, windows, 7, **plan), "test")

    return training


@pytest.fixture
def before_step(monkeypatch):
    """Has a function look at the training before each of its steps."""
    real = StandaloneTraining.step

    def intrude(action):
        def step(training, *operands):
            action(training)
            return real(training, *operands)

        monkeypatch.setattr(StandaloneTraining, "step", step)

    return intrude


def blow_up(network, window, value):
    """The weights of one network become `value` before a window."""

    def action(training):
        if training.progress.windows == window:
            with torch.no_grad():
                training.model.rnn.weight_nodes[network] = value

    return action


def stop(window):
    """A signal comes in a window."""

    def action(training):
        if training.progress.windows == window:
            training.session.interrupt.requested = signal.SIGTERM

    return action


def found(result: StandaloneResult) -> list[dict]:
    return [outcome.to_dict(LanguageModelling.metric) for outcome in result.outcomes]


def test_every_network_learns(train):
    result = train(windows=300)
    assert result.network_windows == 4 * 300
    for outcome in result.outcomes:
        assert outcome.diverged_at is None
        assert outcome.value < 16  # of 21 words


def test_records_and_result_are_on_disk(train, tmp_path):
    result = train()
    records = [json.loads(line) for line in (tmp_path / "training" / "train.jsonl").read_text().splitlines()]
    assert records[-1]["windows"] == 30
    assert all(len(record["train_loss"]) == 4 for record in records)
    assert records[-1]["train_loss"] == [outcome.train_loss for outcome in result.outcomes]
    assert not list((tmp_path / "training" / "checkpoint").iterdir())
    assert train() == result


def test_a_rate_of_its_own(train):
    same = found(train("same", lr=1e-2, standalone_lr=None))
    assert found(train("own", lr=0.5, standalone_lr=1e-2)) == same
    assert found(train("other", lr=1e-2, standalone_lr=2e-2)) != same


def test_networks_do_not_touch_each_other(train):
    """Another last cell changes nothing of the first three."""
    whole = train("a")
    other = train("b", cells=[*CELLS[:3], random_genotypes(5, 3, 9)[4]])
    assert found(whole)[:3] == found(other)[:3]
    assert found(whole)[3] != found(other)[3]


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("value", [1e12, 1e14])
def test_one_that_blows_up_is_frozen_and_the_rest_unharmed(train, before_step, backend, value):
    """relu and identity multiply such weights up to infinity within a few nodes; the others must not feel it."""
    cells = [CELLS[0], CHAIN, *CELLS[2:]]
    whole = train("whole", backend=backend, cells=cells, form="plain")
    before_step(blow_up(1, 11, value))
    blown = train("blown", backend=backend, cells=cells, form="plain")
    assert blown.outcomes[1].diverged_at == 11
    assert blown.outcomes[1].value == float("inf")
    assert found(blown)[1]["perplexity"] is None
    for k in (0, 2, 3):
        assert found(blown)[k] == found(whole)[k]


def test_what_is_frozen_is_zero(train, before_step):
    model = []

    def action(training):
        blow_up(1, 5, 1e14)(training)
        model[:] = [training.model]

    before_step(action)
    train(form="plain", cells=[CELLS[0], CHAIN])
    assert all(bool(parameter.isfinite().all()) for parameter in model[0].parameters())
    assert all(bool((parameter[1] == 0).all()) for parameter in model[0].parameters())


def test_one_that_overflows_in_validation_alone(train, before_step):
    """The others are validated to the end, and to the same bit. In the plain form a state of zero, in which validation
    begins, stays zero unless a node is a sigmoid."""
    cells = [CELLS[0], Genotype.from_text("sigmoid0 identity1 identity2"), *CELLS[2:]]
    whole = train("whole", cells=cells, form="plain")

    def action(training):
        if training.progress.windows == 29:  # no step comes after this one
            end = training._checkpoint_if_due
            training._checkpoint_if_due = lambda: (blow_up(1, 30, 1e14)(training), end())

    before_step(action)
    blown = train("blown", cells=cells, form="plain")
    assert (blown.outcomes[1].diverged_at, blown.outcomes[1].value) == (None, float("inf"))
    for k in (0, 2, 3):
        assert found(blown)[k] == found(whole)[k]


def test_weights_too_large_to_multiply(train):
    """An update that throws every weight away freezes all networks, and the training ends with that in its result."""
    result = train(standalone_lr=1e30, weight_decay=0.0)
    assert [outcome.diverged_at for outcome in result.outcomes] == [0] * 4


@pytest.mark.parametrize(("stop_at", "settings"), [(1, {}), (17, {}), (29, {}), (17, {"sampled_words": 2, "bptt": 2})])
def test_stopped_and_resumed_to_the_last_bit(train, before_step, stop_at, settings):
    whole = train("whole", **settings)
    before_step(stop(stop_at))
    with pytest.raises(Stopped):
        train("stopped", checkpoint_every=0.0, **settings)
    assert found(train("stopped", checkpoint_every=0.0, **settings)) == found(whole)


def test_a_sampled_softmax_trains_otherwise_and_validates_on_all_words(train):
    """Words that a window lacks are drawn; windows of two steps and four rows lack most."""
    full, sampled = train("full", bptt=2), train("sampled", bptt=2, sampled_words=2)
    assert found(full) != found(sampled)
    for one, other in zip(full.outcomes, sampled.outcomes, strict=True):
        assert other.value == pytest.approx(one.value, rel=0.2)


def test_stopped_after_a_divergence(train, before_step):
    """What is frozen stays frozen."""

    def action(training):
        blow_up(1, 5, float("inf"))(training)
        stop(20)(training)

    before_step(action)
    with pytest.raises(Stopped):
        train("stopped")
    result = train("stopped")
    assert result.outcomes[1].diverged_at == 5
    assert result.outcomes[1].train_loss is None


def test_another_training_in_the_folder(train):
    train(windows=2)
    with pytest.raises(WenetError, match="begun with other settings"):
        train(windows=3)


def test_networks_have_rates_of_their_own(train):
    rates = [1e-2, 5e-3, 2e-3, 5e-3]
    own = train("own", windows=60, plan={"rates": rates}, **PLAIN)
    for network, rate in enumerate(rates):
        alike = train(f"{rate}", windows=60, plan={"rates": [rate] * 4}, **PLAIN)
        assert own.outcomes[network].value == pytest.approx(alike.outcomes[network].value, rel=1e-4)
    assert len({outcome.value for outcome in own.outcomes}) == 4
    usual = train("usual", windows=60, **PLAIN)
    assert own.outcomes[0] == usual.outcomes[0]  # the largest rate is the optimizer's


def test_networks_have_weight_decays_of_their_own(train):
    decays = [0.0, 0.01, 0.1, 0.01]
    own = train("own", windows=60, plan={"weight_decays": decays}, **PLAIN)
    for network, decay in enumerate(decays):
        alike = train(f"{decay}", windows=60, **{**PLAIN, "weight_decay": decay})
        assert own.outcomes[network].value == pytest.approx(alike.outcomes[network].value, rel=1e-4)
    assert len({outcome.value for outcome in own.outcomes}) == 4


def test_rates_fall_to_nothing(train, before_step):
    seen = []
    before_step(lambda training: seen.append(training.optimizer.param_groups[0]["lr"]))
    train(windows=10, plan={"decay": True})
    assert seen[1:] == pytest.approx([1e-2 * (1 - window / 10) for window in range(9)])  # as the step before set it


def test_rates_fall_over_trainings_that_go_on(train, tmp_path, before_step):
    """Two parts of a schedule are the whole of it, to the last bit."""
    seen = []
    before_step(lambda training: seen.append(training.optimizer.param_groups[0]["lr"]))
    falling = {"decay": True, "average": True}
    whole = train("whole", windows=40, plan=falling, **PLAIN)
    rates, seen[:] = list(seen), []
    train("first", windows=25, plan={**falling, "schedule": 40, "leave": True}, **PLAIN)
    origins = [Origin(tmp_path / "first", place) for place in range(len(CELLS))]
    rest = train("rest", windows=40, plan={**falling, "schedule": 40, "origins": origins}, **PLAIN)
    assert [outcome.value for outcome in rest.outcomes] == [outcome.value for outcome in whole.outcomes]
    assert seen[1:25] == rates[1:25] and seen[26:] == rates[26:]  # as the step before set it
    constant = train("constant", windows=40, plan={"average": True}, **PLAIN)
    assert all(one.value != other.value for one, other in zip(constant.outcomes, whole.outcomes, strict=True))


def test_networks_go_on_from_other_trainings(train, tmp_path):
    """Some of them, in another order, do what they would have done in one go."""
    halves = {"first": CELLS[:2], "second": CELLS[2:]}
    for name, cells in halves.items():
        train(name, windows=25, cells=cells, plan={"leave": True}, **PLAIN)
    places = [("second", 1), ("first", 0)]
    cells = [halves[name][place] for name, place in places]
    origins = [Origin(tmp_path / name, place) for name, place in places]
    rest = train("rest", windows=40, cells=cells, plan={"origins": origins}, **PLAIN)
    for network, (name, place) in enumerate(places):
        whole = train(f"whole {name}", windows=40, cells=halves[name], **PLAIN)
        assert rest.outcomes[network].value == whole.outcomes[place].value < 25
    assert rest.network_windows == 2 * 15 and rest.held_out is None
    some = train("some", windows=40, cells=cells, plan={"origins": origins, "held_out": 2}, **PLAIN)
    assert np.shape(some.held_out) == (2, 2)
    assert some.outcomes[0].value == pytest.approx(math.exp(np.mean(some.held_out, 0)[0]))


def test_a_training_that_goes_on_is_resumed(train, tmp_path, before_step):
    train("first", windows=10, plan={"leave": True}, **PLAIN)
    plan = {"origins": [Origin(tmp_path / "first", 2), Origin(tmp_path / "first", 1)]}
    expected = train("expected", windows=30, cells=[CELLS[2], CELLS[1]], plan=plan, **PLAIN)
    before_step(stop(17))
    with pytest.raises(Stopped):
        train("stopped", windows=30, cells=[CELLS[2], CELLS[1]], plan=plan, **PLAIN)
    before_step(lambda training: None)
    assert found(train("stopped", windows=30, cells=[CELLS[2], CELLS[1]], plan=plan, **PLAIN)) == found(expected)
