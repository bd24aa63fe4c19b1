"""Files that are whole at any moment, whatever ends the process or the machine that writes them."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

_SCRATCH = ".vision_stack_scratch_"  # begins the names of files and folders that are being written


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of `path` when the block ends, or vanishes when it fails.

    Args:
        durable: let content and name reach the disk before going on, so that a power cut leaves the old file or the new
            one. Takes milliseconds; without, a power cut may leave an empty file.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = scratch_beside(path)
        try:
            with scratch.open("xb") as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(scratch, path)
        except BaseException:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise
        if durable:
            sync_folder(path.parent)


def write_file(path: str | os.PathLike[str], content: bytes, *, durable: bool = True) -> None:
    """Write a whole file, in place of one that may be there. As `replacing`."""
    with replacing(path, durable=durable) as file:
        file.write(content)


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """OSErrors in the block that name no file, or a scratch file, name `path`."""
    try:
        yield
    except OSError as error:
        named = os.path.basename(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else _SCRATCH
        if error.errno is None or not named.startswith(_SCRATCH):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def sync_folder(folder: Path) -> None:
    """Let the names of a folder reach the disk; nothing where the file system has no such thing."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def scratch_beside(path: Path) -> Path:
    """A new name in the same folder, for what is being written."""
    return path.with_name(f"{_SCRATCH}{secrets.token_hex(6)}")


def remove_scratch(folder: Path, subfolders: Collection[str]) -> None:
    """Remove what processes that were killed had half written in a folder, and below these of its subfolders.

    For whoever has them to himself.
    """
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            if name.startswith(_SCRATCH):
                remove(Path(parent, name))
        if Path(parent) == folder:
            folders[:] = [name for name in folders if name in subfolders]


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, for what is to be renamed to it as a whole; what is left of it is removed at the end.

    Others may do the same at the same time: each holds a lock on its own, which ends with the process, however it ends.
    Folders that nobody holds any more are removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for entry in path.parent.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError), _locked(entry):
            remove(entry)
    while True:
        scratch = scratch_beside(path)
        scratch.mkdir()
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_locked(scratch))
            except (BlockingIOError, FileNotFoundError):  # somebody took it for a left one just before
                continue
            except OSError:  # no locks on this file system: nobody removes what is left
                pass
            try:
                yield scratch
            finally:
                remove(scratch)
            return


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """BlockingIOError where another process holds the folder, FileNotFoundError where it is gone."""
    if sys.platform == "win32":
        raise OSError("no locks on folders")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), os.stat(folder)):
            raise FileNotFoundError
        yield
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
