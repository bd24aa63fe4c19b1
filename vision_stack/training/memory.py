"""Memory of this process on the host."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

_CGROUPS = (  # limit, use, and in which line of which file the part of it that is cached files
    ("memory.max", "memory.current", "file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_cache"),
)


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process has and could get: of the machine, or of its container where that is less.

    None where the system does not say. `root` is where `proc` and `sys` are.
    """
    limits = []
    with contextlib.suppress(OSError, KeyError):
        limits.append(_table(root / "proc/meminfo")["MemAvailable:"] * 1024 + resident_memory())
    for limit, use, cached in _CGROUPS:
        folder = root / "sys/fs/cgroup"
        with contextlib.suppress(OSError, KeyError, ValueError):  # not there, or "max"
            most, used = (int((folder / name).read_text()) for name in (limit, use))
            files = _table((folder / limit).parent / "memory.stat")[cached]
            limits.append(most - used + files + resident_memory())
    if resource is not None:
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        limits += [soft] if soft != resource.RLIM_INFINITY else []
    return min(limits, default=None)


def reset_peak_memory() -> None:
    """Begin to look for a new peak, where the system can (Linux); else the peak is that of the process so far."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Most bytes that the process had in memory at once, since `reset_peak_memory`; 0 where the system does not say."""
    with contextlib.suppress(OSError, KeyError):
        return _table(Path("/proc/self/status"))["VmHWM:"] * 1024
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_memory() -> int:
    """Bytes of this process in memory; OSError where the system does not say."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _table(path: Path) -> dict[str, int]:
    """The lines `name number ...` of a file."""
    words = (line.split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdecimal()}
