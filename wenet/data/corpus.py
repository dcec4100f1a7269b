"""Text into word indices: vocabulary from the training part, encoding, a cache of the result, batches."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from wenet.data.sources import KNOWN, SPLITS, SourceText, cache_folder, read_texts, store
from wenet_kernels import WenetError

END, UNKNOWN = "<eos>", "<unk>"
BYTE_ORDER_MARK = "\ufeff"  # that some editors put before UTF-8
LONG_LINE = 1 << 16  # characters of a line that are split into words at once, and on to the next space
CACHE_FORMAT = 2  # counts up when the encoding changes


@dataclass(frozen=True)
class Corpus:
    """A text in three parts, each a stream of word indices with an end-of-sentence mark after every line."""

    name: str
    train: Tensor  # [tokens] int64
    valid: Tensor
    test: Tensor
    vocabulary: tuple[str, ...]  # word of every index, commonest in the training part first
    fingerprint: str  # sha256 over what the above follow from

    def describe(self) -> str:
        """Its size in words."""
        return f"{len(self.train):,} training tokens, {len(self.vocabulary):,} words"


def load_corpus(dataset: str, data_dir: Path | None = None, max_vocabulary: int | None = None) -> Corpus:
    """Read and encode a corpus, or take the encoding from the cache.

    Args:
        dataset: "sotu", "ptb", "wikitext-2", or a folder with train/valid/test text (`.txt` or `.tokens`).
        data_dir: where to look for ptb and wikitext-2 before WENET_DATA, `./data`, the cache and the network.
        max_vocabulary: keep so many words, `<eos>` and `<unk>` among them, and read all others as `<unk>`.

    Raises:
        WenetError: no such text; a file missing, corrupt, empty or not UTF-8; a word in the validation or test part
            that the training part does not have.
    """
    texts = read_texts(dataset, data_dir)
    fingerprint = _fingerprint(texts, max_vocabulary)
    cache = cache_folder() / "encoded" / f"{fingerprint}.safetensors"
    name = dataset if dataset in KNOWN else Path(dataset).resolve().name
    corpus = _from_cache(cache, name, fingerprint)
    if corpus is None:
        corpus = _encode(texts, name, fingerprint, max_vocabulary)
        store(cache, _packed(corpus))
    return corpus


def encode_held_out(dataset: str, data_dir: Path | None, vocabulary: Sequence[str]) -> dict[str, Tensor]:
    """The validation and test part of any text in the indices of a vocabulary that was learned elsewhere.

    Words beyond it are read as `<unk>` where the vocabulary has that.

    Raises:
        WenetError: as `load_corpus`; a word beyond a vocabulary without `<unk>`.
    """
    texts = read_texts(dataset, data_dir)
    index = {word: i for i, word in enumerate(vocabulary)}
    held_out = {}
    for split in ("valid", "test"):
        held_out[split] = _indices(texts[split].name, _decoded(texts[split]), index, index.get(UNKNOWN))
    return held_out


def batchify(tokens: Tensor, data_batch: int) -> Tensor:
    """Cut a stream into `data_batch` streams side by side, `[steps, data_batch]`; what does not fill a row is left out.

    Raises:
        WenetError: fewer than two steps would be left, so there would be nothing to predict.
    """
    steps = len(tokens) // data_batch
    if steps < 2:
        raise WenetError(
            f"a text of {len(tokens)} tokens is too short for {data_batch} streams side by side; ask for fewer"
        )
    return tokens[: steps * data_batch].view(data_batch, steps).t().contiguous()  # [steps, M]


def _fingerprint(texts: Mapping[str, SourceText], max_vocabulary: int | None) -> str:
    digest = hashlib.sha256(f"{CACHE_FORMAT} {max_vocabulary}".encode())
    for split in SPLITS:
        digest.update(hashlib.sha256(texts[split].content).digest())
    return digest.hexdigest()


def _packed(corpus: Corpus) -> bytes:
    parts = {split: getattr(corpus, split) for split in SPLITS}
    vocabulary = json.dumps(corpus.vocabulary)
    return save(parts, {"vocabulary": vocabulary, "sha256": _checksum(vocabulary, parts)})


def _from_cache(path: Path, name: str, fingerprint: str) -> Corpus | None:
    """The cached encoding; a damaged one counts as none."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            parts = {split: file.get_tensor(split) for split in SPLITS}
        if metadata["sha256"] != _checksum(metadata["vocabulary"], parts):
            return None
    except (OSError, SafetensorError, KeyError, TypeError):
        return None
    return Corpus(name, vocabulary=tuple(json.loads(metadata["vocabulary"])), fingerprint=fingerprint, **parts)


def _checksum(vocabulary: str, parts: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(vocabulary.encode())
    for split in SPLITS:
        digest.update(parts[split].numpy().data)
    return digest.hexdigest()


def _encode(texts: Mapping[str, SourceText], name: str, fingerprint: str, max_vocabulary: int | None) -> Corpus:
    decoded = {split: _decoded(texts[split]) for split in SPLITS}
    vocabulary = _vocabulary(decoded["train"], max_vocabulary)
    index = {word: i for i, word in enumerate(vocabulary)}
    unknown = None if max_vocabulary is None else index[UNKNOWN]
    parts = {split: _indices(texts[split].name, decoded[split], index, unknown) for split in SPLITS}
    return Corpus(name, vocabulary=vocabulary, fingerprint=fingerprint, **parts)


def _decoded(text: SourceText) -> str:
    try:
        decoded = text.content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise WenetError(f"{text.name} is not UTF-8: byte {error.start} cannot be read; convert it first") from None
    if not decoded.removeprefix(BYTE_ORDER_MARK).strip():
        raise WenetError(f"{text.name} is empty; it needs text, words between spaces")
    return decoded


def _lines(decoded: str) -> Iterator[Iterator[list[str]]]:
    """The words of every line, blank lines included; a line that is long comes as several lists.

    Only a line feed ends a line: texts in the wild hold other separators of Unicode within their lines.
    """
    start = len(BYTE_ORDER_MARK) if decoded.startswith(BYTE_ORDER_MARK) else 0
    while start < len(decoded):
        end = decoded.find("\n", start)
        end = len(decoded) if end < 0 else end
        yield _words(decoded, start, end)
        start = end + 1


def _words(decoded: str, start: int, end: int) -> Iterator[list[str]]:
    """The words of a line, so many at a time that those of a line of 100 MB never are in memory together."""
    while end - start > LONG_LINE:
        cut = decoded.find(" ", start + LONG_LINE, end)
        if cut < 0:
            break
        yield decoded[start:cut].split()
        start = cut
    yield decoded[start:end].split()


def _vocabulary(decoded: str, limit: int | None) -> tuple[str, ...]:
    """Words by falling frequency, of equal ones the earlier first, so that a limit keeps the head of the same list."""
    counts: Counter[str] = Counter()
    lines = 0
    for line in _lines(decoded):
        lines += 1
        for words in line:
            counts.update(words)
    counts[END] += lines
    if limit is None:
        return tuple(word for word, _ in counts.most_common())
    if limit < 3:
        raise WenetError(f"--max-vocabulary must be at least 3, not {limit}")
    counts.setdefault(UNKNOWN, 0)
    ordinary = [word for word, _ in counts.most_common() if word not in (UNKNOWN, END)]
    return UNKNOWN, END, *ordinary[: limit - 2]


def _indices(name: str, decoded: str, index: Mapping[str, int], unknown: int | None) -> Tensor:
    end = index[END]
    index_of = index.__getitem__ if unknown is None else lambda word: index.get(word, unknown)
    stream = array("q")
    for number, line in enumerate(_lines(decoded), start=1):
        try:
            for words in line:
                stream.extend(map(index_of, words))
        except KeyError as error:
            raise WenetError(
                f"{name} line {number}: {error.args[0]!r} does not occur in the training text; with --max-vocabulary N "
                "rare and unseen words are read as <unk>"
            ) from None
        stream.append(end)
    return torch.frombuffer(stream, dtype=torch.int64)
