"""Files that are written whole or not at all."""

import contextlib
import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from hardtrain.errors import HardtrainError, StoreError

_HOST = socket.gethostname() or "host"


def sha256(content: bytes) -> str:
    """Hex digest of ``content``."""
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def store_errors(failed: str) -> Iterator[None]:
    """An ``OSError`` inside becomes a ``StoreError`` that says what failed, and why."""
    try:
        yield
    except HardtrainError:
        raise
    except OSError as error:
        raise StoreError(f"could not {failed}: {error.strerror or error}") from error


def write_atomically(path: str | os.PathLike, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write ``content`` (bytes, or a function that writes into an open file) to ``path``.

    A temporary file beside ``path`` is written, flushed to the disk and renamed, then the
    folder is flushed: after a crash at any moment ``path`` holds the old content or the new.

    Raises:
        StoreError: no permission, no space, no such device; the text names ``path``.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.partial")
    size = f" ({len(content):,} bytes)" if isinstance(content, bytes) else ""
    try:
        with store_errors(f"write {path}{size}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, on systems that can open a folder."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_stale_partials(folder: Path) -> None:
    """Delete the temporary files in ``folder`` that dead processes of this host left."""
    for partial in folder.glob(f".*.{_HOST}.*.partial"):
        pid = partial.name.rsplit(".", 2)[1]
        if pid.isdigit() and not _is_alive(int(pid)):
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # os.kill would end the process there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def project_root() -> Path:
    """The repository's root: the first folder upwards of here or of the working folder that
    holds both ``notebooks`` and ``pyproject.toml``; else the working folder."""
    for start in (Path(__file__).resolve(), Path.cwd()):
        for folder in (start, *start.parents):
            if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file():
                return folder
    return Path.cwd()
