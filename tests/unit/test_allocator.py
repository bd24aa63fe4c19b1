"""The allocator setting in a process of its own, since it lasts as long as the process."""

import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from vision_stack.training import memory_guard

SCRIPT = """
import resource, sys, torch
from vision_stack.training import allocator
how, size = sys.argv[1], int(sys.argv[2])
if how != "default":
    assert getattr(allocator, how)()
def fill():
    torch.ones(size * 2**18)
for _ in range(8):  # it takes a few before a freed block fits the next aligned one
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how, mebibytes):
    """Of `TENSORS` of this size, one after the other."""
    command = [sys.executable, "-c", SCRIPT, how, str(mebibytes)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's allocator")
PAGES_OF_MEBIBYTE = 2**20 // 4096
TENSORS = 16


@glibc
def test_freed_memory_when_kept_is_used_again_without_page_faults():
    pages = TENSORS * 64 * PAGES_OF_MEBIBYTE
    # Now and then an aligned block does not fit where the last one was, and one tensor comes from fresh memory.
    assert page_faults("keep_freed_memory", 64) < pages * 0.2
    assert page_faults("default", 64) > pages * 0.3  # what the setting is for; with large pages there would be fewer


@glibc
def test_freed_memory_when_returned_is_mapped_anew():
    pages = TENSORS * 16 * PAGES_OF_MEBIBYTE
    assert page_faults("return_freed_memory", 16) > 0.97 * pages
    assert page_faults("default", 16) < 0.5 * pages  # glibc has raised its limit, and keeps most of it


KEPT = """
import torch
from vision_stack.training import allocator
from vision_stack.training.memory import resident_memory
assert allocator.keep_freed_memory()
tensors = [torch.ones((8 + n % 7) * 2**18) for n in range(20)]  # of 8 to 14 MiB
del tensors[::2]
tensors = tensors[-1:]
kept = resident_memory()
assert allocator.return_freed_memory()
print(kept - resident_memory())
"""


@glibc
def test_what_has_been_kept_is_handed_back_at_once_when_memory_is_returned():
    done = subprocess.run([sys.executable, "-c", KEPT], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 150 * 2**20  # of 200 MiB


@pytest.mark.parametrize(("resident", "device", "times"), [(7, "cpu", 1), (5, "cpu", 0), (7, "meta", 0)])
def test_training_returns_memory_once_when_most_of_it_is_taken(monkeypatch, resident, device, times):
    calls = []
    monkeypatch.setattr(memory_guard, "available_memory", lambda: 10 * 2**30)
    monkeypatch.setattr(memory_guard, "resident_memory", lambda: resident * 2**30)
    monkeypatch.setattr(memory_guard, "return_freed_memory", lambda: calls.append(1))
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)), print=lambda *_: None)
    guard = memory_guard.MemoryGuard()
    guard.on_fit_start(trainer, None)
    for batch in range(20):
        guard.on_train_batch_start(trainer, None, None, batch)
    assert len(calls) == times
