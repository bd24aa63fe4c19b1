"""What a process that loads data does beside loading: outlive signals, die with its parent, hand over batches."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import math
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHARED_MEMORY = Path("/dev/shm")
SPARE = 16 * 2**20  # bytes of it that are left to others, such as NCCL
MORE_SHARED_MEMORY = "give the container more shared memory (docker run --shm-size=2g), or data.num_workers=0"
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


class LoaderError(ValueError):
    """The processes that load data failed, not the data; one line with the remedy."""


def start_worker(_: int) -> None:
    """To be called first in a worker: it ends when its parent says so or dies, and does not hold the parent's memory.

    A signal from a terminal, from `timeout` or from SLURM reaches all processes; it is for the parent to decide what
    follows from it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _drop_freed_memory()
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it died before that
        os._exit(1)


def _drop_freed_memory() -> None:
    """Hand back what the parent had freed before it was forked, such as the activations of a step.

    A forked process shares the parent's pages until one of the two writes to them. The parent soon does, to what its
    allocator has kept, and would have a second copy of everything: as much memory again as a training step takes.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def available_cores() -> int:
    """That this process may use: by its affinity, and by its container's share of time where that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no cgroup, or "max"
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        cores = min(cores, max(1, quota // period))
    return cores


def free_shared_memory() -> int | None:
    """Bytes of shared memory that are free; None where it is not limited."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return None


def shared_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor where the parent can map it (see `hand_over`), so that it need not be moved there once it is filled."""
    size = math.prod(shape) * dtype.itemsize
    free = free_shared_memory()
    if not size or free is None or free < size + SPARE or not _passes_files():
        return torch.zeros(shape, dtype=dtype)  # for `hand_over`
    try:
        storage = _storage_in(SHARED_MEMORY, size)
    except OSError:  # somebody else was faster
        return torch.zeros(shape, dtype=dtype)
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape, torch.empty(shape, device="meta").stride())


def hand_over(batch: Any) -> Any:
    """Move a batch's tensors, in place, to where the parent can map them: shared memory, or, where that is full, a
    nameless file in the folder for temporary files.

    PyTorch moves them later otherwise, in a thread whose errors reach nobody, so that the parent would wait forever.

    Raises:
        LoaderError: neither has room.
    """
    for tensor in tensors_of(batch):
        if tensor.is_shared():
            continue
        free = free_shared_memory()
        if free is None or not _passes_files():
            tensor.share_memory_()
            continue
        if free >= tensor.untyped_storage().nbytes() + SPARE:
            with contextlib.suppress(RuntimeError):  # somebody else was faster
                tensor.share_memory_()
                continue
        _move_to_file(tensor)
    return batch


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
        return
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return
    for item in value:
        yield from tensors_of(item)


def _passes_files() -> bool:
    return torch.multiprocessing.get_sharing_strategy() == "file_descriptor"


def _move_to_file(tensor: Tensor) -> None:
    source = tensor.untyped_storage()
    try:
        storage = _storage_in(Path(tempfile.gettempdir()), source.nbytes())
    except OSError as error:
        raise LoaderError(
            f"data.num_workers: no room for a batch in {SHARED_MEMORY} or in {tempfile.gettempdir()} "
            f"({error.strerror}); {MORE_SHARED_MEMORY}"
        ) from None
    storage.copy_(source)
    tensor.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def _storage_in(folder: Path, size: int) -> Any:
    """Zeros in a nameless file. Raises OSError where the disk has no room."""
    new_storage: Any = torch.UntypedStorage._new_shared_fd_cpu  # type: ignore[attr-defined]  # not in its stubs
    with tempfile.TemporaryFile(dir=folder) as file:
        # Not only its length: touching a page for which there is no room would be a bus error.
        os.posix_fallocate(file.fileno(), 0, max(size, 1))
        return new_storage(os.dup(file.fileno()), size)
