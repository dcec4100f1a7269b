"""The units of a text: words, characters, or the letters of words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from wenet.data.sources import KNOWN
from wenet.words import quoted
from wenet_kernels import WenetError

LEVELS = ("words", "characters")
END, UNKNOWN = "<eos>", "<unk>"
BETWEEN_WORDS = "_"  # in the character form of word-level texts
BYTE_ORDER_MARK = "\ufeff"  # some editors put it before UTF-8
LONG_LINE = 1 << 16  # characters of a line that are split into words at a time, up to the next space
PIECE = 1 << 20  # characters encoded at a time
CODE_POINTS = 0x110000  # number of code points in Unicode


class Units(ABC):
    """A way to split a text into units, including an end-of-line mark, `<eos>`."""

    level: str  # one of `LEVELS`
    format: str  # version of the encoding, which caches depend on
    added: tuple[str, ...] = (UNKNOWN,)  # units of a vocabulary that the text itself may lack

    def vocabulary(self, decoded: str, limit: int | None) -> tuple[str, ...]:
        """The units of the training text, most frequent first; with a limit, `<unk>`, `<eos>` and the most frequent.

        Raises:
            WenetError: the limit leaves no place for a unit.
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
        """Encode a text as a stream, `[tokens]`.

        Args:
            name: the name of the text, for messages.
            index: the index of each unit of the vocabulary.
            unknown: the index for all other units, if they are allowed.

        Raises:
            WenetError: a unit is outside the vocabulary, and `unknown` is None.
        """

    def check_varied(self, name: str, vocabulary: Sequence[str]) -> None:
        """Refuse a training text without a choice of units.

        Raises:
            WenetError: as above.
        """
        if len(set(vocabulary).difference(self.added)) < 2:
            unit, mend = self.level.removesuffix("s"), "name another text"
            if self.level == "words":  # it may be in a script without spaces
                mend = f"say --level characters, or {mend}"
            raise WenetError(f"{name} has a single {unit}, from which nothing can be learned; {mend}")

    def refusal(self, name: str, line: int, unit: str) -> WenetError:
        return WenetError(
            f"{name} line {line}: {quoted(unit)} does not occur in the training text; with --max-vocabulary N rare and "
            f"unseen {self.level} are read as {UNKNOWN}"
        )


class Words(Units):
    """Words between spaces, with the mark after every line."""

    level = "words"
    format = "2"
    added = (UNKNOWN, END)

    def _ranked(self, decoded: str) -> list[str]:
        """All units by frequency; ties in order of appearance."""
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
    """Unicode characters exactly as in the text; the mark stands for a line feed.

    The text is encoded in pieces, so the additional memory does not grow with it.
    """

    level = "characters"
    format = "characters 1"

    def pieces(self, decoded: str) -> Iterator[str]:
        """The text in pieces, with a line feed at the end of each line."""
        start = len(BYTE_ORDER_MARK) if decoded.startswith(BYTE_ORDER_MARK) else 0
        for first in range(start, len(decoded), PIECE):
            yield decoded[first : first + PIECE]

    def _ranked(self, decoded: str) -> list[str]:
        """All units by frequency; ties by code point."""
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
    """The character form of a word-level text (Mikolov et al. 2012): letters, with marks between words and after lines.

    `<unk>` counts as a word of five letters, and `N`, for a number, of one.
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
    """The units for a text. Published word-level texts have a customary character form; others are read as they are."""
    if level == "words":
        return WORDS
    return LettersOfWords() if dataset in KNOWN else Characters()


def _unit(character: str) -> str:
    return END if character == "\n" else character


def _code_points(piece: str) -> Tensor:
    """Code points of all characters, `[characters]` int32; decoded UTF-8 has no surrogates."""
    return torch.frombuffer(bytearray(piece.encode("utf-32-le")), dtype=torch.int32)


def lines_of(decoded: str) -> Iterator[Iterator[list[str]]]:
    """The words of each line, including blank lines; a long line comes as several lists.

    Only a line feed ends a line, because real texts contain other Unicode separators within lines.
    """
    start = len(BYTE_ORDER_MARK) if decoded.startswith(BYTE_ORDER_MARK) else 0
    while start < len(decoded):
        end = decoded.find("\n", start)
        end = len(decoded) if end < 0 else end
        yield _words(decoded, start, end)
        start = end + 1


def _words(decoded: str, start: int, end: int) -> Iterator[list[str]]:
    """The words of a line in batches, so that a line of 100 MB never has all its words in memory."""
    while end - start > LONG_LINE:
        cut = decoded.find(" ", start + LONG_LINE, end)
        if cut < 0:
            break
        yield decoded[start:cut].split()
        start = cut
    yield decoded[start:end].split()
