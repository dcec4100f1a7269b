import hashlib
import io
import os
import urllib.error
import zipfile
from pathlib import Path

import pytest
import torch

from wenet.data import batchify, load_corpus, sources
from wenet.data.sources import PublishedFile
from wenet_kernels import WenetError

from .helpers import write_text


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("WENET_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def shared_data() -> Path:
    for candidate in (os.environ.get("WENET_TEST_DATA"), Path(__file__).parents[3] / "shared" / "data"):
        if candidate and Path(candidate, "ptb").is_dir():
            return Path(candidate)
    pytest.skip("needs PTB and WikiText-2 in the folder WENET_TEST_DATA")


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
    assert [len(part) for part in (corpus.train, corpus.valid, corpus.test)] == [830_436, 60_615, 49_777]
    text = " ".join(corpus.vocabulary[i] for i in corpus.train[:4000])
    assert "house of representatives" in text
    assert not any(character in text for character in ',;:!?"()[]')


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
        ({"train": " \n\n", "valid": "a\n", "test": "a\n"}, "train.txt is empty"),
        ({"train": "a b c\n", "valid": "a\n", "test": "a\n"}, "train.txt has a single line"),
        ({"train": "a b\nb\n", "valid": b"a \xff\n", "test": "a\n"}, r"valid.txt is not UTF-8: byte 2"),
        ({"train": "a b\nb\n", "valid": "a\n", "test": "a\nb zebra\n"}, "test.txt line 2: 'zebra'.*--max-vocabulary"),
        ({"train": "a b\nb\n", "valid": "a\n", "test": "a\n", "train2": "a\n"}, "found train.txt, train2.txt"),
    ],
)
def test_bad_folders(tmp_path, parts, message):
    with pytest.raises(WenetError, match=message):
        load_corpus(str(write(tmp_path, **parts)))


def test_unknown_text():
    with pytest.raises(WenetError, match="no text 'nowhere': name one of sotu, ptb, wikitext-2, or a folder"):
        load_corpus("nowhere")


def test_corrupt_local_file(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ptb.train.txt").write_text("hello\n")
    with pytest.raises(WenetError, match=r"ptb.train.txt is corrupt: its sha256 is .* delete it, or name another"):
        load_corpus("ptb", tmp_path / "data")
    with pytest.raises(WenetError, match="is no folder"):
        load_corpus("ptb", tmp_path / "nothing")


def test_cache_is_used_and_a_damaged_one_rebuilt(tmp_path, monkeypatch):
    folder = str(write_text(tmp_path / "text"))
    corpus = load_corpus(folder)
    (cached,) = (tmp_path / "cache").rglob("*.safetensors")
    module = __import__("wenet.data.corpus", fromlist=["_encode"])
    with monkeypatch.context() as patch:
        patch.setattr(module, "_encode", lambda *_: pytest.fail("the cache was not used"))
        assert torch.equal(load_corpus(folder).train, corpus.train)
    cached.write_bytes(cached.read_bytes()[:50])
    assert torch.equal(load_corpus(folder).train, corpus.train)
    assert load_corpus(folder, max_vocabulary=9).fingerprint != corpus.fingerprint


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

    def test_no_network(self, answers):
        with pytest.raises(WenetError, match="no route"):
            load_corpus("ptb")


def test_damaged_installation(monkeypatch):
    monkeypatch.setattr(sources, "SOTU_SHA256", "0" * 64)
    with pytest.raises(WenetError, match="embedded sotu.tar.xz is corrupt"):
        load_corpus("sotu")


def test_batchify():
    assert batchify(torch.arange(11), 3).tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    with pytest.raises(WenetError, match="11 tokens is too short for 6 streams"):
        batchify(torch.arange(11), 6)
