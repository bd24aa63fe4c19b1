"""What a process that loads data does beside loading: outlive signals, die with its parent, hand over batches."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
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


def free_shared_memory() -> int | None:
    """Bytes of shared memory that are free; None where it is not limited."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return None


def hand_over(batch: Any) -> Any:
    """Move a batch's tensors, in place, to where the parent can map them: shared memory, or, where that is full, a
    nameless file in the folder for temporary files.

    PyTorch moves them later otherwise, in a thread whose errors reach nobody, so that the parent would wait forever.

    Raises:
        LoaderError: neither has room.
    """
    for tensor in tensors_of(batch):
        free = free_shared_memory()
        if free is None or torch.multiprocessing.get_sharing_strategy() != "file_descriptor":
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


def _move_to_file(tensor: Tensor) -> None:
    source = tensor.untyped_storage()
    new_storage: Any = torch.UntypedStorage._new_shared_fd_cpu  # type: ignore[attr-defined]  # not in its stubs
    try:
        with tempfile.TemporaryFile() as file:
            # Not only its length: writing to a page for which the disk has no room would be a bus error.
            os.posix_fallocate(file.fileno(), 0, max(source.nbytes(), 1))
            storage = new_storage(os.dup(file.fileno()), source.nbytes())
    except OSError as error:
        raise LoaderError(
            f"data.num_workers: no room for a batch in {SHARED_MEMORY} or in {tempfile.gettempdir()} "
            f"({error.strerror}); {MORE_SHARED_MEMORY}"
        ) from None
    storage.copy_(source)
    tensor.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
