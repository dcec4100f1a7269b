import hashlib
import io
import os
import random
import re
import tracemalloc
import urllib.error
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from wenet.data import batchify, corpus, load_corpus, sources
from wenet.data.sources import PublishedFile
from wenet_kernels import WenetError

from .helpers import write_text

ROOT = Path(__file__).parents[2]
LOCAL_TEXT = (os.environ.get("WENET_TEST_DATA"), os.environ.get("WENET_DATA"), ROOT.parent / "shared" / "data")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("WENET_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def shared_data() -> Path:
    for candidate in LOCAL_TEXT:
        if candidate and Path(candidate, "ptb").is_dir() and Path(candidate, "wikitext-2").is_dir():
            return Path(candidate)
    pytest.skip("needs PTB and WikiText-2 in the folder WENET_DATA")


@pytest.mark.parametrize(
    ("dataset", "train", "valid", "test", "words"),
    [("ptb", 929_589, 73_760, 82_430, 10_000), ("wikitext-2", 2_088_628, 217_646, 245_569, 33_278)],
)
def test_published_counts(dataset, train, valid, test, words, monkeypatch):
    monkeypatch.setenv("WENET_DATA", str(shared_data()))
    corpus = load_corpus(dataset)
    assert [len(part) for part in (corpus.train, corpus.valid, corpus.test)] == [train, valid, test]
    assert len(corpus.vocabulary) == words


def test_embedded_text():
    corpus = load_corpus("sotu")
    assert len(corpus.vocabulary) == 10_000
    assert [len(part) for part in (corpus.train, corpus.valid, corpus.test)] == [796_114, 72_804, 70_175]
    text = " ".join(corpus.vocabulary[i] for i in corpus.train[:4000])
    assert "house of representatives" in text
    assert {"<unk>", "<eos>", "N", "mr.", "u.s.", "'s", "n't", "well-being", "20th"} <= set(corpus.vocabulary)
    assert not any(character in text for character in ',;:!?"()[]')


def test_embedded_parts_are_in_the_vocabulary_and_of_a_size():
    corpus = load_corpus("sotu")
    total = sum(len(part) for part in (corpus.train, corpus.valid, corpus.test))
    unknown = corpus.vocabulary.index("<unk>")
    for part in (corpus.valid, corpus.test):
        assert 0.07 < len(part) / total < 0.08
        assert (part == unknown).float().mean() < 0.03


def test_a_folder(tmp_path):
    corpus = load_corpus(str(write_text(tmp_path / "text")))
    assert corpus.name == "text"
    assert set(corpus.vocabulary) == {f"w{i}" for i in range(20)} | {"<eos>"}
    lines = (tmp_path / "text" / "valid.txt").read_text().splitlines()
    words = [word for line in lines for word in [*line.split(), "<eos>"]]
    assert [corpus.vocabulary[i] for i in corpus.valid] == words
    assert corpus.valid.dtype == torch.int64


def test_vocabulary_is_in_order_of_frequency(tmp_path):
    write(tmp_path, train="b a b\nc a b\n", valid="a\n", test="b\n")
    assert load_corpus(str(tmp_path / "text")).vocabulary == ("b", "a", "<eos>", "c")


def test_max_vocabulary(tmp_path):
    write(tmp_path, train="b a b\nc a b\n", valid="a c\n", test="z b\n")
    corpus = load_corpus(str(tmp_path / "text"), max_vocabulary=4)
    assert corpus.vocabulary == ("<unk>", "<eos>", "b", "a")
    assert corpus.valid.tolist() == [3, 0, 1]
    assert corpus.test.tolist() == [0, 2, 1]
    with pytest.raises(WenetError, match="at least 3"):
        load_corpus(str(tmp_path / "text"), max_vocabulary=2)


def test_blank_lines_are_sentences_and_other_separators_are_not(tmp_path):
    write(tmp_path, train="a\u2028b\n\na b\n", valid="a\n", test="b\n")
    corpus = load_corpus(str(tmp_path / "text"))
    assert [corpus.vocabulary[i] for i in corpus.train] == ["a", "b", "<eos>", "<eos>", "a", "b", "<eos>"]


def test_a_byte_order_mark_and_dos_line_ends_are_no_words(tmp_path):
    write(tmp_path, train="\ufeffa b\r\nb a\r\n", valid="a\r\n", test="b\n")
    assert set(load_corpus(str(tmp_path / "text")).vocabulary) == {"a", "b", "<eos>"}


def test_a_text_of_one_line(tmp_path):
    """However long, with and without an end, and each word of it where it was."""
    generator = random.Random(1)
    words = [f"w{generator.randrange(300)}" for _ in range(40_000)]  # several times what is split at once
    write(tmp_path, train=" ".join(words), valid="  ".join(words[:20_000]) + "\n", test="w1 w2")
    corpus = load_corpus(str(tmp_path / "text"))
    assert [corpus.vocabulary[i] for i in corpus.train] == [*words, "<eos>"]
    assert [corpus.vocabulary[i] for i in corpus.valid] == [*words[:20_000], "<eos>"]
    assert [corpus.vocabulary[i] for i in corpus.test] == ["w1", "w2", "<eos>"]


@pytest.mark.parametrize("separator", ["\u3000", "\t", ""])
def test_a_long_line_without_spaces(tmp_path, separator):
    train = separator.join(["ab", "c"] * 40_000)
    write(tmp_path, train=f"{train}\nc\n", valid="c\n" if separator else train, test=train)
    corpus = load_corpus(str(tmp_path / "text"))
    assert [corpus.vocabulary[i] for i in corpus.train] == [*train.split(), "<eos>", "c", "<eos>"]


def test_memory_follows_the_text(tmp_path):
    """A line is never in memory as a list of all its words, which here would be some 20 MB."""
    train = "one two three four five six seven eight nine ten " * 30_000  # 1.5 MB, 2.4 MB as indices
    write(tmp_path, train=train, valid="one", test="two")
    texts = sources.read_texts(str(tmp_path / "text"), None)
    tracemalloc.start()
    corpus._encode(texts, "text", "", None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 7e6


def write(tmp_path: Path, **parts: str | bytes) -> Path:
    folder = tmp_path / "text"
    folder.mkdir(exist_ok=True)
    for split, content in parts.items():
        (folder / f"{split}.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": "a b\nb\n", "valid": "a\n"}, "needs one file like test.txt or test.tokens; found none"),
        ({"train": "", "valid": "a\n", "test": "a\n"}, "train.txt is empty"),
        (
            {"train": "a a\na\n", "valid": "a\n", "test": "a\n"},
            "train.txt has a single word, .*; say --level characters",
        ),
        ({"train": " \n\n", "valid": "a\n", "test": "a\n"}, "train.txt is empty"),
        ({"train": "a b\nb\n", "valid": b"a \xff\n", "test": "a\n"}, r"valid.txt is not UTF-8: byte 2"),
        ({"train": "a b\nb\n", "valid": "a\n", "test": "a\nb zebra\n"}, "test.txt line 2: 'zebra'.*--max-vocabulary"),
        ({"train": "a b\nb\n", "valid": "a\n", "test": 9000 * "c"}, f"test.txt line 1: '{40 * 'c'}'... does not occur"),
        ({"train": "a b\nb\n", "valid": "a\n", "test": "a\n", "train2": "a\n"}, "found train.txt, train2.txt"),
    ],
)
def test_bad_folders(tmp_path, parts, message):
    with pytest.raises(WenetError, match=message):
        load_corpus(str(write(tmp_path, **parts)))


@pytest.mark.parametrize(("dataset", "quoted"), [("a" * 5000, f"'{40 * 'a'}'...:"), ("a\0b", r"'a\x00b':")])
def test_what_cannot_be_a_path(dataset, quoted):
    with pytest.raises(WenetError, match=re.escape(f"no text {quoted}")):
        load_corpus(dataset)


def test_unreadable_folder_and_file(tmp_path, monkeypatch):
    folder = write(tmp_path, train="a b\nb\n", valid="a\n", test="a\n")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        with pytest.raises(WenetError, match=r"cannot read .*text: Permission denied; make it readable"):
            load_corpus(str(folder))
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(WenetError, match=r"cannot read .*train.txt: Permission denied"):
        load_corpus(str(folder))


def test_unknown_text():
    with pytest.raises(
        WenetError, match="no text 'nowhere': name one of sotu, ptb, wikitext-2, or a folder with train"
    ):
        load_corpus("nowhere")
    for name in ("SOTU", "PTB"):
        with pytest.raises(WenetError, match=f"no text '{name}': did you mean '{name.lower()}'?"):
            load_corpus(name)


def test_a_single_file_is_no_text(tmp_path):
    (tmp_path / "single.txt").write_text("a b\n")
    with pytest.raises(
        WenetError, match=r"single.txt is a single file, .* name a folder with train.txt, valid.txt and"
    ):
        load_corpus(str(tmp_path / "single.txt"))


@pytest.mark.parametrize(
    "names",
    [
        ("TRAIN.TXT", "Valid.txt", "test.Tokens"),
        ("latest-train.txt", "latest-valid.txt", "latest-test.txt"),
        ("my.training.txt", "my.validation.txt", "my.test.txt"),
        ("text_train_1.tokens", "text_valid_1.tokens", "text_test_1.tokens"),
    ],
)
def test_files_are_known_by_a_word_of_their_name(tmp_path, names):
    for name, content in zip(names, ("a b c\n", "a b\n", "c\n"), strict=True):
        (tmp_path / name).write_text(content)
    corpus = load_corpus(str(tmp_path))
    assert [len(part) for part in (corpus.train, corpus.valid, corpus.test)] == [4, 3, 2]


def test_corrupt_local_file(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ptb.train.txt").write_text("hello\n")
    with pytest.raises(WenetError, match=r"ptb.train.txt is corrupt: its sha256 is .* delete it, or name another"):
        load_corpus("ptb", tmp_path / "data")
    with pytest.raises(WenetError, match="is no folder"):
        load_corpus("ptb", tmp_path / "nothing")


def test_cache_is_used(tmp_path, monkeypatch):
    folder = str(write_text(tmp_path / "text"))
    first = load_corpus(folder)
    monkeypatch.setattr(corpus, "_encode", lambda *_: pytest.fail("the cache was not used"))
    again = load_corpus(folder)
    assert torch.equal(again.train, first.train)
    assert (again.vocabulary, again.fingerprint) == (first.vocabulary, first.fingerprint)


@pytest.mark.parametrize("damage", ["cut", "bit in the tokens", "nothing", "no safetensors"])
def test_a_damaged_cache_is_rebuilt(tmp_path, monkeypatch, damage):
    folder = str(write_text(tmp_path / "text"))
    first = load_corpus(folder)
    (cached,) = (tmp_path / "cache").rglob("*.safetensors")
    whole = cached.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    damaged = {"cut": whole[:50], "bit in the tokens": flipped, "nothing": b"", "no safetensors": b"x" * 999}
    cached.write_bytes(damaged[damage])
    assert torch.equal(load_corpus(folder).train, first.train)
    monkeypatch.setattr(corpus, "_encode", lambda *_: pytest.fail("the cache was not mended"))
    assert torch.equal(load_corpus(folder).train, first.train)


def test_the_fingerprint_follows_the_text_and_the_limit(tmp_path):
    folder = str(write(tmp_path, train="b a b\nc a b\n", valid="a\n", test="b\n"))
    first = load_corpus(folder).fingerprint
    assert load_corpus(folder, max_vocabulary=4).fingerprint != first
    write(tmp_path, test="a\n")
    assert load_corpus(folder).fingerprint != first


def test_a_full_disk_is_done_without_a_cache(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    assert load_corpus(str(write_text(tmp_path / "text"))).vocabulary
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_corpus(str(write_text(tmp_path / "text"))).vocabulary


class TestDownload:
    """Against addresses that this test answers itself."""

    GOOD = b"a b\nb a\n"

    @pytest.fixture
    def answers(self, monkeypatch):
        answers: dict[str, bytes] = {}
        sha256 = hashlib.sha256(self.GOOD).hexdigest()
        files = {
            split: PublishedFile(f"x.{split}.txt", sha256, (f"http://one/{split}.txt", "http://two/all.zip"))
            for split in ("train", "valid", "test")
        }
        monkeypatch.setitem(sources.PUBLISHED, "ptb", files)

        def open_address(request, timeout):
            assert request.get_header("User-agent") == "wenet"
            if request.full_url not in answers:
                raise urllib.error.URLError("no route")
            return io.BytesIO(answers[request.full_url])

        monkeypatch.setattr("urllib.request.urlopen", open_address)
        return answers

    def packed(self) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for split in ("train", "valid", "test"):
                archive.writestr(f"__MACOSX/._x.{split}.txt", b"not it")
                archive.writestr(f"folder/x.{split}.txt", self.GOOD)
        return buffer.getvalue()

    def test_second_address_and_cache(self, answers):
        answers["http://one/train.txt"] = b"<html>gone</html>"
        answers["http://two/all.zip"] = self.packed()
        corpus = load_corpus("ptb")
        answers.clear()
        assert torch.equal(load_corpus("ptb").train, corpus.train)

    def test_wrong_bytes_are_not_kept(self, answers, tmp_path):
        answers["http://one/train.txt"] = b"<html>gone</html>"
        answers["http://two/all.zip"] = b"no zip"
        with pytest.raises(WenetError, match=r"cannot download ptb .*wrong sha256.*--data-dir or WENET_DATA"):
            load_corpus("ptb")
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]

    def test_a_damaged_archive_is_no_traceback(self, answers, monkeypatch):
        def fail(*_):
            raise zlib.error("invalid code")

        answers["http://two/all.zip"] = self.packed()
        monkeypatch.setattr(sources, "_member", fail)
        with pytest.raises(WenetError, match="invalid code"):
            load_corpus("ptb")

    def test_no_network(self, answers):
        with pytest.raises(WenetError, match="no route"):
            load_corpus("ptb")


def test_damaged_installation(monkeypatch):
    monkeypatch.setattr(sources, "SOTU_SHA256", "0" * 64)
    with pytest.raises(WenetError, match="embedded sotu.tar.xz is corrupt"):
        load_corpus("sotu")


def test_batchify():
    assert batchify(torch.arange(11), 3).tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    with pytest.raises(WenetError, match="a text of length 11 is too short for 6 streams"):
        batchify(torch.arange(11), 6)
