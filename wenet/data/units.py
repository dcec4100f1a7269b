"""What a text is read in: words, its characters, or the letters of its words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from wenet.data.sources import KNOWN
from wenet_kernels import WenetError

LEVELS = ("words", "characters")
END, UNKNOWN = "<eos>", "<unk>"
BETWEEN_WORDS = "_"  # in the character form of a text of words
BYTE_ORDER_MARK = "\ufeff"  # that some editors put before UTF-8
LONG_LINE = 1 << 16  # characters of a line that are split into words at once, and on to the next space
PIECE = 1 << 20  # characters that are encoded at once
CODE_POINTS = 0x110000  # of Unicode


class Units(ABC):
    """A way to cut a text into units; an end-of-line mark, `<eos>`, is one of them."""

    level: str  # one of `LEVELS`
    format: str  # of the encoded text; it changes with the encoding, for a cache holds that

    def vocabulary(self, decoded: str, limit: int | None) -> tuple[str, ...]:
        """Units of the training text by falling frequency; with a limit `<unk>` and `<eos>`, then the head of it.

        Raises:
            WenetError: a limit that leaves no place for a unit.
        """
        ranked = self._ranked(decoded)
        if limit is None:
            return tuple(ranked)
        if limit < 3:
            raise WenetError(f"--max-vocabulary must be at least 3, not {limit}")
        return UNKNOWN, END, *[unit for unit in ranked if unit not in (UNKNOWN, END)][: limit - 2]

    @abstractmethod
    def _ranked(self, decoded: str) -> list[str]:
        """All units, the most frequent first."""

    @abstractmethod
    def indices(self, name: str, decoded: str, index: Mapping[str, int], unknown: int | None) -> Tensor:
        """The stream of a text, `[tokens]`.

        Args:
            name: of the text, for messages.
            index: of every unit of the vocabulary.
            unknown: what stands for all others, if anything may.

        Raises:
            WenetError: a unit beyond the vocabulary, and nothing may stand for it.
        """

    def refusal(self, name: str, line: int, unit: str) -> WenetError:
        return WenetError(
            f"{name} line {line}: {unit!r} does not occur in the training text; with --max-vocabulary N rare and "
            f"unseen {self.level} are read as {UNKNOWN}"
        )


class Words(Units):
    """Words between spaces, and the mark after every line."""

    level = "words"
    format = "2"

    def _ranked(self, decoded: str) -> list[str]:
        """Of equal frequency the earlier first."""
        counts: Counter[str] = Counter()
        lines = 0
        for line in lines_of(decoded):
            lines += 1
            for words in line:
                counts.update(words)
        counts[END] += lines
        return [word for word, _ in counts.most_common()]

    def indices(self, name: str, decoded: str, index: Mapping[str, int], unknown: int | None) -> Tensor:
        end = index[END]
        index_of = index.__getitem__ if unknown is None else lambda word: index.get(word, unknown)
        stream = array("q")
        for number, line in enumerate(lines_of(decoded), start=1):
            try:
                for words in line:
                    stream.extend(map(index_of, words))
            except KeyError as error:
                raise self.refusal(name, number, error.args[0]) from None
            stream.append(end)
        return torch.frombuffer(stream, dtype=torch.int64)


WORDS = Words()


class Characters(Units):
    """Every character of Unicode as it stands in the text; the mark stands for a line feed.

    The text is encoded piece by piece, so that what is needed besides the stream does not grow with it.
    """

    level = "characters"
    format = "characters 1"

    def pieces(self, decoded: str) -> Iterator[str]:
        """The text in parts, with a line feed at the end of a line."""
        start = len(BYTE_ORDER_MARK) if decoded.startswith(BYTE_ORDER_MARK) else 0
        for first in range(start, len(decoded), PIECE):
            yield decoded[first : first + PIECE]

    def _ranked(self, decoded: str) -> list[str]:
        """Of equal frequency the lower code point first."""
        counts = torch.zeros(CODE_POINTS, dtype=torch.int64)
        for piece in self.pieces(decoded):
            counts += torch.bincount(_code_points(piece), minlength=CODE_POINTS)
        ranked = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())]
        return [_unit(chr(code)) for code in ranked.tolist()]

    def indices(self, name: str, decoded: str, index: Mapping[str, int], unknown: int | None) -> Tensor:
        table = torch.full((CODE_POINTS,), -1 if unknown is None else unknown, dtype=torch.int32)
        for unit, number in index.items():
            if unit == END or len(unit) == 1:
                table[ord("\n" if unit == END else unit)] = number
        stream, length, lines = torch.empty(len(decoded) + 1, dtype=torch.int32), 0, 1
        for piece in self.pieces(decoded):
            part = stream[length : length + len(piece)]
            torch.index_select(table, 0, _code_points(piece), out=part)
            if unknown is None and bool((part < 0).any()):
                place = int((part < 0).nonzero()[0])
                raise self.refusal(name, lines + piece.count("\n", 0, place), piece[place])
            length += len(piece)
            lines += piece.count("\n")
        return stream[:length]


class LettersOfWords(Characters):
    """The character form of a text of words (Mikolov et al. 2012): letters, a mark between words and after every line.

    `<unk>` is five letters there like any word, and `N` for a number is one.
    """

    format = "letters 1"

    def pieces(self, decoded: str) -> Iterator[str]:
        gathered: list[str] = []
        size = 0
        for line in lines_of(decoded):
            before = ""
            for words in line:
                if words:
                    gathered.append(before + BETWEEN_WORDS.join(words))
                    size += len(gathered[-1])
                    before = BETWEEN_WORDS
            gathered.append("\n")
            if size > PIECE:
                yield "".join(gathered)
                gathered, size = [], 0
        yield "".join(gathered)


def units_of(level: str, dataset: str) -> Units:
    """What a text is read in: a published text of words has a customary character form, any other is read as it is."""
    if level == "words":
        return WORDS
    return LettersOfWords() if dataset in KNOWN else Characters()


def _unit(character: str) -> str:
    return END if character == "\n" else character


def _code_points(piece: str) -> Tensor:
    """Of every character, `[characters]` int32; half of a surrogate pair cannot come out of UTF-8."""
    return torch.frombuffer(bytearray(piece.encode("utf-32-le")), dtype=torch.int32)


def lines_of(decoded: str) -> Iterator[Iterator[list[str]]]:
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
