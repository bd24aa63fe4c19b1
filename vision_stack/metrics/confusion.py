"""What is taken for what: counts by true and found class, as many as there are nonzero ones."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Confusion(NamedTuple):
    """The nonzero cells of a confusion matrix over K classes, which fit in memory for any K. Index K is "nothing"."""

    true: NDArray[np.int64]  # [N]
    found: NDArray[np.int64]  # [N]
    counts: NDArray[np.int64]  # [N] objects or pixels

    def __bool__(self) -> bool:
        """Whether anything was counted."""
        return len(self.counts) > 0

    @classmethod
    def sum(cls, parts: Iterable[Confusion], num_classes: int) -> Confusion:
        """One for all of several images, sorted by true and found class."""
        nothing = np.zeros(0, np.int64)
        columns = zip(cls(nothing, nothing, nothing), *parts, strict=True)
        true, found, counts = (np.concatenate(column) for column in columns)
        cells, where = np.unique(true * (num_classes + 1) + found, return_inverse=True)
        total = np.zeros(len(cells), np.int64)
        np.add.at(total, where, counts)
        return cls(cells // (num_classes + 1), cells % (num_classes + 1), total)

    def to_csv(self, names: Sequence[str], ids: Sequence[int]) -> str:
        """A row for each cell; ids and names of "nothing" are empty."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["true_id", "true", "found_id", "found", "count"])
        labels = [*zip(ids, names, strict=True), ("", "")]
        for true, found, count in zip(*(column.tolist() for column in self), strict=True):
            writer.writerow([*labels[true], *labels[found], count])
        return text.getvalue()
