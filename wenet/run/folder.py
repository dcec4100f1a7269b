"""A run folder: settings, records and checkpoints, consistent even after a kill at any moment."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wenet.data import KEPT
from wenet.files import PARTIAL, WRITTEN_AGAIN, read_json, read_records, too_long, written_whole
from wenet.run.upgrade import upgraded, without_the_whole
from wenet.words import counted
from wenet_kernels import WenetError

KEPT_CHECKPOINTS = 2
OF_SESSIONS = ("threads", "versions", "data_dir")  # in `config.json`, and another in a session that goes on
FULL = (errno.ENOSPC, errno.EDQUOT)
NEW_RUN = "start a new run"  # the mend of what cannot be made again

# Left by a run that was killed before it wrote its settings; a new run may take over a folder with only these.
_UNBORN = (".lock", "checkpoint", KEPT)


class RunFolder:
    """The folder of one run, held by one process at a time.

    Layout: `config.json`, `search.jsonl` or another list of records, `best.json`, `checkpoint/NNNNNN.safetensors`, and
    for the training of one model `checkpoint/best.safetensors`.
    """

    def __init__(self, path: Path, stored: Mapping[str, Any], lock: FileLock) -> None:
        self.path = path
        self.config: Mapping[str, Any] = upgraded(stored)
        self._stored = stored  # as in the file; checkpoints carry its hash
        self._best = path / "checkpoint" / "best.safetensors"
        self._lock = lock

    @classmethod
    def create(
        cls, path: Path, config: Mapping[str, Any], keep: Callable[[Path], object] = lambda path: None
    ) -> RunFolder:
        """Start a new run.

        Args:
            keep: writes what the run cannot go on without; it is there before `config.json` is.

        Raises:
            WenetError: the folder is not empty, is in use, or cannot be written.
        """
        if os.path.exists(path) and not os.path.isdir(path):
            raise WenetError(f"{path} is a file; name another folder with --out")
        if os.path.exists(path / "config.json"):
            raise WenetError(f"{path} holds a run already; continue it with --resume {path} or name another --out")
        if _holds_files(path):
            raise WenetError(f"{path} is not empty; name another folder with --out")
        try:
            (path / "checkpoint").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise WenetError(too_long(path)) from None
            raise WenetError(f"cannot create {path}: {error.strerror}; name another folder with --out") from None
        run = cls(path, config, _lock(path))
        with _reporting_failed_write(path):
            keep(path)
        run.write_json("config.json", config)
        return run

    @classmethod
    def open(cls, path: Path, wait: float = 0, mend: str = NEW_RUN, to_read: bool = False) -> RunFolder:
        """Open a run that was stopped.

        Args:
            wait: seconds to wait for a process that holds the folder, such as another rank that reads it.
            mend: what to do if its settings cannot be read.
            to_read: whether it is only read, so that it may be where nothing can be written.

        Raises:
            WenetError: the folder holds no run, is in use, or its settings cannot be read.
        """
        if not os.path.isdir(path):
            raise WenetError(f"no run folder {path}")
        if not os.path.exists(path / "config.json"):
            raise WenetError(f"{path} has no config.json, so no run was started there; start one with --out {path}")
        lock = _lock(path, wait, to_read)
        try:
            run = cls(path, read_json(path / "config.json", mend), lock)
        except WenetError:
            lock.release()
            raise
        if lock.is_locked:
            run._sweep()
        return run

    @classmethod
    def open_or_create(cls, path: Path, config: Mapping[str, Any], is_part: bool = False) -> RunFolder:
        """Open the run with these settings, or start it. It may have begun in another session.

        Args:
            is_part: whether it lies within another, which makes it again.

        Raises:
            WenetError: as in `create` and `open`; also if the run in the folder has other settings.
        """
        mend = f"delete {path}, then go on with --resume" if is_part else NEW_RUN
        if not (path / "config.json").exists():
            if is_part and _holds_files(path):
                raise WenetError(f"{path} has lost its config.json; {mend}")
            return cls.create(path, config)
        run = cls.open(path, mend=mend)
        if _lasting(run.config, is_part) != _lasting(config, is_part):
            run.close()
            raise WenetError(f"{path} was begun with other settings; delete it to begin anew")
        return run

    def close(self) -> None:
        """Release the folder for other processes."""
        self._lock.release()

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Replace a whole file; it has one key per line."""
        lines = (f"  {json.dumps(key)}: {json.dumps(item, ensure_ascii=False)}" for key, item in value.items())
        self._write(name, ("{\n" + ",\n".join(lines) + "\n}\n").encode())

    def read_json(self, name: str, *keys: str) -> dict[str, Any]:
        """Read a file that `write_json` wrote, and that a run which goes on writes again.

        Raises:
            WenetError: it is missing, was cut short, or has not the keys.
        """
        return read_json(self.path / name, WRITTEN_AGAIN, *keys)

    def holds(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.path / name).exists()

    def append_record(self, name: str, record: Mapping[str, Any]) -> None:
        """Append a line to a list of records; it is on disk when this returns."""
        with _reporting_failed_write(self.path / name), open(self.path / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def records(self, name: str) -> list[dict[str, Any]]:
        """Read all records of a list.

        Raises:
            WenetError: it is missing, or damaged.
        """
        return read_records(self.path / name, NEW_RUN)

    def truncate_records(self, name: str, count: int) -> None:
        """Drop all records after the first `count`, which the checkpoint knows of.

        Raises:
            WenetError: the list has fewer records.
        """
        path = self.path / name
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if len(lines) < count:
            found = counted(len(lines), "record")
            raise WenetError(f"{path} has {found}, the checkpoint knows of {count}; {NEW_RUN}")
        self._write(name, b"".join(lines[:count]))

    def save_checkpoint(self, progress: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
        """Write a new checkpoint, and remove the oldest once it is complete.

        Raises:
            WenetError: the checkpoint cannot be written; earlier ones stay.
        """
        checkpoints = self.checkpoints()
        number = int(checkpoints[-1].stem) + 1 if checkpoints else 1
        path = self.path / "checkpoint" / f"{number:06d}.safetensors"
        self._write_tensors(path, progress, tensors)
        for old in checkpoints[: -(KEPT_CHECKPOINTS - 1)]:
            old.unlink()
        return path

    def load_checkpoint(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Progress and tensors of the newest checkpoint; None if the run was stopped before the first.

        Raises:
            WenetError: the checkpoint is damaged, or was written under other settings.
        """
        checkpoints = self.checkpoints()
        if not checkpoints:
            return None
        before = f"continue from {checkpoints[-2].name}" if len(checkpoints) > 1 else "start the run again"
        return self._read_tensors(checkpoints[-1], f"delete it to {before}")

    def save_best(self, progress: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Save the best state of training so far in place of the one before.

        Raises:
            WenetError: the file cannot be written; the one before stays.
        """
        self._write_tensors(self._best, progress, tensors)

    def load_best(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Load the state that `save_best` saved last.

        Raises:
            WenetError: there is none, it is damaged, or was written under other settings.
        """
        if not self._best.exists():
            raise WenetError(f"{self._best} is missing; training writes it at the end of its first epoch")
        return self._read_tensors(self._best, "train again")

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted((self.path / "checkpoint").glob("[0-9]*.safetensors"))

    def remove_checkpoints(self) -> None:
        """Remove all checkpoints of a run that is finished and recorded."""
        for path in self.checkpoints():
            path.unlink()

    def _sweep(self) -> None:
        """Remove the remains of unfinished writes, ours or the library's, but not a report in the making."""
        left = set((self.path / "checkpoint").glob("*")) - {*self.checkpoints(), self._best}
        for path in (*left, *self.path.glob(f".*.json*{PARTIAL}")):
            path.unlink()

    def _write_tensors(self, path: Path, progress: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        metadata = {"progress": json.dumps(progress), "config": self._config_hash()}
        with _reporting_failed_write(path, self._sweep), written_whole(path) as partial:
            write_tensors(partial, tensors, metadata)

    def _read_tensors(self, path: Path, mend: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors, metadata = read_tensors(path, mend)
        try:
            progress, config_hash = json.loads(metadata["progress"]), metadata["config"]
        except (KeyError, ValueError) as error:
            raise WenetError(f"{path} is damaged ({error}); {mend}") from None
        if config_hash != self._config_hash():
            raise WenetError(f"checkpoint {path} belongs to other settings than {self.path / 'config.json'}")
        return progress, tensors

    def _config_hash(self) -> str:
        return hashlib.sha256(json.dumps(self._stored, sort_keys=True).encode()).hexdigest()

    def _write(self, name: str, content: bytes) -> None:
        path = self.path / name
        with _reporting_failed_write(path), written_whole(path) as partial, open(partial, "wb") as file:
            file.write(content)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file with the permissions of the umask; the library itself lets only the owner read it."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    path.chmod(mode)


def read_tensors(path: Path, mend: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and its metadata.

    Args:
        mend: what to do if the file is damaged, behind a semicolon.

    Raises:
        WenetError: it is missing, was cut short, or is something else; the message names it.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise WenetError(f"{path} is missing; {mend}") from None
    except (SafetensorError, OSError) as error:
        raise WenetError(f"{path} is damaged ({error}); {mend}") from None


def _lasting(config: Mapping[str, Any], is_part: bool) -> dict[str, Any]:
    """What every session of a run has in common; of a part, but for what the whole may be given later."""
    lasting = {name: value for name, value in upgraded(config).items() if name not in OF_SESSIONS}
    return {**lasting, "settings": without_the_whole(lasting["settings"])} if is_part else lasting


def _holds_files(path: Path) -> bool:
    """Whether there is more in a folder than a run leaves there that was killed before it wrote its settings."""
    return os.path.isdir(path) and any(
        entry.name not in _UNBORN and entry.suffix != PARTIAL for entry in path.iterdir()
    )


@contextmanager
def _reporting_failed_write(path: Path, tidy: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Report a failed write as one line about the file, after removing the unfinished part."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        tidy()
        reason = getattr(error, "strerror", None) or error
        mend = "; make room, then go on with --resume" if _is_full(error) else ""
        raise WenetError(f"cannot write {path}: {reason}{mend}") from None


def _is_full(error: Exception) -> bool:
    """Whether a disk is full; the library of tensors says so in words alone."""
    return getattr(error, "errno", None) in FULL or any(os.strerror(each) in str(error) for each in FULL)


def _lock(path: Path, wait: float = 0, may_lack: bool = False) -> FileLock:
    """Lock a folder; if it `may_lack` the lock, one in which nothing can be written stays without."""
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise WenetError(f"{path} is in use by another process; wait for it, or name another folder") from None
    except OSError as error:
        if not (may_lack and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)):
            raise WenetError(f"cannot write in {path}: {error.strerror}") from None
    return lock
