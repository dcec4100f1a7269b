"""A text small enough to search in seconds, the flags of such a search, and a cell that is `torch.nn.RNN`."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch

from wenet.cells.genotype import Genotype
from wenet.cli.search import main as search_main

# Settings of a search under which everything that is drawn or normalised takes part.
REGULARISED = {
    "norm": "batch", "lr": 2e-2, "mix_lr": 1e-2, "clip": 0.25, "weight_decay": 5e-7, "temporal_activation_reg": 1e-3,
    "dropout_embedding": 0.1, "dropout_x": 0.2, "dropout_h": 0.1, "dropout_output": 0.2, "standalone_lr": 1e-2,
}  # fmt: skip


def without(flags: Sequence[str], *left_out: str) -> list[str]:
    """Flags with a value each, and without some of them."""
    place = (place for place, flag in enumerate(flags) if flag in left_out)
    gone = {each for first in place for each in (first, first + 1)}
    return [flag for place, flag in enumerate(flags) if place not in gone]


TINY = [
    *(word for name, value in REGULARISED.items() for word in (f"--{name.replace('_', '-')}", str(value))),
    *("--preset", "quick", "--pool", "7", "--batch", "3", "--keep", "2", "--hidden", "8", "--nodes", "3"),
    *("--data-batch", "4", "--eval-batch", "2", "--bptt", "6", "--epochs-per-round", "0.6", "--backend", "reference"),
]
STANDALONE = without(TINY, "--norm", "--mix-lr")  # what a mixture alone reads


def write_text(folder: Path, lines: int = 120) -> Path:
    """Sentences over 20 words in which each word mostly decides the next."""
    generator = random.Random(5)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", lines), ("valid", lines // 4), ("test", lines // 4)):
        sentences = []
        for _ in range(count):
            word = generator.randrange(20)
            sentence = []
            for _ in range(8):
                sentence.append(f"w{word}")
                word = (3 * word + 1) % 20 if generator.random() < 0.9 else generator.randrange(20)
            sentences.append(" ".join(sentence))
        if split == "train":
            sentences.append(" ".join(f"w{word}" for word in range(20)))
        (folder / f"{split}.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    return folder


def words(count: int) -> SimpleNamespace:
    """What a model must know of a text: its vocabulary, here of words that are equally frequent."""
    return SimpleNamespace(vocabulary=range(count), train=torch.arange(count))


def results(run: Path, records: str = "search.jsonl") -> list[dict]:
    """Everything a run found, without what it cost."""
    costs = ("seconds", "seconds_so_far", "peak_memory_bytes")
    records = [json.loads(line) for line in (run / records).read_text().splitlines()]
    records.append(json.loads((run / "best.json").read_text()))
    return [{key: value for key, value in record.items() if key not in costs} for record in records]


def fails(capsys, *arguments, main=search_main) -> str:
    """The one line that a command prints when it refuses."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


AS_TORCH_RNN = Genotype.from_text("identity0")


@torch.no_grad()
def take_weights(ours: torch.nn.Module, torchs: torch.nn.RNN) -> None:
    """Let a `DagRNN` of that cell compute what a `torch.nn.RNN` does: the init node's gate is open, and node 1 repeats
    node 0."""
    hidden = torchs.hidden_size
    for name, parameter in ours.named_parameters():
        parameter.zero_()
        if name.startswith("bias_input"):
            parameter[:hidden] = 100
        if name.startswith("weight_nodes"):
            parameter[0, :, hidden:] = torch.eye(hidden)
    for name, values in torchs.named_parameters():
        kind, of = re.match("(weight|bias)_(ih|hh)", name).groups()
        ours_name = name.replace("_l0", "").replace(f"{kind}_{of}", f"{kind}_{'input' if of == 'ih' else 'hidden'}")
        ours.get_parameter(ours_name)[..., hidden:] = values.T if values.dim() == 2 else values
