"""The objects of a split as flat arrays, for statistics over all of them at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_stack.data.checks.diagnosis import Split, table_of


class ObjectColumns(NamedTuple):
    """N objects, no crowds, those of one image next to each other."""

    record: NDArray[np.int64]  # [N] index into the split's records
    row: NDArray[np.int64]  # [N] of its table
    label: NDArray[np.int64]  # [N]
    boxes: NDArray[np.float64]  # [N, 4] (x0, y0, x1, y1) in pixels, clipped to the image
    size: NDArray[np.int64]  # [N, 2] height and width of the image

    @property
    def edge(self) -> NDArray[np.float64]:
        """[N] square roots of the areas of the boxes, in pixels."""
        return np.sqrt((self.boxes[:, 2:] - self.boxes[:, :2]).prod(axis=1))


def columns_of(split: Split) -> ObjectColumns | None:
    """None where only label maps show the objects."""
    table = table_of(split)
    if table is None:
        return None
    records = split.records
    counts = [len(record.rows) for record in records]
    rows = np.concatenate([np.arange(0), *(np.arange(r.rows.start, r.rows.stop) for r in records)])
    record = np.repeat(np.arange(len(records)), counts)
    wanted = ~table.crowd[rows]
    rows, record = rows[wanted], record[wanted]
    size = np.array([(r.height, r.width) for r in records], np.int64).reshape(-1, 2)[record]
    boxes = table.boxes[rows].copy()
    boxes[:, 2:] += boxes[:, :2]
    boxes = np.clip(boxes, 0, size[:, [1, 0, 1, 0]])
    return ObjectColumns(record, rows, table.labels[rows], boxes, size)
