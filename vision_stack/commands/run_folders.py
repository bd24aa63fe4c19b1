"""The folder a run writes into: made only for it if it is the default, held by it as long as it lives."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from vision_stack.ops.files import remove_scratch

LOCK_FILE = ".lock"
WRITTEN_FOLDERS = ("checkpoints", "pictures", "predictions")
_held: dict[Path, FileLock] = {}


def new_run_dir(wanted: str) -> str:
    """Create the folder, or `wanted-1`, `wanted-2`, ... if another run has it, and return its name.

    Runs that start in the same second have the same name in mind; `mkdir` gives it to one of them. In the yaml files:
    `${new_run_dir:outputs/...}`.
    """
    if not is_main_process():
        return wanted  # the main process has made the folder; its name comes by another way
    path = Path(wanted)
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in count():
        free = path.with_name(f"{path.name}-{number}") if number else path
        try:
            free.mkdir()
        except FileExistsError:
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
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / LOCK_FILE)
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"run_dir: another process is running in {run_dir}; wait for it, or give another run_dir"
        ) from None
    except OSError as error:
        raise ValueError(f"run_dir: cannot write into {run_dir} ({error.strerror}); give another run_dir") from None
    _held[path] = lock
    remove_scratch(path, WRITTEN_FOLDERS)


def is_main_process() -> bool:
    """False in the processes that a launcher started beside the first one."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return all(rank == "0" for rank in ranks)
