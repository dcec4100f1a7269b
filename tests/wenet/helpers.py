"""A text small enough to search in seconds, and the flags of such a search."""

from __future__ import annotations

import json
import random
from pathlib import Path

from wenet.cli import search_main

TINY = [
    *("--preset", "quick", "--pool", "7", "--batch", "3", "--seeds", "2", "--hidden", "8", "--nodes", "3"),
    *("--data-batch", "4", "--eval-batch", "2", "--bptt", "6", "--epochs-per-round", "0.6", "--backend", "reference"),
]


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


def results(run: Path, records: str = "search.jsonl") -> list[dict]:
    """Everything a run found, without what it cost."""
    costs = ("seconds", "seconds_so_far", "peak_memory_bytes")
    records = [json.loads(line) for line in (run / records).read_text().splitlines()]
    records.append(json.loads((run / "best.json").read_text()))
    return [{key: value for key, value in record.items() if key not in costs} for record in records]


def fails(capsys, *arguments) -> str:
    """The one line that `wenet-search` prints when it refuses."""
    capsys.readouterr()
    assert search_main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err
