"""Standalone training of many cells at once."""

import json
import signal

import pytest
import torch

from wenet import WenetError, random_genotypes
from wenet.config import resolve_config
from wenet.console import Console
from wenet.data import load_corpus
from wenet.independent import IndependentTraining, TrainingResult, Workplace
from wenet.interrupt import Interrupt, Stopped
from wenet_kernels import backends

from .helpers import write_text

SETTINGS = {
    "hidden": 8, "nodes": 3, "data_batch": 4, "eval_batch": 2, "bptt": 6, "backend": "reference", "device": "cpu",
    "dropout_x": 0.2, "dropout_output": 0.2, "lr": 1e-2,
}  # fmt: skip
CELLS = random_genotypes(4, 3, 0)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def train(text, tmp_path):
    """A training of four cells; `name` is of its folder, whatever else is given overrides a setting."""

    def prepare(name="training", windows=30, cells=CELLS, checkpoint_every=60.0, shared_embedding=False, **settings):
        config = resolve_config("quick", {**SETTINGS, **settings, "dataset": str(text)})
        work = Workplace(config, load_corpus(str(text)), tmp_path, Console(silent=True), checkpoint_every, Interrupt())
        return IndependentTraining(work, tmp_path / name, cells, windows, 7, "test", shared_embedding)

    return prepare


def found(result: TrainingResult) -> list[dict]:
    return [outcome.to_dict() for outcome in result.outcomes]


@pytest.mark.parametrize("shared", [False, True])
def test_every_network_learns(train, shared):
    result = train(windows=300, shared_embedding=shared).run()
    assert result.network_windows == 4 * 300
    for outcome in result.outcomes:
        assert outcome.diverged_at is None
        assert outcome.perplexity < 16  # of 21 words


def test_records_and_result_are_on_disk(train, tmp_path):
    result = train().run()
    records = [json.loads(line) for line in (tmp_path / "training" / "train.jsonl").read_text().splitlines()]
    assert records[-1]["windows"] == 30
    assert all(len(record["train_loss"]) == 4 for record in records)
    assert records[-1]["train_loss"] == [outcome.train_loss for outcome in result.outcomes]
    assert not list((tmp_path / "training" / "checkpoint").iterdir())
    assert train().run() == result


def test_networks_do_not_touch_each_other(train):
    """Another last cell changes nothing of the first three."""
    whole = train("a").run()
    other = train("b", cells=[*CELLS[:3], random_genotypes(5, 3, 9)[4]]).run()
    assert found(whole)[:3] == found(other)[:3]
    assert found(whole)[3] != found(other)[3]


def blow_up(training, network, window, value):
    """The weights of one network become `value` after a window."""
    step = training._step

    def stepping(tokens, targets):
        result = step(tokens, targets)
        if training.state.windows == window:
            with torch.no_grad():
                training.model.rnn.weight_nodes[network] = value
        return result

    training._step = stepping


@pytest.mark.parametrize("backend", [name for name, status in backends().items() if status == "ready"])
@pytest.mark.parametrize("value", [1e12, 1e14])
def test_one_that_blows_up_is_frozen_and_the_rest_unharmed(train, backend, value):
    """relu and identity multiply such weights up to infinity within a few nodes; the others must not feel it."""
    cells = [CELLS[0], random_cell("identity0 identity1 identity2"), *CELLS[2:]]
    whole = train("whole", backend=backend, cells=cells, form="plain").run()
    training = train("blown", backend=backend, cells=cells, form="plain")
    blow_up(training, 1, 11, value)
    blown = training.run()
    assert blown.outcomes[1].diverged_at == 12
    assert blown.outcomes[1].perplexity == float("inf")
    assert found(blown)[1]["perplexity"] is None
    for k in (0, 2, 3):
        assert found(blown)[k] == found(whole)[k]
    assert all(bool(parameter.isfinite().all()) for parameter in training.model.parameters())
    assert bool((training.model.rnn.weight_nodes[1] == 0).all())


def random_cell(text):
    from wenet import Genotype

    return Genotype.from_text(text)


def test_weights_too_large_to_multiply(train):
    """An update that throws every weight away freezes all networks, and the training ends with that in its result."""
    result = train(lr=1e30, weight_decay=0.0).run()
    assert [outcome.diverged_at for outcome in result.outcomes] == [0] * 4


def test_diverging_beside_a_shared_embedding(train):
    training = train(shared_embedding=True, form="plain", cells=[random_cell("identity0 identity1 identity2"), *CELLS])
    blow_up(training, 0, 11, 1e14)
    result = training.run()
    assert result.outcomes[0].diverged_at == 12
    assert all(outcome.perplexity < 30 for outcome in result.outcomes[1:])


@pytest.mark.parametrize("stop_at", [1, 17, 29])
def test_stopped_and_resumed_to_the_last_bit(train, stop_at):
    whole = train("whole").run()
    training = train("stopped", checkpoint_every=0.0)
    step = training._step

    def stepping(tokens, targets):
        if training.state.windows == stop_at:
            training.work.interrupt.requested = signal.SIGTERM
        return step(tokens, targets)

    training._step = stepping
    with pytest.raises(Stopped):
        training.run()
    assert found(train("stopped", checkpoint_every=0.0).run()) == found(whole)


def test_stopped_after_a_divergence(train):
    """What is frozen stays frozen."""
    training = train("stopped")
    blow_up(training, 1, 5, float("inf"))
    training.work.interrupt.requested = None
    step = training._step

    def stepping(tokens, targets):
        if training.state.windows == 20:
            training.work.interrupt.requested = signal.SIGTERM
        return step(tokens, targets)

    training._step = stepping
    with pytest.raises(Stopped):
        training.run()
    result = train("stopped").run()
    assert result.outcomes[1].diverged_at == 6
    assert result.outcomes[1].train_loss is None


def test_another_training_in_the_folder(train):
    train(windows=2).run()
    with pytest.raises(WenetError, match="begun with other settings"):
        train(windows=3).run()
