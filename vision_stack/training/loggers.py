"""Where scalars go by default: `metrics.csv` in the run's folder."""

from __future__ import annotations

import csv
import io
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from vision_stack.ops.files import naming, write_file

METRICS_TABLE = "metrics.csv"
KEYS = ["step", "epoch"]


class MetricsFile(Logger):
    """A `metrics.csv` with a row per logged step, that a resumed run continues."""

    def __init__(self, run_dir: str | Path) -> None:
        super().__init__()
        self.path = Path(run_dir) / METRICS_TABLE
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: `config.yaml` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row; a metric not seen before becomes a new column."""
        row = {"step": step or 0, **metrics}
        if self._columns is None:
            self._columns = list(KEYS)
            self._write([])
        new = [name for name in row if name not in self._columns]
        if new:
            rows, _ = self._read()
            self._columns += new
            self._write(rows)
        with naming(self.path), self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    @rank_zero_only
    def resume(self, step: int, *, validated: bool) -> None:
        """Keep the rows of a run that is resumed after `step` steps, without those that it will log again.

        What a power cut left at the end is removed, with a note.

        Args:
            validated: otherwise the validation after the last step will be repeated.
        """
        if not self.path.is_file():
            return
        rows, num_broken = self._read()
        if num_broken:
            print(f"note: {self.path}: {num_broken} lines that are not rows of metrics were removed", flush=True)

        def stays(row: dict[str, Any]) -> bool:
            repeated = not validated and int(row["step"]) == step - 1 and any(row[c] for c in row if c[:4] == "val/")
            return int(row["step"]) < step and not repeated

        kept = [row for row in rows if stays(row)]
        # Columns in the order in which the rows that are left introduced them.
        self._columns = list(dict.fromkeys([*KEYS, *(name for row in kept for name in row if row[name])]))
        self._write(kept)

    @rank_zero_only
    def sync(self) -> None:
        """Let what is logged reach the disk."""
        if self._columns is not None:
            with naming(self.path), self.path.open("rb") as file:
                os.fsync(file.fileno())

    def _read(self) -> tuple[list[dict[str, Any]], int]:
        """The rows, and how many lines are not rows: zeros or half a line at the end, or all of another file."""
        if not self.path.is_file():
            return [], 0
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines(keepends=True)
        columns, *found = [_fields(line) for line in lines] or [[]]
        if columns[: len(KEYS)] != KEYS:
            return [], len(lines)
        rows = [dict(zip(columns, fields, strict=True)) for fields in found if _is_row(fields, len(columns))]
        return rows, len(found) - len(rows)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        assert self._columns is not None
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_file(self.path, text.getvalue().encode())


def _fields(line: str) -> list[str]:
    """Of a whole line; nothing of another."""
    if not line.endswith("\n") or "\0" in line:
        return []
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return []


def _is_row(fields: list[str], num_columns: int) -> bool:
    """Whether they are a row's: numbers, the first of them a step."""
    if len(fields) != num_columns or not fields[0].isdecimal():
        return False
    try:
        [float(field) for field in fields if field]
    except ValueError:
        return False
    return True
