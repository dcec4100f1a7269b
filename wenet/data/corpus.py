"""Encode texts as indices of words or characters: vocabulary, encoding, cache, and division into streams."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from wenet.data.sources import KNOWN, PART_WORDS, SPLITS, SourceText, cache_folder, read_texts, store
from wenet.data.units import BYTE_ORDER_MARK, LEVELS, UNKNOWN, WORDS, Units, units_of
from wenet.words import counted
from wenet_kernels import WenetError, check_choice


@dataclass(frozen=True)
class Corpus:
    """A text in three parts, each a stream of word or character indices with a mark after every line."""

    name: str
    train: Tensor  # [tokens] int64; int32 for characters, to save memory
    valid: Tensor
    test: Tensor
    vocabulary: tuple[str, ...]  # word or character of each index, most common in the training part first
    fingerprint: str  # sha256 over everything that determines the above
    level: str = "words"  # one of `LEVELS`

    def describe(self) -> str:
        """Describe the size in words."""
        if self.level == "characters":
            return f"{len(self.train):,} training characters, {len(self.vocabulary):,} different ones"
        return f"{len(self.train):,} training tokens, {len(self.vocabulary):,} words"


def load_corpus(
    dataset: str, data_dir: Path | None = None, max_vocabulary: int | None = None, level: str = "words"
) -> Corpus:
    """Read and encode a corpus, or load the encoding from the cache.

    Args:
        dataset: "sotu", "ptb", "wikitext-2", or a folder with train/valid/test text (`.txt` or `.tokens`).
        data_dir: where to look for ptb and wikitext-2 before WENET_DATA, `./data`, the cache and the network.
        max_vocabulary: number of words or characters to keep, including `<eos>` and `<unk>`; all others are read as
            `<unk>`.
        level: "words" or "characters". The characters of a folder are those of its text; for the texts known by name
            they are the letters of words, with `_` between words.

    Raises:
        WenetError: there is no such text, a file is missing, corrupt, empty or not UTF-8, the training part has
            a single word or character, or another part has one that the training part lacks.
    """
    check_choice("level", level, LEVELS)
    texts = read_texts(dataset, data_dir)
    units = units_of(level, dataset)
    fingerprint = _fingerprint(texts, max_vocabulary, units)
    cache = cache_folder() / "encoded" / f"{fingerprint}.safetensors"
    name = dataset if dataset in KNOWN else Path(dataset).resolve().name
    corpus = _from_cache(cache, name, fingerprint, level)
    if corpus is None:
        corpus = _encode(texts, name, fingerprint, max_vocabulary, units)
        store(cache, _packed(corpus))
    units.check_varied(texts["train"].name, corpus.vocabulary)
    return corpus


def encode_held_out(dataset: str, data_dir: Path | None, vocabulary: Sequence[str], units: Units) -> dict[str, Tensor]:
    """Encode the validation and test part of any text with an existing vocabulary.

    Units outside the vocabulary are read as `<unk>`, if the vocabulary has it.

    Args:
        units: the units of the vocabulary.

    Raises:
        WenetError: as in `load_corpus`; also for words outside a vocabulary without `<unk>`.
    """
    texts = read_texts(dataset, data_dir)
    index = {unit: i for i, unit in enumerate(vocabulary)}
    held_out = {}
    for split in ("valid", "test"):
        held_out[split] = units.indices(texts[split].name, _decoded(texts[split]), index, index.get(UNKNOWN))
    return held_out


def batchify(tokens: Tensor, data_batch: int, part: str | None = None) -> Tensor:
    """Divide a stream into `data_batch` streams side by side, `[steps, data_batch]`; an incomplete last row is dropped.

    Args:
        part: "train", "valid" or "test", for messages.

    Raises:
        WenetError: there would be fewer than two steps, and so nothing to predict.
    """
    steps = len(tokens) // data_batch
    if steps < 2:
        what = "a text" if part is None else f"the {PART_WORDS[part]} part"
        raise WenetError(f"{what} of length {len(tokens)} is too short for {counted(data_batch, 'stream')}")
    return tokens[: steps * data_batch].view(data_batch, steps).t().contiguous()  # [steps, M]


def _fingerprint(texts: Mapping[str, SourceText], max_vocabulary: int | None, units: Units) -> str:
    digest = hashlib.sha256(f"{units.format} {max_vocabulary}".encode())
    for split in SPLITS:
        digest.update(hashlib.sha256(texts[split].content).digest())
    return digest.hexdigest()


def _packed(corpus: Corpus) -> bytes:
    parts = {split: getattr(corpus, split) for split in SPLITS}
    vocabulary = json.dumps(corpus.vocabulary)
    return save(parts, {"vocabulary": vocabulary, "sha256": _checksum(vocabulary, parts)})


def _from_cache(path: Path, name: str, fingerprint: str, level: str) -> Corpus | None:
    """Load the cached encoding; a damaged one counts as missing."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            parts = {split: file.get_tensor(split) for split in SPLITS}
        if metadata["sha256"] != _checksum(metadata["vocabulary"], parts):
            return None
    except (OSError, SafetensorError, KeyError, TypeError):
        return None
    return Corpus(
        name, vocabulary=tuple(json.loads(metadata["vocabulary"])), fingerprint=fingerprint, level=level, **parts
    )


def _checksum(vocabulary: str, parts: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(vocabulary.encode())
    for split in SPLITS:
        digest.update(parts[split].numpy().data)
    return digest.hexdigest()


def _encode(
    texts: Mapping[str, SourceText],
    name: str,
    fingerprint: str,
    max_vocabulary: int | None,
    units: Units = WORDS,
) -> Corpus:
    decoded = {split: _decoded(texts[split]) for split in SPLITS}
    vocabulary = units.vocabulary(decoded["train"], max_vocabulary)
    index = {unit: i for i, unit in enumerate(vocabulary)}
    unknown = None if max_vocabulary is None else index[UNKNOWN]
    parts = {split: units.indices(texts[split].name, decoded[split], index, unknown) for split in SPLITS}
    return Corpus(name, vocabulary=vocabulary, fingerprint=fingerprint, level=units.level, **parts)


def _decoded(text: SourceText) -> str:
    try:
        decoded = text.content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise WenetError(f"{text.name} is not UTF-8: byte {error.start} cannot be read; convert it first") from None
    if not decoded.removeprefix(BYTE_ORDER_MARK).strip():
        raise WenetError(f"{text.name} is empty; it needs text, words between spaces")
    return decoded
