import dataclasses
import json
import math
import signal
from itertools import pairwise

import pytest
import torch

from wenet import WenetError, random_genotypes, resume_search, search
from wenet.cells.published import load_genotype
from wenet.cli.search import main as search_main
from wenet.data import window, windows_per_pass
from wenet.nn.weighted import WeightedDagRNN
from wenet.run import Stopped, machine
from wenet.run.machine import resolve_machine
from wenet.searching import mixture
from wenet.searching.mixture import Mixture, SearchProgress, build_mixture, build_optimizer
from wenet.searching.settings import SearchConfig, resolve_config
from wenet.searching.space import draw_pool
from wenet.tasks import LanguageModelling
from wenet.tasks.language import perplexity
from wenet.training.architectures import build_standalone

from .helpers import REGULARISED, results, words
from .helpers import TINY as TINY_FLAGS

TINY = {
    "preset": "quick", "pool": 7, "batch": 3, "keep": 2, "hidden": 8, "nodes": 3, "data_batch": 4, "eval_batch": 2,
    "bptt": 6, "epochs_per_round": 0.6, "backend": "reference", **REGULARISED,
}  # fmt: skip


def test_windows_predict_every_token_once():
    stream = torch.arange(23 * 2).view(23, 2)
    pieces = [window(stream, 5, index) for index in range(windows_per_pass(stream, 5))]
    assert torch.equal(torch.cat([tokens for tokens, _ in pieces]), stream[:-1])
    assert torch.equal(torch.cat([targets for _, targets in pieces]), stream[1:])
    assert [len(tokens) for tokens, _ in pieces] == [5, 5, 5, 5, 2]


def test_perplexity_of_a_known_distribution():
    """A model whose output is always zero predicts by its bias alone."""
    config = resolve_config("quick", {"hidden": 4, "nodes": 1, "precision": "fp64"})
    model = build_mixture(config, random_genotypes(1, 1, 0), LanguageModelling(), words(3))
    probabilities = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    with torch.no_grad():
        model.embedding.weight.zero_()
        model.decoder_bias.copy_(probabilities.log())
    stream = torch.randint(3, (31, 2))
    expected = torch.exp(-probabilities[stream[1:]].log().mean())
    assert perplexity(model, stream, 7) == pytest.approx(float(expected), rel=1e-6)


def test_algorithm_2(text, tmp_path):
    """Every pool network competes once, seeds are the K largest weights, and the best seed of the end is returned."""
    result = search(str(text), out=tmp_path / "run", **TINY)
    *records, best = results(tmp_path / "run")
    pool = [str(genotype) for genotype in random_genotypes(7, 3, seed=1)]
    seeds: list[str] = []
    for number, record in enumerate(records):
        names = [network["genotype"] for network in record["networks"]]
        weights = [network["weight"] for network in record["networks"]]
        assert sorted(names) == sorted(pool[3 * number : 3 * number + 3] + seeds)
        assert weights == sorted(weights, reverse=True)
        assert sum(weights) == pytest.approx(1, abs=1e-5)
        assert record["uniform_weight"] == pytest.approx(1 / len(names))
        kept_before = {network["genotype"] for network in record["networks"] if network["rounds_kept"]}
        assert kept_before == set(seeds)
        seeds = names[:2]
    assert len(records) == 3
    assert str(result.genotype) == best["text"] == seeds[0]
    assert load_genotype(str(tmp_path / "run")) == result.genotype
    assert best["networks_searched"] == 7


def test_same_seed_same_result_other_seed_other_result(text, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        search(str(text), out=tmp_path / name, seed=seed, **TINY)
    assert results(tmp_path / "a") == results(tmp_path / "b")
    assert results(tmp_path / "a") != results(tmp_path / "c")


def test_leaves_the_callers_generator_alone(text, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    search(str(text), out=tmp_path / "run", **{**TINY, "pool": 2})
    assert torch.equal(torch.get_rng_state(), before)


def test_training_lowers_the_loss(text, tmp_path):
    without = dict.fromkeys(("dropout_embedding", "dropout_x", "dropout_h", "dropout_output"), 0)
    settings = {**TINY, "pool": 3, "epochs_per_round": 10, "hidden": 16, "lr": 3e-2, **without}
    search(str(text), out=tmp_path / "run", **settings)
    record = results(tmp_path / "run")[0]
    assert record["train_loss_curve"][-1] < 0.8 * record["train_loss_curve"][0]
    assert record["valid_perplexity"] < 10  # of 21 words


def test_rates_and_decay_go_to_their_parameters():
    config = resolve_config(
        "quick", {"hidden": 4, "nodes": 1, "lr": 0.01, "mix_lr": 0.5, "weight_decay": 0.1, "precision": "fp32"}
    )
    model = build_mixture(config, random_genotypes(2, 1, 0), LanguageModelling(), words(5))
    others, mixing = build_optimizer(config, model).param_groups
    assert (others["lr"], others["weight_decay"]) == (0.01, 0.1)
    assert (mixing["lr"], mixing["weight_decay"]) == (0.5, 0.0)
    assert mixing["params"] == [model.rnn.mix_logits]
    assert len(others["params"]) == len(list(model.parameters())) - 1


@pytest.mark.parametrize(
    ("setting", "default", "other"),
    [("seed_parameters", "fresh", "keep"), ("mix_temperature", 1.0, 0.5), ("mix_norm", "none", "rms")],
)
def test_a_setting_that_is_gone_opens_at_its_default_alone(text, tmp_path, monkeypatch, setting, default, other):
    for value in (default, other):
        old = {setting: value}
        with monkeypatch.context() as patch:
            patch.setattr(SearchConfig, "to_dict", lambda config, old=old: {**dataclasses.asdict(config), **old})
            search(str(text), out=tmp_path / str(value), **{**TINY, "pool": 2})
    resume_search(tmp_path / str(default))
    name = setting.replace("_", "-")
    with pytest.raises(WenetError, match=f"--{name} was removed .* the last commit that has it is [0-9a-f]{{7}}"):
        resume_search(tmp_path / str(other))


def test_ranking_by_held_out_loss(text, tmp_path):
    """The kept are those of the lowest loss, whatever their weight, and the audit scores by that too."""
    result = search(str(text), out=tmp_path / "run", **{**TINY, "score": "held-out", "epochs_per_round": 3}, audit=4)
    *records, best = results(tmp_path / "run")
    for record, after in pairwise(records):
        losses = [network["held_out_loss"] for network in record["networks"]]
        assert losses == sorted(losses)
        kept = {network["genotype"] for network in after["networks"] if network["rounds_kept"]}
        assert kept == {network["genotype"] for network in record["networks"][:2]}
    assert best["held_out_loss"] == records[-1]["networks"][0]["held_out_loss"]
    weights = [network["weight"] for record in records for network in record["networks"]]
    assert weights != sorted(weights, reverse=True)
    last = [network["held_out_loss"] for network in records[-1]["networks"]]
    assert result.audit["networks"][0]["score"] == pytest.approx(sum(last) / len(last) - last[0])


def test_settings_of_the_mixture_reach_the_model():
    settings = {"hidden": 4, "nodes": 2, "mix_dropout": 0.25}
    rnn = build_mixture(
        resolve_config("quick", {**settings, "precision": "fp32"}),
        random_genotypes(3, 2, 0),
        LanguageModelling(),
        words(5),
    ).rnn
    assert rnn.mix_dropout == 0.25
    plain = build_mixture(
        resolve_config("paper", {"hidden": 4, "precision": "fp32"}),
        random_genotypes(3, 2, 0),
        LanguageModelling(),
        words(5),
    ).rnn
    assert plain.mix_dropout == 0.0


PLANTED = {**TINY, "lr": 1e-2, "mix_lr": 2e-2, "dropout_x": 0.2, "norm": "none"}


@pytest.fixture
def plant(monkeypatch):
    """All cells but the given ones cannot see their input."""

    def planting(good):
        def crippling(config, genotypes, *operands):
            model = build_mixture(config, genotypes, *operands)
            sees = torch.tensor([genotype in good for genotype in genotypes]).view(-1, 1, 1)
            with torch.no_grad():
                model.rnn.weight_input.mul_(sees)
            model.rnn.weight_input.register_hook(lambda gradient: gradient * sees)
            return model

        monkeypatch.setattr(mixture, "build_mixture", crippling)

    return planting


def test_planted_winner_is_ranked_first(text, tmp_path, plant):
    """One cell that sees its input among cells that cannot must win, and stay through the rounds."""
    planted = random_genotypes(12, 3, seed=1)[1]
    plant([planted])
    result = search(str(text), out=tmp_path / "run", **{**PLANTED, "pool": 12, "batch": 6, "epochs_per_round": 6})
    assert result.genotype == planted
    *records, best = results(tmp_path / "run")
    assert [record["networks"][0]["genotype"] for record in records] == [str(planted)] * 2
    assert best["weight"] > 1.5 * best["uniform_weight"]


def test_planted_cells_are_kept(text, tmp_path, plant, monkeypatch):
    """Of five good cells among a hundred nearly all must be among the twenty kept after one round, for every seed."""
    monkeypatch.setattr("wenet.searching.work.SearchWork.announce", lambda *_: None)
    settings = {**PLANTED, "pool": 100, "batch": 100, "keep": 20, "epochs_per_round": 6, "backend": "auto"}
    recalls = []
    for seed in range(1, 6):
        good = draw_pool(resolve_config("quick", {**settings, "seed": seed}))[7::20]
        plant(good)
        search(str(text), out=tmp_path / str(seed), seed=seed, **settings)
        kept = [network["genotype"] for network in results(tmp_path / str(seed))[0]["networks"][:20]]
        recalls.append(sum(str(genotype) in kept for genotype in good) / len(good))
    assert sum(recalls) / len(recalls) >= 0.9, recalls


def test_divergence_names_the_step(text, tmp_path):
    with pytest.raises(WenetError, match=r"training diverged: .*(nan|inf|NaN).* in round 1, window \d+"):
        search(str(text), out=tmp_path / "run", **{**TINY, "norm": "none", "lr": 1e30})


@pytest.mark.parametrize("kind", ["fixed", "darts", "merity"])
def test_windows_of_a_search(text, tmp_path, monkeypatch, kind):
    """They follow one another through the text; drawn, the rates are in proportion to their length. A search that is
    stopped goes on with the same windows."""
    seen, real = [], Mixture.step

    def step(self, tokens, targets):
        began = self.progress.step
        loss = real(self, tokens, targets)
        assert torch.equal(tokens, self.train_streams[began : began + len(tokens)])
        assert (self.h is None) is False
        seen.append((began, len(tokens), [group["lr"] for group in self.optimizer.param_groups]))
        if stop_after == len(seen):
            self.session.interrupt.requested = signal.SIGTERM
        return loss

    monkeypatch.setattr(Mixture, "step", step)
    flags = [str(text), *TINY_FLAGS, "--windows", kind, "--epochs-per-round", "1.4", "--bptt", "20", "--seed", "3"]
    flags += ["--lr", "0.02", "--mix-lr", "0.01"]
    stop_after = 0
    assert search_main([*flags, "--out", str(tmp_path / "whole")]) == 0
    whole, steps = list(seen), 1101 // 4 - 1
    for (began, length, _), (after, *_) in pairwise(whole):
        assert after == (began + length) % steps
    inner = [length for began, length, _ in whole if began + length < steps]
    expected = {"fixed": {20}, "darts": {10, 20}}.get(kind, set(inner))
    assert set(inner) == expected and (len(expected) > 5) is (kind == "merity")
    for _, length, rates in whole:
        share = 1 if kind == "fixed" else length / 20
        assert rates == pytest.approx([0.02 * share, 0.01 * share])
    seen.clear()
    stop_after = 27
    assert search_main([*flags, "--out", str(tmp_path / "run")]) == 128 + signal.SIGTERM
    stop_after = 0
    resume_search(tmp_path / "run")
    assert seen == whole
    assert results(tmp_path / "run") == results(tmp_path / "whole")


def test_checkpoints_that_count_windows_still_open(text, tmp_path, monkeypatch):
    """Older ones have the number of the next window, not its first step."""
    monkeypatch.setattr(SearchProgress, "to_dict", older(SearchProgress.to_dict))
    search(str(text), out=tmp_path / "whole", **TINY)
    real = Mixture.step

    def step(self, tokens, targets):
        if self.progress.round == 1 and len(self.progress.losses) == 3:
            self.session.interrupt.requested = signal.SIGTERM
        return real(self, tokens, targets)

    with monkeypatch.context() as patch:
        patch.setattr(Mixture, "step", step)
        with pytest.raises(Stopped):
            search(str(text), out=tmp_path / "run", **TINY)
    resume_search(tmp_path / "run")
    assert results(tmp_path / "run") == results(tmp_path / "whole")


def older(to_dict):
    def as_before(state):
        value = to_dict(state)
        value["cursor"] = value.pop("step") // TINY["bptt"]
        return value

    return as_before


@pytest.mark.parametrize("build", [build_mixture, build_standalone])
def test_words_are_dropped_as_in_training(build):
    """A word dropped is zero wherever it is read, and the others make up for it; in evaluation none is."""
    torch.manual_seed(0)
    config = resolve_config("quick", {"hidden": 4, "nodes": 2, "precision": "fp32", "dropout_word": 0.4})
    model = build(config, random_genotypes(3, 2, 0), LanguageModelling(), words(50))
    tokens = torch.arange(50).repeat(2, 1)  # every word twice
    whole = model.eval()._embed(tokens)
    share = model.train()._embed(tokens) / whole  # [..., T, M, d]
    dropped = share.flatten(0, -4)[0] == 0 if share.dim() > 3 else share == 0
    assert torch.equal(dropped[0], dropped[1]) and 5 < int(dropped[0, :, 0].sum()) < 35
    assert bool(((share == 0) | ((share - 1 / 0.6).abs() < 1e-4)).all())
    assert resolve_config("paper").dropout_word == 0  # as in the search code of DARTS


def test_a_search_of_networks_with_shared_weights(text, tmp_path):
    search(str(text), out=tmp_path / "run", **{**TINY, "backend": "auto", "cell_weights": "shared"})
    assert all(record["valid_perplexity"] < 40 for record in results(tmp_path / "run")[:-1])


@pytest.fixture
def overflowing(monkeypatch):
    """Mixtures whose state overflows in evaluation, in the first round."""
    real, evaluated = WeightedDagRNN.run, []

    def run(self, pre, h0=None):
        output, h = real(self, pre, h0)
        evaluated.append(not self.training and self.cells.count == 3)  # later rounds have more networks
        return (output * math.nan, h * math.nan) if evaluated[-1] else (output, h)

    monkeypatch.setattr(WeightedDagRNN, "run", run)
    return evaluated


@pytest.mark.parametrize("score", ["weight", "held-out"])
def test_a_mixture_that_overflows_in_validation_ends_no_search(text, tmp_path, overflowing, capsys, score):
    run = tmp_path / "run"
    assert search_main([str(text), *TINY_FLAGS, "--pool", "6", "--score", score, "--out", str(run)]) == 0
    assert any(overflowing)
    first, second, best = results(run)
    assert first["valid_perplexity"] is None and second["valid_perplexity"] > 1
    assert all(network["held_out_loss"] is None for network in first["networks"])
    weights = [network["weight"] for network in first["networks"]]
    assert weights == sorted(weights, reverse=True)
    output = capsys.readouterr().out
    assert output.count("validation perplexity of the mixture is not finite; going on") == 1
    assert "batch statistics over 4 rows by --norm none" in output
    assert "holds NaN" not in output
    assert best["mixture_valid_perplexity"] == second["valid_perplexity"]


def test_a_search_whose_last_mixture_overflows_ends_and_goes_on(text, tmp_path, overflowing, monkeypatch, capsys):
    """It says so in the end, and a search stopped in that validation is resumed past it."""
    real = Mixture._validate

    def validate(self):
        self.session.interrupt.requested = signal.SIGTERM
        return real(self)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Mixture, "_validate", validate)
        assert search_main([str(text), *TINY_FLAGS, "--pool", "3", "--out", str(run)]) == 128 + signal.SIGTERM
    assert search_main(["--resume", str(run)]) == 0
    assert "validation perplexity not finite" in capsys.readouterr().out
    assert results(run)[-1]["mixture_valid_perplexity"] is None
    assert "NaN" not in (run / "search.jsonl").read_text() + (run / "best.json").read_text()


@pytest.mark.parametrize(("norm", "rows"), [("batch", 4), ("none", 2)])
def test_a_mixture_is_validated_on_as_many_rows_as_it_is_normalised_over(text, tmp_path, monkeypatch, norm, rows):
    seen = []
    real = Mixture._validate

    def validate(self):
        seen.append(self.valid_streams.shape[1])
        return real(self)

    monkeypatch.setattr(Mixture, "_validate", validate)
    search(str(text), out=tmp_path / "run", **{**TINY, "pool": 2, "norm": norm})
    assert seen == [rows]


def test_every_setting_of_the_run_is_recorded(text, tmp_path):
    search(str(text), out=tmp_path / "run", **{**TINY, "pool": 2})
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    fields = {field.name for field in dataclasses.fields(resolve_config("quick"))}
    assert set(stored["settings"]) == fields
    assert stored["settings"]["device"] == "cpu"
    assert stored["settings"]["backend"] == "reference"


def test_precision_is_named_and_never_replaced(monkeypatch):
    assert resolve_machine(resolve_config("quick", {"device": "cpu"})).precision == "fp32"
    with pytest.raises(WenetError, match="precision 'tf32'"):
        resolve_machine(resolve_config("quick", {"device": "cpu", "precision": "tf32"}))
    monkeypatch.setattr(machine, "resolve_backend", lambda *_, **__: "triton")  # as a GPU that has bf16 answers
    assert machine.best_precision("auto", torch.device("cuda")) == "bf16"
