"""A data loader that never waits forever, and whose errors take one line, whichever process they come from."""

from __future__ import annotations

import atexit
import contextlib
import errno
import math
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader, get_worker_info

from vision_stack.data.checks.issues import DataError
from vision_stack.data.dataset import SegmentationDataset, collate
from vision_stack.data.sampler import EpochSampler
from vision_stack.data.workers import (
    MORE_SHARED_MEMORY,
    SHARED_MEMORY,
    SPARE,
    LoaderError,
    free_shared_memory,
    hand_over,
    shared_zeros,
    start_worker,
    tensors_of,
)
from vision_stack.structures import Batch, Sample

STUCK_AFTER_S = 1.0  # workers that have given nothing for so long are not asked to end, but killed


class BatchLoader(DataLoader[Any]):
    """Gives `Batch`es in a sampler's order. With workers, images are prepared ahead in other processes.

    One pass is one epoch, or the rest of one, however much of it is used; the next pass begins with the next epoch.

    Attributes:
        on_wait: called with True when a batch is asked for, and with False once it is there. What is raised in between
            reaches whoever asked.

    Raises:
        DataError: (iterating) an image or its annotation cannot be read.
        LoaderError: (iterating) a worker was killed, or gave nothing for `timeout` seconds.
    """

    batch_sampler: EpochSampler
    on_wait: Callable[[bool], object] | None = None
    _said_small: ClassVar[bool] = False

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        free = free_shared_memory() if self.num_workers else None
        with self._waiting(_workers_of(self._iterator)):  # until those that stay from the last pass have finished it
            batches = super().__iter__()
        _Deaths.watch()
        _workers.update(_workers_of(batches))
        epoch, _ = self.batch_sampler.position
        self.batch_sampler.set_position(epoch + 1)
        return self._batches(batches, free)

    def _batches(self, batches: Iterator[Batch], free: int | None) -> Iterator[Batch]:
        while True:
            with self._waiting(_workers_of(batches)):
                batch = next(batches, None)
            if batch is None:
                return
            if free is not None:
                self._compare(batch, free)
                free = None
            yield batch

    @contextlib.contextmanager
    def _waiting(self, workers: Sequence[BaseProcess]) -> Iterator[None]:
        if self.on_wait is not None:
            self.on_wait(True)
        began = time.monotonic()
        try:
            with _Deaths.raised(), self._killing_late(workers):
                yield
        except (DataError, LoaderError) as error:  # from a worker it comes with a traceback's text around it
            name = type(error).__name__
            raise type(error)(str(error).rpartition(f"{name}: ")[2].strip()) from None
        except (RuntimeError, OSError, EOFError) as error:
            if (text := self._explain(error, workers)) is None:
                raise
            _kill(workers)
            raise LoaderError(text) from None
        except Exception:
            raise
        except BaseException:  # a signal
            if time.monotonic() - began > STUCK_AFTER_S:
                _kill(workers)
            raise
        if self.on_wait is not None:
            self.on_wait(False)

    @contextlib.contextmanager
    def _killing_late(self, workers: Sequence[BaseProcess]) -> Iterator[None]:
        """What PyTorch's timeout does not cover: a worker that stops in the middle of handing over a batch."""
        if not workers:
            yield
            return
        late = threading.Event()

        def give_up() -> None:
            late.set()
            _kill(workers)

        timer = threading.Timer(self.timeout + STUCK_AFTER_S, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (OSError, EOFError, RuntimeError):
            if late.is_set():
                raise RuntimeError("DataLoader timed out") from None
            raise
        finally:
            timer.cancel()

    def _explain(self, error: Exception, workers: Sequence[BaseProcess]) -> str | None:
        """A line about an error that is the workers'; None about another."""
        message = str(error)
        if "DataLoader timed out" in message:
            return (
                f"data.loader_timeout: no batch came for {self.timeout:g} s; see whether the disk that holds the data "
                "answers, or give a higher data.loader_timeout"
            )
        fewer = f"use fewer of them (data.num_workers={self.num_workers // 2})"
        if isinstance(error, ConnectionError | EOFError):  # in the middle of a message: it is dying
            for worker in workers:
                worker.join(1.0)
        codes = [worker.exitcode for worker in workers if worker.exitcode is not None]
        if -signal.SIGKILL in codes:
            return (
                "data.num_workers: a process that loads data was killed, most likely because memory ran out; "
                f"{fewer}, a smaller data.batch_size, or data.cache=none"
            )
        if codes:
            how = f"signal {-codes[0]}" if codes[0] < 0 else f"exit code {codes[0]}"
            return f"data.num_workers: a process that loads data crashed ({how}); data.num_workers=0 shows where"
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.EMFILE or re.search(r"Too many open files|received \d+ items of ancdata", message):
            return f"data.num_workers: too many open files; raise the limit (ulimit -n 65536), or {fewer}"
        if number == errno.ENOSPC or "shared memory" in message:
            return f"data.num_workers: {SHARED_MEMORY} is full; {MORE_SHARED_MEMORY}"
        if number in (errno.ENOMEM, errno.EAGAIN):
            return f"data.num_workers: cannot start {self.num_workers} processes ({os.strerror(number)}); {fewer}"
        return None

    def _compare(self, batch: Batch, free: int) -> None:
        """Say it, once, if batches do not fit in shared memory."""
        in_flight = self.num_workers * (self.prefetch_factor or 1) + 1
        needed = in_flight * sum(tensor.nbytes for tensor in tensors_of(batch))
        if needed > free - SPARE and not BatchLoader._said_small and self.batch_sampler.rank == 0:
            BatchLoader._said_small = True
            print(
                f"note: {SHARED_MEMORY} has {free / 2**20:,.0f} MB free and batches need {math.ceil(needed / 2**20):,} "
                f"MB: the rest is passed through files in {tempfile.gettempdir()}, which is slower; "
                f"{MORE_SHARED_MEMORY}",
                flush=True,
            )


def make_loader(
    dataset: SegmentationDataset, sampler: EpochSampler, *, size_divisor: int, num_workers: int, timeout: float = 600
) -> BatchLoader:
    """The loader of a data set. PyTorch limits each worker to one thread by itself."""
    return BatchLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=_Collate(size_divisor, dataset.transform.crop_size, dataset.mask_stride or 1),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        timeout=timeout if num_workers else 0,
        worker_init_fn=start_worker,
        # Its own, so that making an iterator takes nothing from the global generator: a resumed run makes fewer.
        generator=torch.Generator(),
    )


class _Collate:
    def __init__(self, size_divisor: int, crop_size: int | None, mask_stride: int) -> None:
        self.options = (size_divisor, crop_size, mask_stride)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        if get_worker_info() is None:
            return collate(samples, *self.options)
        return hand_over(collate(samples, *self.options, new_zeros=shared_zeros))


class _Deaths:
    """Handler of SIGCHLD around PyTorch's own, which raises the death of a worker wherever the main thread happens to
    be, in the middle of a step too. Here it is raised where a batch is waited for, between two steps."""

    waiting = False

    def __init__(self, report: Callable[[int, FrameType | None], object]) -> None:
        self.report = report
        self.unreported = False

    @classmethod
    def watch(cls) -> None:
        """Take the place of PyTorch's handler, if it has been set."""
        handler = cls._current()
        if callable(handler) and not isinstance(handler, cls) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, cls(handler))

    @staticmethod
    def _current() -> Any:
        return signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None  # not on Windows

    @classmethod
    @contextlib.contextmanager
    def raised(cls) -> Iterator[None]:
        """In the block, deaths are raised; first of all those that happened before it."""
        cls.waiting = True
        try:
            handler = cls._current()
            if isinstance(handler, cls) and handler.unreported:
                handler(signal.SIGCHLD, None)
            yield
        finally:
            cls.waiting = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.unreported = not self.waiting
        if self.waiting:
            self.report(signum, frame)


_workers: WeakSet[BaseProcess] = WeakSet()


def _workers_of(batches: Any) -> Sequence[BaseProcess]:
    return getattr(batches, "_workers", ())


def _kill(workers: Sequence[BaseProcess] | WeakSet[BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()


# They ignore SIGTERM, after which `multiprocessing` waits for one that is stuck, whenever that ends.
atexit.register(_kill, _workers)
