"""Timing of alternatives side by side in one process: they take turns, medians are compared."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Times(NamedTuple):
    """Seconds of every round."""

    wall: list[float]
    cpu: list[float]  # of all threads of this process; says more than the wall clock on a machine that others use too

    @property
    def median(self) -> float:
        return statistics.median(self.wall)


def alternate(contenders: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1) -> dict[str, Times]:
    """Times of every round of each contender; in every other round they run in the opposite order.

    Each is a function without arguments that does one unit of work, on a CPU, or waits for its accelerator itself.
    """
    times = {name: Times([], []) for name in contenders}
    for turn in range(-warmup, rounds):
        gc.collect()  # not in the middle of somebody's turn
        for name in contenders if turn % 2 == 0 else reversed(list(contenders)):
            wall, cpu = time.perf_counter(), time.process_time()
            contenders[name]()
            if turn >= 0:
                times[name].wall.append(time.perf_counter() - wall)
                times[name].cpu.append(time.process_time() - cpu)
    return times


def report(title: str, times: Mapping[str, Times], reference: str, required: float | None = None) -> None:
    """Print medians, and how many times as long as `reference` each one takes, by the wall clock and on the CPU."""
    base = times[reference]
    print(f"\n{title} (medians of {len(base.wall)} rounds)")
    for name, own in times.items():
        line = f"  {name:28s} {1e3 * own.median:8.1f} ms, {min(own.wall) * 1e3:.1f} to {max(own.wall) * 1e3:.1f}"
        line += f"; CPU {1e3 * statistics.median(own.cpu):8.1f} ms"
        if name != reference:
            line += f"; ratio {own.median / base.median:.2f}"
            line += "" if required is None else f" (required: {required})"
            line += f", of CPU time {statistics.median(own.cpu) / statistics.median(base.cpu):.2f}"
        print(line, flush=True)
