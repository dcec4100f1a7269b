import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest
import torch

from wenet.cells.genotype import Genotype
from wenet.cli.cell import main as cell_main
from wenet.cli.rank import main as rank_main
from wenet.cli.search import main as search_main
from wenet.cli.train import main as train_main
from wenet.run.settings import Group, flag
from wenet.searching import SEARCH
from wenet.searching.mixture import Mixture
from wenet.searching.settings import SearchConfig, resolve_config
from wenet.training.settings import LearningConfig, TrainConfig, resolve_train_config
from wenet_kernels import WenetError

from .helpers import TINY
from .test_resume import fails


def test_a_search_tells_its_story(text, tmp_path, capsys):
    run = tmp_path / "run"
    assert search_main([str(text), *TINY, "--out", str(run)]) == 0
    output = capsys.readouterr().out
    assert "backend reference" in output
    for preset in ("quick", "paper"):
        assert re.search(rf"^{preset} .*about \d.*(GB|MB)", output, re.MULTILINE)
    assert output.count("<- this run") == 1
    assert output.count("validation perplexity of the mixture") == 3
    cell = Genotype.from_dict(json.loads((run / "best.json").read_text())["genotype"])
    assert cell.draw() in output
    assert "where equal weights would be 0.3333" in output
    assert "the mixture of the last round has not learned" in output  # in so few windows
    assert f"next      wenet-train {text} --cell {run} --preset quick" in output


def test_config_file_and_flags(text, tmp_path, capsys):
    file = tmp_path / "settings.toml"
    file.write_text('preset = "quick"\npool = 2\nhidden = 4\nbptt = 5\nepochs-per-round = 0.1\n')
    run = tmp_path / "run"
    assert search_main([str(text), "--config", str(file), "--bptt", "7", "--out", str(run)]) == 0
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert (settings["preset"], settings["hidden"], settings["bptt"]) == ("quick", 4, 7)
    assert settings["epochs_per_round"] == 0.1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["no-such-text"], "no-such-text"),
        (["--preset", "slow"], "unknown preset 'slow'"),
        (["--pool", "0"], "--pool must be at least 1"),
        (["--pool", "99999999"], "--pool must be at most 100000, not 99999999"),
        (["--seed", "99999999999999999999"], "--seed must be at most 2147483647, not 99999999999999999999"),
        (["--pool", "many"], "--pool"),
        (["--lr", "nan"], "--lr must be finite"),
        (["--lr", "-1"], "--lr must be above 0"),
        (["--dropout-x", "1"], "--dropout-x must be below 1"),
        (["--form", "round"], "--form"),
        (["--precision", "bf16"], "no products of torch.float32 in precision 'bf16'"),
        (["--device", "abacus"], "unknown --device 'abacus'"),
        (["--backend", "abacus"], "unknown backend 'abacus'"),
        (["--nodes", "10000"], "1 to 64 nodes"),
        (["--hidden", "1000000"], "of memory are needed"),
        (["--data-batch", "100000"], "the training part of length 1101 is too short for 100,000 streams"),
        (["--eval-batch", "1000"], "validation part of length 270 is too short for 1,000 streams; lower --eval-batch"),
        (["--data-batch", "200"], "validation part of length 270 is too short for 200 streams; lower --data-batch"),
        (["--norm", "batch", "--data-batch", "1"], "--data-batch must be at least 2"),
        (["--norm", "batch", "--form", "plain"], "--form plain needs --norm none"),
        (["--checkpoint-every", "-1"], "--checkpoint-every"),
        (["--poool", "3"], "unknown flag '--poool'"),
        (["--config", "no-such-file.toml"], "cannot read no-such-file.toml"),
    ],
)
def test_bad_flags(text, tmp_path, capsys, flags, message):
    dataset = [] if flags[0] == "no-such-text" else [text]
    assert message in fails(capsys, *dataset, *TINY, "--out", tmp_path / "run", *flags)


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (search_main, ["--hiden", "64"], "unknown flag '--hiden'; did you mean '--hidden'?"),
        (search_main, ["--hiden=64"], "unknown flag '--hiden=64'; did you mean '--hidden'?"),
        (search_main, ["--form", "higway"], "unknown --form 'higway'; did you mean 'highway'?"),
        (search_main, ["--preset", "quikc"], "unknown preset 'quikc'; did you mean 'quick'?"),
        (search_main, ["--strategy", "randon"], "unknown --strategy 'randon'; did you mean 'random'?"),
        (search_main, ["--activations", "tanh,rleu"], "unknown activation 'rleu'; did you mean 'relu'?"),
        (search_main, ["wikitext2"], "no text 'wikitext2': did you mean 'wikitext-2'?"),
        (train_main, ["--cell", "darts-v3"], "no cell 'darts-v3': did you mean 'darts-v2'?"),
        (train_main, ["--cell", "lstm-skp"], "no cell 'lstm-skp': did you mean 'lstm-skip'?"),
        (train_main, ["--cell", "tahn0 relu1"], "node 1: unknown activation 'tahn'; did you mean 'tanh'?"),
        (cell_main, ["show", "enas", "--jsn"], "unknown flag '--jsn'; did you mean '--json'?"),
        (cell_main, ["export", "enas", "--format", "onxx"], "unknown format 'onxx'; did you mean 'onnx'?"),
        (rank_main, ["enas", "--sed", "1", "--out", "x"], "unknown flag '--sed'; did you mean '--seeds'?"),
    ],
)
def test_typos_are_told_what_was_meant(capsys, main, arguments, message):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--resume"], ["sotu", "--out"]])
def test_names_too_long_for_a_file(capsys, arguments):
    assert f"a name is too long for a file: {40 * 'x'}...; name another" in fails(capsys, *arguments, 5000 * "x")


@pytest.mark.parametrize(
    ("redirected", "environment", "code", "said"),
    [
        ("", {"PYTHONIOENCODING": "ascii"}, 0, ""),
        ("", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, 0, ""),
        (">&-", {}, 0, ""),
        ("> /dev/full", {}, 2, "wenet-cell: cannot write: No space left on device; make room, or send the output else"),
    ],
)
def test_output_that_cannot_be_shown_or_written(redirected, environment, code, said):
    program = "import sys; from wenet.cli.cell import main; sys.exit(main(['show', 'darts-v2']))"
    command = f'"{sys.executable}" -c "{program}" {redirected}'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(said) and done.stderr.count("\n") == bool(said)
    assert redirected or ("? 1 sigmoid" in done.stdout and done.stdout.isascii())


def test_a_word_far_from_all_choices_is_told_all(capsys):
    assert search_main(["--preset", "slow"]) == 2
    assert "unknown preset 'slow'; choose from paper, quick" in capsys.readouterr().err


@pytest.mark.parametrize("resolve", [resolve_config, resolve_train_config])
def test_a_misspelled_setting_in_python(resolve):
    with pytest.raises(WenetError, match=r"^unknown setting 'hiden'; did you mean 'hidden'\?$"):
        resolve("quick", {"hiden": 64})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("pool = ", "not valid TOML"),
        ("colour = 3", "unknown setting 'colour'"),
        ("hiden = 3", "unknown setting 'hiden'; did you mean 'hidden'?"),
        ('pool = "many"', "--pool must be a whole number"),
        ("pool = true", "--pool must be a whole number"),
        ('form = "round"', "unknown --form 'round'"),
    ],
)
def test_bad_config_files(text, tmp_path, capsys, content, message):
    (tmp_path / "settings.toml").write_text(content)
    assert message in fails(capsys, text, "--config", tmp_path / "settings.toml", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_gpu_is_no_fallback(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert "has 0 CUDA devices" in fails(capsys, text, *TINY, "--device", "cuda", "--out", tmp_path / "run")


def test_an_allocation_that_fails(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("wenet.run.session.check_memory", lambda *_: None)
    monkeypatch.setattr("wenet.searching.work.SearchWork.announce", lambda *_: None)

    def exhausted(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr(Mixture, "step", exhausted)
    message = fails(capsys, text, *TINY, "--out", tmp_path / "run")
    assert re.search(r"out of memory: about \S+ [GM]B are needed; lower --batch", message)
    assert SEARCH.memory_flags(resolve_config("quick")) == "--batch, --hidden, --data-batch or --bptt"
    assert SEARCH.memory_flags(resolve_config("race")) == "--batch, --parameters, --data-batch or --bptt"


def helped(main, *arguments) -> None:
    """Ask for `--help` after these."""
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--help"])
    assert end.value.code == 0


def test_help_groups_its_flags(capsys):
    helped(search_main)
    groups = dict(re.findall(r"^(\w[^\n]+):\n(.*?)(?=\n\n|\Z)", capsys.readouterr().out, re.MULTILINE | re.DOTALL))
    assert list(groups) == list(Group)
    flags = {heading: re.findall(r"^  (--[a-z-]+|dataset)", text, re.MULTILINE) for heading, text in groups.items()}
    assert flags[Group.FIRST][:3] == ["dataset", "--task", "--preset"]
    assert len(flags[Group.FIRST]) <= 13
    assert flags[Group.MACHINE] == ["--backend", "--device", "--precision"]
    shown = [name for group in flags.values() for name in group]
    assert len(set(shown)) == len(shown)
    assert {flag(option.name) for option in dataclasses.fields(SearchConfig)} <= {*shown, "--dataset"}


@pytest.mark.parametrize(
    ("main", "arguments", "default"),
    [
        (search_main, ["--preset", "paper"], "hidden state (default: 200)"),
        (search_main, ["--preset", "quick"], "hidden state (default: 64)"),
        (search_main, ["--preset", "quick", "--hidden", "32"], "hidden state (default: 32)"),
        (train_main, ["--preset", "paper"], "hidden state (default: 850)"),
        (train_main, ["wikitext-2", "--preset", "paper"], "hidden state (default: 700)"),
        (train_main, ["--preset", "paper", "--cell", "lstm"], "hidden state (default: 1150)"),
    ],
)
def test_help_shows_the_defaults_in_force(capsys, main, arguments, default):
    helped(main, *arguments)
    assert default in " ".join(capsys.readouterr().out.split())


def test_help_shows_the_preset_of_this_machine(capsys, monkeypatch):
    for gpu, preset in ((False, "race"), (True, "paper")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        helped(search_main)
        assert f"those of --preset {preset};" in " ".join(capsys.readouterr().out.split())


def test_help_for_a_task_lists_what_it_reads(capsys):
    helped(search_main, "--task", "forecast")
    said = capsys.readouterr().out
    assert "--horizon" in said and "--bptt" not in said and "--level" not in said and "text and model" in said
    assert "Settings that --task forecast does not read are left out." in " ".join(said.split())
    helped(search_main, "--preset", "numbers")
    assert "--horizon" not in capsys.readouterr().out  # of the preset's task, which is to classify
    helped(search_main)
    said = capsys.readouterr().out
    assert "--horizon" in said and "--bptt" in said and "left out." not in said


def test_help_of_an_unknown_preset(capsys):
    assert search_main(["--preset", "quikc", "--help"]) == 2
    assert "did you mean 'quick'?" in capsys.readouterr().err


def test_search_and_training_declare_what_they_share_once():
    """Fields of both are the same but where the training has other words or another default."""
    own = set(SearchConfig.__annotations__) & set(TrainConfig.__annotations__)
    assert own <= set(LearningConfig.__dataclass_fields__)
    for name in LearningConfig.__dataclass_fields__:
        found = [dict(config.__dataclass_fields__[name].metadata) for config in (SearchConfig, TrainConfig)]
        assert {**found[0], "help": ""} == {**found[1], "help": ""}


def test_presets():
    paper, quick = resolve_config("paper"), resolve_config("quick")
    assert (paper.pool, paper.batch, paper.keep, paper.hidden, paper.data_batch) == (10_000, 100, 20, 200, 20)
    assert (paper.rounds, paper.networks, paper.epochs_per_round) == (100, 120, 2)
    assert (paper.dropout_embedding, paper.dropout_x, paper.dropout_h, paper.dropout_output) == (0.2, 0.75, 0.25, 0.75)
    assert (quick.networks, quick.hidden, quick.data_batch, quick.bptt) == (20, 64, 20, 35)
    with pytest.raises(WenetError):
        SearchConfig(pool=2.5)


def test_cell_list_show_random(capsys, tmp_path):
    assert cell_main(["list"]) == 0
    said = capsys.readouterr().out
    assert "darts-v2" in said and " 1 product, 1 state " in said and " 4 products, 2 states " in said
    assert cell_main(["show", "darts-v2"]) == 0
    assert "└─" in capsys.readouterr().out
    assert cell_main(["random", "--count", "3", "--nodes", "4", "--json"]) == 0
    cells = [Genotype.from_json(line) for line in capsys.readouterr().out.splitlines()]
    assert len(set(cells)) == 3
    (tmp_path / "cell.json").write_text(cells[0].to_json())
    assert cell_main(["show", str(tmp_path / "cell.json"), "--json"]) == 0
    assert Genotype.from_json(capsys.readouterr().out) == cells[0]


@pytest.mark.parametrize("arguments", [["show", "darts-v7"], ["random", "--nodes", "0"], [], ["paint"]])
def test_cell_errors(capsys, arguments):
    assert cell_main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
