"""Files that are written whole or not at all, locks, and paths that a user gives."""

import contextlib
import errno
import functools
import hashlib
import os
import secrets
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import filelock
from psutil import pid_exists as is_alive

from hardtrain.errors import HardtrainError, ParameterError, StoreError

Content = bytes | Callable[[BinaryIO], None]
_DAY = 86_400  # seconds
_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


def _host() -> str:
    """Where a process number means something: the host, its start and its process namespace, since
    containers share names of hosts and numbers of processes."""
    place = ""
    with contextlib.suppress(OSError):
        place = Path("/proc/sys/kernel/random/boot_id").read_text()
        place += os.readlink("/proc/self/ns/pid")
    digest = hashlib.sha256(place.encode()).hexdigest()[:8]
    return f"{socket.gethostname() or 'host'}-{digest}"


_HOST = _host()


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


def write_atomically(path: str | os.PathLike, content: Content) -> None:
    """Write ``content`` (bytes, or a function that writes into an open file) to ``path``.

    A temporary file beside ``path`` is written, flushed to the disk and renamed, then the
    folder is flushed: after a crash at any moment ``path`` holds the old content or the new.

    Raises:
        StoreError: no permission, no space, no such device; the text names ``path``.
    """
    write_together({Path(path): content})


def write_together(contents: Mapping[Path, Content]) -> None:
    """Write the files of one folder, each as `write_atomically` does, none before all lie on the
    disk: a full disk changes none of them. They are renamed in their order."""
    partials: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            # a name of its own for each thread and container; no link is followed ("x")
            token = secrets.token_hex(4)
            partials[path] = path.with_name(f".{path.name}.{token}.{_HOST}.{os.getpid()}.partial")
            with store_errors(_writing(path, content)):
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(partials[path], "xb") as file:
                    if callable(content):
                        content(file)
                    else:
                        file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        for path, partial in partials.items():
            with store_errors(_writing(path, contents[path])):
                os.replace(partial, path)
        for path in list(contents)[-1:]:
            with store_errors(_writing(path, contents[path])):
                sync_folder(path.parent)
    finally:
        for partial in partials.values():
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def _writing(path: Path, content: Content) -> str:
    return f"write {path}" + (f" ({len(content):,} bytes)" if isinstance(content, bytes) else "")


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, on systems and file systems that can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED | {errno.EINVAL, errno.EBADF}:
            raise
        _warn_once(folder, "that flushes no folders: a power cut may undo the last files written")
    finally:
        os.close(handle)


def remove_stale_partials(folder: Path) -> None:
    """Delete the temporary files in ``folder`` that dead processes of this host left, and those of
    anyone that are a day old."""
    for partial in folder.glob(".*.*.partial"):
        with contextlib.suppress(OSError):
            left_by, _, pid = partial.name.removesuffix(".partial").rpartition(".")
            if not pid.isdigit():
                continue  # none of ours
            dead = left_by.endswith(f".{_HOST}") and not is_alive(int(pid))
            if dead or time.time() - partial.lstat().st_mtime > _DAY:
                partial.unlink(missing_ok=True)


# --- locks -----------------------------------------------------------------------------------


def lock(path: Path) -> Any:
    """A lock of the kernel, freed by its holder's death: ``with lock(path):``, or its
    ``acquire(blocking=False)``, which raises ``filelock.Timeout`` where another holds it.

    On a file system without locks it holds nobody off, and a warning says so once.

    Raises:
        StoreError: ``path`` cannot be made or locked.
    """
    with store_errors(f"lock {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not has_locks(path.parent):
            return _NoLock()
    return _KernelLock(path, mode=0o666)  # a store may be shared with other users


class _KernelLock(filelock.FileLock):
    def acquire(self, *args: Any, **options: Any) -> Any:
        try:
            return super().acquire(*args, **options)
        except filelock.Timeout:
            raise
        except OSError as error:
            raise StoreError(f"could not lock {self.lock_file}: {error.strerror}") from error


class _NoLock(contextlib.AbstractContextManager):
    def acquire(self, blocking: bool = True) -> "_NoLock":
        return self

    def release(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


@functools.lru_cache(maxsize=256)
def has_locks(folder: Path) -> bool:
    """Whether the kernel locks files in ``folder``; a warning says once if not."""
    try:
        import fcntl
    except ImportError:  # Windows, whose locks need no probe
        return True
    probe = folder / f".probe.{secrets.token_hex(4)}.{_HOST}.{os.getpid()}.partial"
    try:
        with open(os.open(probe, os.O_RDWR | os.O_CREAT | os.O_EXCL), "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _warn_once(folder, "without locks: of two programs at once here, one may train again what "
                           "the other trains")  # fmt: skip
        return False
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return True


_warned: set[tuple[int, str]] = set()  # of which disks, of what


def _warn_once(folder: Path, lacking: str) -> None:
    about = folder.stat().st_dev, lacking
    if about not in _warned:
        _warned.add(about)
        warnings.warn(f"{folder} lies on a file system {lacking}", stacklevel=4)


# --- paths -----------------------------------------------------------------------------------


def user_path(name: str, value: str | os.PathLike) -> Path:
    """A path that a user gave as ``name``, absolute, ``~`` resolved.

    Raises:
        ParameterError: a text that can be no path here.

    Example:
        >>> user_path("out_dir", "~nobody-here/x")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        hardtrain.errors.ParameterError: out_dir = '~nobody-here/x' can be no path: Could not ...
    """
    if not isinstance(value, (str, os.PathLike)):
        raise ParameterError(f"{name} = {value!r} is {type(value).__name__}, not a path")
    shown = repr(os.fspath(value))
    shown = shown if len(shown) < 80 else f"{shown[:80]}…"
    try:
        path = Path(value).expanduser().absolute()
        if longest := [part for part in path.parts if len(os.fsencode(part)) > 255]:
            raise ValueError(f"a name of {len(longest[0])} characters is too long")
        os.lstat(path)  # the file system's own word on it
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: no such user, no home
        why = error.strerror if isinstance(error, OSError) else error
        raise ParameterError(f"{name} = {shown} can be no path: {why}") from error
    return path


def project_root() -> Path:
    """The repository's root: the first folder upwards of here or of the working folder that
    holds both ``notebooks`` and ``pyproject.toml``; else the working folder."""
    for start in (Path(__file__).resolve(), Path.cwd()):
        for folder in (start, *start.parents):
            if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file():
                return folder
    return Path.cwd()
