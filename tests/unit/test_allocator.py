"""The allocator setting in a process of its own, since it lasts as long as the process."""

import platform
import subprocess
import sys

import pytest

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
for _ in range(4):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how, mebibytes):
    """Of four tensors of this size, one after the other."""
    command = [sys.executable, "-c", SCRIPT, how, str(mebibytes)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's allocator")
PAGES_OF_MEBIBYTE = 2**20 // 4096


@glibc
def test_freed_memory_when_kept_is_used_again_without_page_faults():
    pages = 64 * PAGES_OF_MEBIBYTE
    assert page_faults("keep_freed_memory", 64) < pages / 10
    assert page_faults("default", 64) > 4 * pages / 10  # what the setting is for; with large pages there would be fewer


@glibc
def test_freed_memory_when_returned_is_mapped_anew():
    pages = 16 * PAGES_OF_MEBIBYTE
    assert page_faults("return_freed_memory", 16) > 3.9 * pages  # four tensors
    assert page_faults("default", 16) < 2 * pages  # glibc has raised its limit, and keeps most of it
