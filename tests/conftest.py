"""Shared by all tests: one thread each (they run in parallel), no network, a cache of their own."""

import os
import signal

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs a download must fail at once, not after retries
os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Generated data goes into a folder of this test session."""
    os.environ["VISION_STACK_CACHE"] = str(tmp_path_factory.getbasetemp().parent / "vision_stack_cache")


# Shells ignore SIGINT for what runs in their background, and children inherit that: tests of Ctrl-C would wait in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
