"""Settings of the C library's memory allocator: one makes training on CPUs faster, one keeps evaluation small."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Mapping

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # glibc's malloc.h
_MAPPINGS = 2**16  # glibc's own limit of how many allocations are mapped


def keep_freed_memory() -> bool:
    """Let the process keep memory that tensors have freed, instead of handing it back and asking for it again.

    By default glibc maps every allocation above 32 MiB afresh, and the kernel fills it with zeros page by page, in each
    training step again. To be called before the first large tensor. The price is some fragmentation: a higher peak
    where tensors come in many sizes. Does nothing where the C library is another, and concerns CPU tensors only.

    Returns:
        Whether it has taken effect.
    """
    return _set({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1})


def return_freed_memory() -> bool:
    """Let the process hand back the memory of freed tensors of a MiB or more at once.

    By default glibc raises that limit as it goes, up to 32 MiB, and with images of many sizes, as in evaluation, ever
    new sizes are fitted between what the heap already holds, so that memory creeps up with the number of images.

    Returns:
        Whether it has taken effect.
    """
    done = _set({_M_MMAP_MAX: _MAPPINGS, _M_TRIM_THRESHOLD: 2**20, _M_MMAP_THRESHOLD: 2**20})
    if done:
        ctypes.CDLL(None).malloc_trim(0)  # what has been freed so far
    return done


def _set(options: Mapping[int, int]) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all([mallopt(option, value) for option, value in options.items()])
