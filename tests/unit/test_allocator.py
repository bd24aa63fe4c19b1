"""The allocator setting in a process of its own, since it lasts as long as the process."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from vision_stack.training.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def fill():
    torch.ones(16 * 2**20)  # 64 MiB
for _ in range(8):  # it takes a few before a freed block fits the next aligned one
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how):
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's allocator")
def test_freed_memory_when_kept_is_used_again_without_page_faults():
    pages = 64 * 2**20 // 4096
    assert page_faults("kept") < pages / 10
    assert page_faults("default") > 4 * pages / 10  # what the setting is for; with large pages there would be fewer
