"""Texts by characters, from the file to the report."""

from __future__ import annotations

import json
import math
import re
import signal
import tracemalloc
from collections import Counter

import pytest
import torch

import wenet
from wenet import WenetError
from wenet.cli.evaluate import main as evaluate_main
from wenet.cli.rank import main as rank_main
from wenet.cli.search import main as search_main
from wenet.cli.train import main as train_main
from wenet.data import batchify, load_corpus, sources, window
from wenet.data.units import LettersOfWords
from wenet.run import Stopped
from wenet.searching.mixture import Mixture
from wenet.searching.settings import SearchConfig, resolve_config
from wenet.tasks import task_of
from wenet.tasks.language import cross_entropies

from .helpers import STANDALONE, TINY, results, write_text
from .test_data import own_cache, shared_data, write  # noqa: F401

CELL = ["--preset", "quick", "--hidden", "6", "--epochs", "1", "--data-batch", "4", "--eval-batch", "4"]
TRAINING = [*CELL, "--test-batch", "4", "--backend", "reference"]
OF_WORDS = ("perplexity", "word frequencies", "words", "<unk>")


def read_back(corpus, part):
    return "".join(
        "\n" if corpus.vocabulary[i] == "<eos>" else corpus.vocabulary[i] for i in getattr(corpus, part).tolist()
    )


@pytest.mark.parametrize(
    ("dataset", "sizes", "symbols"),
    [
        ("ptb", (5_017_482, 393_042, 442_423), 50),
        ("wikitext-2", (10_719_952, 1_113_971, 1_247_769), 283),
        ("sotu", (4_390_595, 393_076, 383_319), 46),
    ],
)
def test_published_counts(dataset, sizes, symbols, monkeypatch):
    if dataset != "sotu":
        monkeypatch.setenv("WENET_DATA", str(shared_data()))
    corpus = load_corpus(dataset, level="characters")
    assert (len(corpus.train), len(corpus.valid), len(corpus.test)) == sizes
    assert len(corpus.vocabulary) == symbols and " " not in corpus.vocabulary
    words = load_corpus(dataset)
    in_words = re.sub("_?<eos>_?", "\n", "_".join(words.vocabulary[i] for i in words.train[:3000]))
    start = "".join(corpus.vocabulary[i] for i in corpus.train[: len(in_words)].tolist())
    assert start.replace("<eos>", "\n").startswith(in_words)


def test_a_folder_is_read_as_it_stands(tmp_path):
    train, valid = " Ab  b\u2028a\tb\r\n\naé_𝄞é", "a b\n"
    write(tmp_path, train="\ufeff" + train, valid=valid, test="bb")
    corpus = load_corpus(str(tmp_path / "text"), level="characters")
    assert read_back(corpus, "train") == train and read_back(corpus, "valid") == valid
    assert corpus.test.tolist() == [corpus.vocabulary.index("b")] * 2
    ranked = sorted(Counter(train).items(), key=lambda item: (-item[1], item[0]))
    assert corpus.vocabulary == tuple("<eos>" if symbol == "\n" else symbol for symbol, _ in ranked)


def test_unknown_characters(tmp_path):
    write(tmp_path, train="aaab\nb c", valid="ab\n", test="b\na\u03c0b")
    with pytest.raises(WenetError, match=r"test.txt line 2: 'π' does not occur.*--max-vocabulary N.*characters"):
        load_corpus(str(tmp_path / "text"), level="characters")
    corpus = load_corpus(str(tmp_path / "text"), level="characters", max_vocabulary=4)
    assert corpus.vocabulary == ("<unk>", "<eos>", "a", "b")
    assert corpus.train.tolist() == [2, 2, 2, 3, 1, 3, 0, 0] and corpus.test.tolist() == [3, 1, 2, 0, 3]


def test_an_unknown_line_feed_is_named(tmp_path):
    write(tmp_path, train="ab", valid="ab", test="ab\n")
    with pytest.raises(WenetError, match=r"test.txt line 1: '\\n' does not occur"):
        load_corpus(str(tmp_path / "text"), level="characters")


def test_pieces_join(tmp_path, monkeypatch):
    """However the text is cut for encoding, also in the last line and where an unknown character is."""
    train = "".join(f"line {n} of\n" for n in range(40)) + "end"
    write(tmp_path, train=train, valid=train, test="line 1\n" * 9 + "li?")
    for size in (1, 7, 1 << 20):
        monkeypatch.setattr("wenet.data.units.PIECE", size)
        with pytest.raises(WenetError, match=r"test.txt line 10: '\?'"):
            load_corpus(str(tmp_path / "text"), level="characters")
        corpus = load_corpus(str(tmp_path / "text"), level="characters", max_vocabulary=90)
        assert read_back(corpus, "train") == read_back(corpus, "valid") == train
        assert "".join(LettersOfWords().pieces(" a  b\n\nc d")) == "a_b\n\nc_d\n"
        sources.store(sources.cache_folder() / "encoded" / f"{corpus.fingerprint}.safetensors", b"")  # encode anew


def test_memory_of_one_long_line(tmp_path):
    text = "one two three four five six seven eight nine ten " * 200_000  # 9.8 MB, as tensors, which are not counted
    write(tmp_path, train=text, valid="one", test="two")
    load_corpus(str(write(write_text(tmp_path / "other"), train="one", valid="one", test="one")), level="characters")
    tracemalloc.start()
    corpus = load_corpus(str(tmp_path / "text"), level="characters")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(corpus.train) == len(text)
    assert peak < 9 * len(text)  # the text twice, the encoded one as bytes to be cached, and pieces


def test_levels_are_kept_apart(tmp_path):
    folder = str(write_text(tmp_path / "text"))
    words, characters = load_corpus(folder), load_corpus(folder, level="characters")
    assert words.fingerprint != characters.fingerprint
    assert load_corpus(folder).vocabulary == words.vocabulary
    again = load_corpus(folder, level="characters")
    assert again.vocabulary == characters.vocabulary and again.level == "characters"
    assert torch.equal(again.train, characters.train)
    with pytest.raises(WenetError, match="did you mean 'characters'"):
        load_corpus(folder, level="character")


def test_baseline_and_metric_by_hand(tmp_path):
    write(tmp_path, train="aaab", valid="ab", test="ab")
    config = resolve_config("quick", {"dataset": str(tmp_path / "text"), "level": "characters"})
    task = task_of(config)
    name, value = task.baseline(task.load(config, None))
    assert name == "character frequencies"
    assert value == pytest.approx(-(math.log2(4 / 6) + math.log2(2 / 6)) / 2, abs=1e-3)  # each counts once more
    assert (task.metric.name, task.metric.key, task.metric.places) == ("bits per character", "bits_per_character", 3)


def test_windows_hold_what_a_model_takes(tmp_path):
    corpus = load_corpus(str(write_text(tmp_path / "text")), level="characters")
    inputs, targets = window(batchify(corpus.train, 3), 5, 1)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1], corpus.train[len(corpus.train) // 3 :][5:10].long())


@pytest.fixture
def found(tmp_path, capsys):
    """A search by characters with its audit, and what it said."""
    run = tmp_path / "found"
    flags = ["--level", "characters", "--audit", "4", "--audit-epochs", "0.1", "--epochs-per-round", "0.1"]
    assert search_main([str(write_text(tmp_path / "text")), *TINY, *flags, "--out", str(run)]) == 0
    return run, capsys.readouterr().out


def test_a_search_speaks_of_characters(found):
    run, said = found
    assert "training characters" in said and "validation bits per character of the mixture" in said
    assert not any(word in said for word in OF_WORDS)
    assert f"--cell {run} --preset quick --level characters" in said
    for name in ("best.json", "audit.json", "search.jsonl"):
        content = (run / name).read_text()
        assert "bits_per_character" in content and "perplexity" not in content
    config = json.loads((run / "config.json").read_text())
    assert config["baseline"]["name"] == "character frequencies"
    assert "standalone bits per character" in wenet.load(run).table.columns


@pytest.mark.parametrize("strategy", [["--strategy", "random"], ["--runs", "2"]])
def test_other_strategies_speak_of_characters(tmp_path, capsys, strategy):
    run = tmp_path / "run"
    flags = ["--level", "characters", "--audit-epochs", "0.1", "--epochs-per-round", "0.1", *strategy]
    assert search_main([str(write_text(tmp_path / "text")), *STANDALONE, *flags, "--out", str(run)]) == 0
    said = capsys.readouterr().out
    assert "bits per character" in said and not any(word in said for word in OF_WORDS[:2])
    assert "bits_per_character" in (run / "best.json").read_text()


def test_a_cell_of_a_run_brings_its_level(found, tmp_path, capsys):
    run, _ = found
    trained = tmp_path / "trained"
    assert train_main([*TRAINING, "--cell", str(run), "--out", str(trained)]) == 0
    said = capsys.readouterr().out
    assert f"no text named: {tmp_path / 'text'} by characters, that of {run}" in said
    assert "bits per character valid" in said and "validation bits per character" in said
    assert not any(word in said for word in OF_WORDS)
    best = json.loads((trained / "best.json").read_text())
    model, config = wenet.load(trained).model, json.loads((trained / "config.json").read_text())
    assert config["settings"]["level"] == "characters"
    corpus = load_corpus(str(tmp_path / "text"), level="characters")
    nats = float(cross_entropies(model, batchify(corpus.test, 4), 35, lambda: None)[0])
    assert best["test_bits_per_character"] == pytest.approx(nats / math.log(2), rel=1e-6)
    other = tmp_path / "other"
    text = str(write_text(tmp_path / "more", lines=160))
    assert train_main([text, *TRAINING, "--cell", str(run), "--out", str(other)]) == 0
    assert json.loads((other / "config.json").read_text())["settings"]["level"] == "characters"
    assert train_main([text, *TRAINING, "--cell", str(run), "--level", "words", "--out", str(tmp_path / "w")]) == 0
    assert json.loads((tmp_path / "w" / "config.json").read_text())["settings"]["level"] == "words"


def test_evaluation_ranking_and_export_by_characters(found, tmp_path, capsys):
    run, _ = found
    trained = tmp_path / "trained"
    assert train_main([*TRAINING, "--cell", str(run), "--out", str(trained)]) == 0
    best = json.loads((trained / "best.json").read_text())
    capsys.readouterr()
    assert evaluate_main([str(trained)]) == 0
    said = capsys.readouterr().out
    assert f"test   bits per character {best['test_bits_per_character']:.3f} over" in said
    record = json.loads((trained / "eval.jsonl").read_text())
    assert record["test"]["bits_per_character"] == pytest.approx(best["test_bits_per_character"], rel=1e-5)
    assert evaluate_main([str(trained), str(write_text(tmp_path / "more", lines=160))]) == 0
    for adapting in (["--cache", "20"], ["--dynamic"]):
        assert evaluate_main([str(trained), *adapting]) == 0
    assert "perplexity" not in capsys.readouterr().out + (trained / "eval.jsonl").read_text()
    ranking = tmp_path / "ranking"
    assert rank_main([str(run), "tanh0 relu1 relu1", "--out", str(ranking), "--seeds", "2", "--epochs", "0.05"]) == 0
    assert "validation bits per character after" in capsys.readouterr().out
    files = wenet.export(trained, out=tmp_path / "cell.py")
    assert "test_bits_per_character" in files[1].read_bytes()[:2000].decode(errors="replace")


def test_a_run_of_before_is_of_words(tmp_path, monkeypatch):
    """One that was begun without the settings goes on as it was."""
    options = {"preset": "quick", "pool": 4, "batch": 2, "keep": 1, "hidden": 8, "nodes": 2, "epochs_per_round": 0.3}
    options |= {"data_batch": 4, "eval_batch": 2, "bptt": 6, "backend": "reference", "decoder_bias": "zero"}
    text, run, real = str(write_text(tmp_path / "text")), tmp_path / "run", Mixture.end_stage
    wenet.search(text, out=tmp_path / "whole", **options)

    def end_stage(self):
        real(self)
        self.session.interrupt.requested = signal.SIGTERM

    with monkeypatch.context() as patch:
        patch.setattr(SearchConfig, "to_dict", without("level", "decoder_bias"))
        patch.setattr(Mixture, "end_stage", end_stage)
        with pytest.raises(Stopped):
            wenet.search(text, out=run, **options)
    assert "level" not in json.loads((run / "config.json").read_text())["settings"]
    assert wenet.load(run).metric.key == "perplexity"
    wenet.resume_search(run)
    assert results(run) == results(tmp_path / "whole")


def without(*names):
    real = SearchConfig.to_dict
    return lambda config: {name: value for name, value in real(config).items() if name not in names}


def test_exported_characters_have_a_line_each(tmp_path):
    """Also those that would end it."""
    train = "ab\r\u2028\u3000 \tb\x0b\\\n" * 300
    text, run = write(tmp_path, train=train, valid=train, test=train), tmp_path / "run"
    assert train_main([str(text), *TRAINING, "--level", "characters", "--cell", "tanh0", "--out", str(run)]) == 0
    *_, vocabulary = wenet.export(run, out=tmp_path / "model.py")
    lines = vocabulary.read_text().splitlines()
    expected = load_corpus(str(text), level="characters").vocabulary
    escaped = {"\r": "\\r", "\u2028": "\\u2028", "\x0b": "\\x0b"}
    assert lines == [escaped.get(unit, unit) for unit in expected] and len(set(lines)) == len(lines)


def test_a_text_of_one_character(tmp_path):
    for part in ("train", "valid", "test"):
        (tmp_path / f"{part}.txt").write_text(100 * "a")
    for _ in ("encoded", "from the cache"):
        with pytest.raises(WenetError, match="train.txt has a single character, from which nothing can be learned"):
            load_corpus(str(tmp_path), level="characters")
