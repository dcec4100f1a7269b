"""Searches of the space `gated`: what is drawn, how programs train side by side, and a race to its loaded winner."""

import json
import math
import random
import signal
from types import SimpleNamespace

import pytest
import torch

import wenet
from wenet import WenetError
from wenet.cells import load_cell, load_program, read_cell
from wenet.cells.gated import random_mixed_programs
from wenet.cells.instances import program_of
from wenet.cells.published import PUBLISHED
from wenet.cli.rank import main as rank_main
from wenet.cli.search import main as search_main
from wenet.data import load_corpus
from wenet.nn import CellRNN, LanguageModel, StandaloneCellRNN, StandaloneLanguageModels
from wenet.run import Interrupt, Session, Surroundings
from wenet.searching.contest import table
from wenet.searching.contest.contestants import Contestant
from wenet.searching.race.rates import TRIED, family_of, typical
from wenet.searching.settings import resolve_config
from wenet.searching.shapes import by_shape
from wenet.searching.space import draw_pool, identity, space_of
from wenet.tasks import LanguageModelling, task_of
from wenet.training import Origin, Plan, parameter_count, train_standalone
from wenet_kernels import Program

from .helpers import results, without

GATED = [
    *("--preset", "race", "--space", "gated", "--level", "words", "--parameters", "900", "--blocks", "2-4"),
    *("--pool", "8", "--batch", "8", "--keep", "2", "--rungs", "2", "--epochs-per-round", "0.4", "--no-known"),
    *("--data-batch", "4", "--eval-batch", "2", "--bptt", "6", "--rates", "0.01,0.03"),
    *("--contest-epochs", "0.5", "--contest-seeds", "2", "--quiet"),
]
ALONE = [*without(GATED, "--contest-epochs", "--contest-seeds"), "--no-contest"]
NAMED = [load_program(name) for name in ("gru", "fastgrnn", "indrnn", "darts-v1")]
PROGRAMS = [*random_mixed_programs(5, (1,), range(2, 7), seed=4, known=False), *NAMED]
PLAIN = dict.fromkeys(("dropout_embedding", "dropout_x", "dropout_h", "dropout_output"), 0.0)


@pytest.fixture(scope="module")
def raced(text, tmp_path_factory):
    """The folder of a finished race with its contest."""
    folder = tmp_path_factory.mktemp("race") / "run"
    assert search_main([str(text), *GATED, "--out", str(folder)]) == 0
    return folder


def gated_config(**settings):
    return resolve_config(
        "race", {"space": "gated", "device": "cpu", "backend": "cpu", "precision": "fp32", **settings}
    )


def test_known_cells_are_in_the_pool():
    """LSTM and GRU first, and last the published cells, so that a race of fewer cells leaves them out."""
    cells = draw_pool(gated_config(pool=20, blocks="2-6"))
    assert [str(cell) for cell in cells[:2]] == [str(load_program("lstm")), str(load_program("gru"))]
    assert load_program(wenet.genotypes.DARTS_V2) in cells[-len(PUBLISHED) :]
    rest = cells[2 : -len(PUBLISHED)]
    assert [cell.states for cell in rest] == [1 + place % 2 for place in range(len(rest))]
    assert all(2 <= len(cell.products) <= 6 for cell in rest)
    assert len({identity(cell) for cell in cells}) == 20


def test_known_cells_are_left_out_and_numbers_kept_to():
    cells = draw_pool(gated_config(pool=30, blocks="3-4", known=False))
    known = {identity(load_program(name)) for name in ("lstm", "gru")}
    assert not known & {identity(cell) for cell in cells}
    assert {len(cell.products) for cell in cells} == {3, 4} and {cell.states for cell in cells} == {1, 2}
    assert {cell.states for cell in draw_pool(gated_config(pool=12, states=1))} == {1}
    assert draw_pool(gated_config(pool=12)) != draw_pool(gated_config(pool=12, pool_seed=7))


def test_the_two_spaces_by_turns():
    config = gated_config(space="both", pool=20, nodes="1-3")
    cells = draw_pool(config)
    assert [str(cell) for cell in cells[:2]] == [str(load_program("lstm")), str(load_program("gru"))]
    dag = draw_pool(resolve_config("race", {"pool": 20, "nodes": "1-3"}))
    of_dag = {identity(program_of(cell, bias=True)) for cell in dag}
    assert [identity(cell) in of_dag for cell in cells[2:]] == [False, True] * 9
    assert len({identity(cell) for cell in cells}) == 20
    largest = max(len(cell.instructions) for cell in cells)
    assert len(space_of(config).largest(config).instructions) == largest
    assert draw_pool(gated_config(space="both", pool=8, known=False))[:2] != cells[:2]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"blocks": "1-4"}, ["--blocks 1-4", "2 to 8"]),
        ({"blocks": "6-4"}, ["smaller first"]),
        ({"states": 3}, ["--states 3"]),
        ({"space": "gatd"}, ["gated"]),
    ],
)
def test_impossible_settings(settings, words):
    with pytest.raises(WenetError) as error:
        gated_config(**settings)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize("form", [str, lambda cell: str(cell) + " "])
def test_text_of_either_kind(form):
    for cell in (load_program("nas"), wenet.genotypes.DARTS_V2):
        assert read_cell(form(cell)) == cell == load_cell(form(cell))


def test_networks_are_what_their_cells_are():
    """Outputs, states and every derivative equal those of single layers, in double precision."""
    torch.manual_seed(1)
    layer = StandaloneCellRNN(5, 7, PROGRAMS).double()
    x = torch.randn(len(PROGRAMS), 4, 3, 5, dtype=torch.double)
    h0 = torch.randn(len(PROGRAMS), 3, 7, dtype=torch.double)
    output, last = layer(x, h0)
    (output.square().sum() + last.sum()).backward()
    for place, program in enumerate(PROGRAMS):
        single = CellRNN(5, 7, program).double()
        rows = layer._networks(layer.weights)[place]
        single.load_state_dict({**single.state_dict(), **{name: each.detach() for name, each in rows.items()}})
        one, state = single(x[place], h0[place : place + 1])
        (one.square().sum() + state.sum()).backward()
        torch.testing.assert_close(output[:, place], one, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(last[place], state[0], rtol=1e-12, atol=1e-12)
        for name, gradient in layer._networks(layer.weights.grad)[place].items():
            torch.testing.assert_close(gradient, getattr(single, name).grad, rtol=1e-11, atol=1e-11)
            assert gradient.abs().max() > 0


def test_two_states_and_a_shared_input():
    torch.manual_seed(1)
    cells = random_mixed_programs(4, (2,), range(2, 6), seed=2)
    layer = StandaloneCellRNN(5, 7, cells)
    x = torch.randn(6, 3, 5)
    shared = layer(x)
    assert shared[1].shape == (4, 3, 14)
    for one, other in zip(shared, layer(x.expand(4, -1, -1, -1)), strict=True):
        torch.testing.assert_close(one, other)
    first, state = layer(x[:4])
    second, end = layer(x[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), shared[0])
    torch.testing.assert_close(end, shared[1])


def test_first_weights_depend_on_the_place_alone():
    def first(programs, among=None):
        torch.manual_seed(3)
        layer = StandaloneCellRNN(5, 7, programs, among=among)
        return [torch.cat([each.flatten() for each in own.values()]) for own in layer._networks(layer.weights)]

    whole, part = first(PROGRAMS), first(PROGRAMS[5:], among=(len(PROGRAMS), slice(5, len(PROGRAMS))))
    for one, other in zip(whole[5:], part, strict=True):
        assert torch.equal(one, other) and one.std() > 0
    layer = StandaloneCellRNN(5, 7, [load_program("fastgrnn")])
    assert layer._networks(layer.weights)[0]["scalars"].tolist() == [1, -4]


@pytest.mark.parametrize("states", [1, 2])
def test_a_model_of_one_is_what_it_is_among_others(states):
    """A language model around a cell hands on all states as one tensor, as many models side by side do."""
    cells = random_mixed_programs(3, (states,), range(2, 5), seed=5)
    torch.manual_seed(0)
    many = StandaloneLanguageModels(11, StandaloneCellRNN(6, 6, cells), init_range=0.5)
    tokens, targets = torch.randint(11, (5, 2)), torch.randint(11, (5, 2))
    _, losses, state = many.loss(tokens, targets)
    _, again, _ = many.loss(tokens, targets, state)
    single = LanguageModel(11, CellRNN(6, 6, cells[1]), init_range=0.5)
    rows = {f"rnn.{name}": each for name, each in many.rnn._networks(many.rnn.weights)[1].items()}
    rows |= {"embedding.weight": many.embedding[1], "decoder_bias": many.decoder_bias[1]}
    single.load_state_dict({**single.state_dict(), **rows})
    _, loss, own = single.loss(tokens, targets)
    assert own.shape == (1, 2, states * 6)
    torch.testing.assert_close(loss, losses[1])
    torch.testing.assert_close(own[0], state[1])
    torch.testing.assert_close(single.loss(tokens, targets, own)[1], again[1])
    assert abs(float(again[1] - losses[1])) > 1e-4


def test_shapes_hold_what_trains_at_once(text):
    config = gated_config(parameters=3000, level="words", dataset=str(text), pool=16)
    task, data = task_of(config), load_corpus(str(text))
    cells = [*draw_pool(config), "lstm", wenet.genotypes.DARTS_V2]
    groups = by_shape(cells, config, task, data)
    assert sorted(place for group in groups for place in group.places) == list(range(len(cells)))
    assert len({group.name for group in groups}) == len(groups) < len(cells)
    for group in groups:
        assert group.architectures == [cells[place] for place in group.places]
        for cell in group.architectures:
            own = parameter_count(group.config, cell, task, data)
            assert own >= 3000 if cell == "lstm" else 0.7 * 3000 < own <= 3000
            if isinstance(cell, Program):
                assert group.kind == f"{cell.states}-states"


def test_rates_are_tried_on_typical_cells():
    cells = draw_pool(gated_config(pool=30))
    found = typical("1-states", cells)
    assert len(found) == TRIED and all(cell.states == 1 for cell in found)
    assert not {cells[3], cells[2]} & set(found)  # published cells with many products
    dag = draw_pool(resolve_config("race", {"pool": 30}))
    assert {family_of(cell) for cell in dag} == {"dag"} and {family_of(cell) for cell in found} == {"1-states"}
    assert typical("2-nodes", dag) == [next(cell for cell in dag if cell.nodes == 2)]
    narrow = draw_pool(resolve_config("race", {"pool": 30, "nodes": "2-3"}))  # so few numbers have two cells each
    assert typical("2-nodes", narrow) == [cell for cell in narrow if cell.nodes == 2][:TRIED]


def test_mutations_are_new_cells():
    config = gated_config(pool=4, known=False)
    generator = random.Random(1)
    cell = draw_pool(config)[0]
    assert identity(space_of(config).mutated(cell, generator, config)) != identity(cell)


def train(text, folder, cells, windows, **plan):
    given = {"hidden": 8, "data_batch": 4, "eval_batch": 2, "bptt": 6, "parameters": None, "level": "words"}
    config = gated_config(dataset=str(text), **given, **PLAIN)
    session = Session(config, None, LanguageModelling(), load_corpus(str(text)), None, Interrupt(), Surroundings())
    return train_standalone(session, folder, Plan(cells, windows, 7, rates=[0.02] * len(cells), **plan), "test")


def test_networks_learn_and_do_not_touch_each_other(text, tmp_path):
    whole = train(text, tmp_path / "a", PROGRAMS, 200)
    other = train(text, tmp_path / "b", [*PROGRAMS[:3], load_program("rhn"), *PROGRAMS[4:]], 200)
    values = [outcome.value for outcome in whole.outcomes]
    assert all(value < 16 for value in values) and len(set(values)) == len(values)  # of 21 words
    kept = [place for place in range(len(PROGRAMS)) if place != 3]
    assert [other.outcomes[place].value for place in kept] == [values[place] for place in kept]
    assert other.outcomes[3].value != values[3]


def test_a_training_goes_on_among_others(text, tmp_path):
    """Networks that two trainings left, beside smaller and larger cells, go on as if alone."""
    chosen = NAMED[::-1][:3]
    train(text, tmp_path / "one", [load_program("rhn"), chosen[0]], 20, leave=True)
    train(text, tmp_path / "two", [chosen[1], PROGRAMS[0], chosen[2]], 20, leave=True)
    origins = [Origin(tmp_path / "one", 1), Origin(tmp_path / "two", 0), Origin(tmp_path / "two", 2)]
    found = train(text, tmp_path / "both", chosen, 40, origins=origins)
    for place, origin in enumerate(origins):
        alone = train(text, tmp_path / f"alone-{place}", [chosen[place]], 40, origins=[origin])
        assert alone.outcomes[0].value == found.outcomes[place].value
    assert found.outcomes[0].value < train(text, tmp_path / "new", chosen, 20).outcomes[0].value


def test_one_that_blows_up_is_frozen(text, tmp_path):
    """A cell that squares its state reaches infinity; the others must not feel it."""
    wild = Program.from_text("h | linear(x, h) * linear(h) + h * h * h")
    others = [PROGRAMS[0], PROGRAMS[1]]
    found = train(text, tmp_path / "wild", [others[0], wild, others[1]], 120)
    calm = train(text, tmp_path / "calm", [others[0], PROGRAMS[2], others[1]], 120)
    assert math.isinf(found.outcomes[1].value)
    assert [found.outcomes[place].value for place in (0, 2)] == [calm.outcomes[place].value for place in (0, 2)]


def test_a_race_of_programs(raced):
    records = [json.loads(line) for line in (raced / "search.jsonl").read_text().splitlines()]
    assert [len(record["networks"]) for record in records] == [
        8,
        records[1]["networks"] and len(records[1]["networks"]),
    ]
    first, last = ({n["genotype"]: n["held_out_loss"] for n in record["networks"]} for record in records)
    assert all(last[cell] < first[cell] for cell in last)
    best = json.loads((raced / "best.json").read_text())
    finalists = [network["genotype"] for network in records[-1]["networks"][:4]]
    assert best["genotype"] == {"program": best["text"]} and best["text"] in finalists
    assert load_cell(str(raced)) == load_program(raced) == read_cell(best["text"])
    with pytest.raises(WenetError, match="holds a program"):
        wenet.genotypes.load_genotype(raced)


def test_contestants_of_a_race_of_programs(raced):
    contest = json.loads((raced / "contest.json").read_text())
    rows = {row["name"]: row for row in contest["contestants"]}
    assert set(rows) == {"winner", "runner-up", "finalist 3", "median cell", "darts-v2", "lstm", "gru"}
    assert "|" in rows["winner"]["genotype"] and rows["darts-v2"]["genotype"] == str(wenet.genotypes.DARTS_V2)
    for name, row in rows.items():
        assert len(row["test"]) == 2 and row["microseconds"] > 0
        assert row["parameters"] >= 900 if name in ("lstm", "gru") else row["parameters"] <= 900


def test_the_trained_winner_is_loaded(raced, text):
    found = wenet.load(raced)
    row = next(row for row in found.contest["contestants"] if row["name"] == "winner")
    assert isinstance(found.model.rnn, CellRNN) and found.model.rnn.hidden_size == row["hidden"]
    assert isinstance(found.layer(3, 4), CellRNN) and found.layer(3, 4).program == found.genotype
    task, data = LanguageModelling(), load_corpus(str(text))
    reached = float(task.measure(found.model, task.streams(data, "test", 2), 6).metric)
    assert reached == pytest.approx(row["test"][row["valid"].index(min(row["valid"]))], rel=1e-4)
    assert str(found.genotype) in str(found)


@pytest.mark.parametrize("moment", [7, 100])
def test_a_stopped_race_goes_on(raced, text, tmp_path, stop_at, moment, monkeypatch):
    again = tmp_path / "again"
    stop_at(moment)
    assert search_main([str(text), *GATED, "--out", str(again)]) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert search_main(["--resume", str(again), "--quiet"]) == 0
    assert results(again) == results(raced)
    ours, theirs = (json.loads((run / "contest.json").read_text())["contestants"] for run in (again, raced))
    measured = ("name", "genotype", "rate", "valid", "test")
    assert [[row[key] for key in measured] for row in ours] == [[row[key] for key in measured] for row in theirs]


def test_mutations_fill_the_places(text, tmp_path):
    flags = [*ALONE, "--pool", "12", "--batch", "6", "--mutate"]
    assert search_main([str(text), *flags, "--out", str(tmp_path / "run")]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "search.jsonl").read_text().splitlines()]
    cells = [n["genotype"] for record in records if record["round"] == 1 for n in record["networks"]]
    assert len(set(cells)) == 12


def test_halving_audit_and_ranking(text, tmp_path):
    run = tmp_path / "run"
    flags = [*without(ALONE, "--rungs", "--rates"), "--strategy", "random", "--pool", "6", "--batch", "3"]
    audit = ["--audit", "4", "--audit-epochs", "0.3"]
    assert search_main([str(text), *flags, *audit, "--out", str(run)]) == 0
    assert len(json.loads((run / "audit.json").read_text())["networks"]) == 4
    rank = [str(run), "gru-program", "lstm", "darts-v2", "--out", str(tmp_path / "rank"), "--seeds", "2", "--quiet"]
    assert rank_main(rank) == 0
    ranking = json.loads((tmp_path / "rank" / "ranking.json").read_text())
    assert {cell["name"] for cell in ranking["cells"]} == {str(run), "gru-program", "lstm", "darts-v2"}


def test_times_of_contestants_do_not_depend_on_the_moment(monkeypatch, text):
    """A machine that is busy for a while is so for all of them; and PyTorch's layers run as PyTorch runs them."""
    config = gated_config(dataset=str(text), level="words", hidden=8)
    session = SimpleNamespace(task=task_of(config), data=task_of(config).load(config, None), device=torch.device("cpu"))
    calls = []

    def seconds(layer, x):
        calls.append(type(layer).__name__)
        return (9.0 if len(calls) < 12 else 1.0) * x.shape[0] * 1e-6

    monkeypatch.setattr(table, "_seconds", seconds)
    entrants = [Contestant(name, name, config) for name in ("lstm", "gru")]
    entrants.append(Contestant("winner", load_program("gru"), config))
    assert table._microseconds_per_step(session, entrants) == pytest.approx([1, 1, 1])
    assert calls[:3] == ["LSTM", "GRU", "StandaloneCellRNN"]
    monkeypatch.undo()
    measured = table._microseconds_per_step(session, entrants)
    assert all(0 < each < 1000 for each in measured)
