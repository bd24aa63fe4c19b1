"""How much to do at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def tile_elements(device: torch.device, on_cpu: int) -> int:
    """How many floats a temporary may hold: what measured best for a CPU's cache; enough to fill an accelerator."""
    return on_cpu if device.type == "cpu" else 2**24


def slices(length: int, step: int) -> Iterator[slice]:
    """Parts of at most `step`, one after the other."""
    return (slice(start, start + step) for start in range(0, length, step))
