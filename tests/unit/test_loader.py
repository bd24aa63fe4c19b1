"""The processes that load data: how batches come from them, and what happens when they fail."""

import errno
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_dataset import config, equal, train_batches, write_split

from vision_stack.data import loader as loader_module
from vision_stack.data import workers
from vision_stack.data.datamodule import build_datamodule
from vision_stack.data.loader import BatchLoader
from vision_stack.data.workers import LoaderError, start_worker, tensors_of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_split(folder, "train")
    write_split(folder, "val")
    return folder


def make_loader(root: Path, **options: Any) -> BatchLoader:
    return build_datamodule(config(root, num_workers=2, **options)).train_dataloader()


def processes(loader: BatchLoader) -> list[Any]:
    return list(loader._iterator._workers)  # type: ignore[union-attr]


FORK = """
import os, torch
from vision_stack.data.workers import start_worker
from vision_stack.training.allocator import keep_freed_memory

def resident():  # MiB; a fork has no pages of files at first
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) // 1024

assert keep_freed_memory()
before = resident()
steps = [torch.ones(25 * 2**18) for _ in range(8)]  # 200 MiB
del steps
kept = resident() - before
if os.fork() == 0:
    start_worker(0)
    print(kept, resident() - before, flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a function of glibc")
def test_worker_does_not_hold_memory_that_its_parent_has_freed() -> None:
    result = subprocess.run([sys.executable, "-c", FORK], check=True, capture_output=True, text=True)
    kept, held = map(int, result.stdout.split())
    assert kept > 150
    assert held < 50


def no_memory(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (workers, loader_module):  # workers are forked from here
        monkeypatch.setattr(module, "free_shared_memory", lambda: free)
    monkeypatch.setattr(BatchLoader, "_said_small", False)


@pytest.mark.parametrize("free", [0, workers.SPARE + 50_000])
def test_batches_that_do_not_fit_in_shared_memory_come_through_files_and_are_the_same(
    free: int, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = train_batches(build_datamodule(config(root)), epochs=2)
    no_memory(free, monkeypatch)
    found = [batch for loader in [make_loader(root)] for _ in range(2) for batch in loader]
    assert all(equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(tensor.is_shared() for tensor in tensors_of(found))
    (note,) = capsys.readouterr().out.splitlines()
    assert note.startswith(f"note: /dev/shm has {free / 2**20:.0f} MB free and batches need 1 MB")
    assert "--shm-size" in note


def test_tensors_move_to_a_file_with_shape_and_stride(monkeypatch: pytest.MonkeyPatch) -> None:
    no_memory(0, monkeypatch)
    tensors = [torch.rand(2, 3, 4).permute(2, 0, 1), torch.rand(9)[3:5], torch.zeros(0, 4), torch.tensor(3)]
    copies = [(tensor.clone(), tensor.stride()) for tensor in tensors]
    workers.hand_over({"a": tensors[:2], "b": (tensors[2], {"c": tensors[3]})})
    for tensor, (copy, stride) in zip(tensors, copies, strict=True):
        assert tensor.is_shared()
        assert torch.equal(tensor, copy)
        assert tensor.stride() == stride


def test_no_room_for_batches_anywhere_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    no_memory(0, monkeypatch)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(LoaderError, match=r"^data\.num_workers: no room .* \(No space left on device\); give .*=0$"):
        next(iter(make_loader(root)))


def test_killed_worker_is_raised_at_the_next_wait_and_nowhere_else(root: Path) -> None:
    loader = make_loader(root)
    next(iter(loader))
    for process in processes(loader):
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(0.5)  # PyTorch's own handler of SIGCHLD would raise here
    with pytest.raises(LoaderError, match=r"was killed, most likely because memory ran out; use fewer .*num_workers=1"):
        list(loader)


def test_worker_that_crashes_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "hand_over", lambda batch: os._exit(3))
    monkeypatch.setattr(loader_module, "hand_over", lambda batch: os._exit(3))
    with pytest.raises(LoaderError, match=r"crashed \(exit code 3\); data\.num_workers=0 shows where"):
        list(make_loader(root))


def test_wait_for_stuck_workers_ends_after_the_timeout(root: Path) -> None:
    loader = make_loader(root, loader_timeout=1)
    batches = iter(loader)
    next(batches)
    for process in processes(loader):
        os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(LoaderError, match=r"^data\.loader_timeout: no batch came for 1 s; .* higher data\.loader_time"):
        [batch for _ in range(3) for batch in loader]
    assert all(process.exitcode == -signal.SIGKILL for process in processes(loader) if process.join(5) is None)


def test_on_wait_says_when_a_batch_is_waited_for_and_its_errors_reach_the_one_who_waits(root: Path) -> None:
    loader = build_datamodule(config(root)).train_dataloader()
    calls: list[bool | str] = []
    loader.on_wait = calls.append
    for _ in loader:
        calls.append("batch")
    assert calls == [True, False, *[True, False, "batch"] * 2, True, False]

    def stop(waiting: bool) -> None:
        raise KeyboardInterrupt

    loader.on_wait = stop
    with pytest.raises(KeyboardInterrupt):
        next(iter(loader))


def test_worker_outlives_signals_and_dies_with_its_parent() -> None:
    reading, writing = os.pipe()
    parent = os.fork()
    if not parent:
        if os.fork():
            signal.pause()
        try:
            start_worker(0)
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            os.write(writing, b"alive")
            time.sleep(60)
        finally:
            os._exit(0)
    os.close(writing)
    try:
        assert os.read(reading, 5) == b"alive"
    finally:
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
    assert select.select([reading], [], [], 5)[0]  # at its end: nobody is left who could write
    assert os.read(reading, 1) == b""
    os.close(reading)
