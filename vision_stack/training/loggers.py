"""Where scalars go by default: `metrics.csv` in the run's folder."""

from __future__ import annotations

import csv
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

METRICS_TABLE = "metrics.csv"
KEYS = ["step", "epoch"]


class MetricsFile(Logger):
    """A `metrics.csv` with a row per logged step, that a resumed run goes on with.

    Rows of steps that the resumed run repeats are dropped, so that a step stands there once.
    """

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
            self._begin(int(row["step"]))
        assert self._columns is not None
        new = [name for name in row if name not in self._columns]
        if new:
            rows = self._read()
            self._columns += new
            self._write(rows)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _begin(self, first_step: int) -> None:
        rows = [row for row in self._read() if int(row["step"]) < first_step]
        self._columns = list(rows[0]) if rows else list(KEYS)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write(rows)

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _write(self, rows: list[dict[str, Any]]) -> None:
        assert self._columns is not None
        scratch = self.path.with_suffix(".tmp")
        with scratch.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(scratch, self.path)
