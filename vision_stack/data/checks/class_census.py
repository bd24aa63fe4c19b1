"""Counts the pixels of each class over a training set, and says which classes have none."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np

from vision_stack.data.checks.issues import show
from vision_stack.data.checks.segments import SemanticRecord

_LARGE_SHARE = 0.2  # of all pixels, which is more than borders and unlabelled regions usually take
_SHOWN = 3


class ClassCensus:
    """Pixels of each value in the label maps that it is given; several threads may give them.

    Args:
        names: of the classes, by their value in the maps.
        ignored: the values that are ignored.
    """

    def __init__(self, names: Mapping[int, str], ignored: Sequence[int]) -> None:
        self.names, self.ignored = names, ignored
        self.num_maps = 0
        self._pixels = np.zeros(2**16, np.int64)
        self._lock = threading.Lock()

    def add(self, record: SemanticRecord) -> None:
        """Count a record's label map. Raises DataError where `SemanticRecord.count_values` does."""
        counts = record.count_values()
        with self._lock:
            self._pixels[: len(counts)] += counts
            self.num_maps += 1

    @property
    def missing(self) -> list[int]:
        """The values of classes without any pixel so far."""
        return [value for value in self.names if not self._pixels[value]]

    def is_suspicious(self) -> bool:
        """Whether a class seems to have no pixel because a value that means it is ignored.

        That is so where ignored values take a large share, or where no more than one of several classes is left.
        """
        missing, share = self.missing, self._ignored_share()
        return bool(missing) and share > 0 and (share >= _LARGE_SHARE or len(self.names) - len(missing) < 2)

    def finding(self) -> tuple[str, str]:
        """What is wrong with classes that have no pixel, and the remedy."""
        missing = self.missing
        shown = ", ".join(f"{show(self.names[value])} (id {value})" for value in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
        message = f"{shown}{more} {'have' if len(missing) > 1 else 'has'} no pixel in {self.num_maps:,} label maps"
        values = [value for value in self.ignored if self._pixels[value]]
        if not values:
            return message, "cannot be learnt; compare the ids of the table with the values in the label maps"
        held = ", ".join(map(str, values))
        message += f", and the ignored value {held} covers {self._ignored_share():.1%} of their pixels"
        remedy = f"if {held} is a class, give it that id in the table and set data.ignore_labels=[]"
        return message, f"{remedy}; otherwise take the class without pixels out of the table"

    def _ignored_share(self) -> float:
        return float(self._pixels[list(self.ignored)].sum() / max(self._pixels.sum(), 1))
