"""The folder a run writes into: made only for it if it is the default, held by it as long as it lives, and removed if
nothing was done in it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from vision_stack.ops.files import remove_scratch

LOCK_FILE = ".lock"
WRITTEN_FOLDERS = ("checkpoints", "pictures", "predictions")
_RECORDS = frozenset((LOCK_FILE, ".hydra", "multirun.yaml"))  # that are written before anything is done
_held: dict[Path, FileLock] = {}
_found: dict[Path, frozenset[str]] = {}  # what was in folders that are held before
_new: set[Path] = set()  # folders that were not there before this process


def new_run_dir(wanted: str) -> str:
    """Create the folder, or `wanted-1`, `wanted-2`, ... if another run has it, and return its name.

    Runs that start in the same second have the same name in mind; `mkdir` gives it to one of them. In the yaml files:
    `${new_run_dir:outputs/...}`.
    """
    if not is_main_process():
        return wanted  # the main process has made the folder; its name comes by another way
    path = Path(wanted)
    for number in count():
        free = path.with_name(f"{path.name}-{number}") if number else path
        note_new(free)
        free.parent.mkdir(parents=True, exist_ok=True)
        try:
            free.mkdir()
        except FileExistsError:
            _new.discard(free.absolute())
            continue
        except FileNotFoundError:  # its parent was empty, and removed by another process
            continue
        return str(free)
    raise AssertionError


OmegaConf.register_new_resolver("new_run_dir", new_run_dir, use_cache=True)


def hold(run_dir: Path) -> None:
    """Create the folder and keep other processes from running in it until this one ends, however it ends; what a
    process that was killed had half written in it is removed.

    Raises:
        ValueError: the folder cannot be created, or another process runs in it; one line.
    """
    path = run_dir.expanduser().absolute()
    if path in _held or not is_main_process():
        return
    note_new(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        found = frozenset(os.listdir(path))
        lock = FileLock(path / LOCK_FILE)
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"run_dir: another process is running in {run_dir}; wait for it, or give another run_dir"
        ) from None
    except OSError as error:
        raise ValueError(f"run_dir: cannot write into {run_dir} ({error.strerror}); give another run_dir") from None
    _held[path], _found[path] = lock, found
    remove_scratch(path, WRITTEN_FOLDERS)


def note_new(path: Path) -> None:
    """Remember which folders of a path are about to be made."""
    path = path.expanduser().absolute()
    for folder in (path, *path.parents):
        if folder.exists():
            return
        _new.add(folder)


def remove_unused() -> None:
    """Remove what was made for runs in which nothing was done: locks, Hydra's records, folders with nothing else."""
    for path, lock in list(_held.items()):
        was_made = not _new.isdisjoint((path, *path.parents))  # perhaps by Hydra, below the folder of a sweep
        found = frozenset() if was_made else _found[path]
        with contextlib.suppress(OSError):
            if not set(os.listdir(path)) - found - _RECORDS:
                lock.release()
                del _held[path]
                _remove_records(path, _RECORDS - found)
                if was_made:
                    path.rmdir()
    for folder in sorted(_new, key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(OSError):
            if not set(os.listdir(folder)) - _RECORDS and folder not in _held:
                _remove_records(folder, _RECORDS)
                folder.rmdir()


def _remove_records(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)
        with contextlib.suppress(OSError):
            (folder / name).unlink()


def is_main_process() -> bool:
    """False in the processes that a launcher started beside the first one."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return all(rank == "0" for rank in ranks)
