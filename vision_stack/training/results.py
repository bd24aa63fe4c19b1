"""What validation found: scores, detections, and the files that hold them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vision_stack.metrics.coco import CocoEvaluator

METRICS_FILE, PREDICTIONS_FILE = "metrics.json", "predictions.json"


@dataclass(frozen=True)
class Results:
    """Of one pass over the validation set.

    Attributes:
        metrics: `{"segm": {"AP": ..., "AP50": ...}, "bbox": {...}, "per_class": {...}}`.
        predictions: COCO results, with the data set's own image and category ids.
    """

    metrics: dict[str, Any]
    predictions: list[dict[str, Any]]

    @classmethod
    def of(cls, evaluator: CocoEvaluator, *, only_updated: bool = False) -> Results:
        """What an evaluator has been fed, scored; `only_updated` leaves out images that it has not been fed."""
        classes = [{"index": i, "id": c.id, "name": c.name} for i, c in enumerate(evaluator.categories)]
        return cls({**evaluator.compute(only_updated=only_updated), "categories": classes}, evaluator.results())

    @property
    def score(self) -> float:
        """Mask AP, by which the best checkpoint is chosen; -1 where there is nothing to find."""
        ap = self.metrics["segm"]["AP"]
        return -1.0 if ap is None else float(ap)

    def scalars(self) -> dict[str, float]:
        """`segm_AP`, `segm_AP50`, ..., `bbox_AP`, ...: what loggers get."""
        values = {f"{kind}_{k}": v for kind in ("segm", "bbox") for k, v in self.metrics[kind].items()}
        return {name: float(value) for name, value in values.items() if value is not None}

    def one_line(self) -> str:
        segm, bbox = self.metrics["segm"], self.metrics["bbox"]
        return f"mask AP {_number(segm['AP'])}, AP50 {_number(segm['AP50'])}, box AP {_number(bbox['AP'])}"

    def write(self, run_dir: Path) -> None:
        """Write `metrics.json` and `predictions.json`; each is replaced as a whole."""
        _write(run_dir / PREDICTIONS_FILE, json.dumps(self.predictions))
        _write(run_dir / METRICS_FILE, json.dumps(self.metrics, indent=2) + "\n")


def write_config(config: Mapping[str, Any], run_dir: Path) -> None:
    """`config.yaml`: all options of the run, resolved."""
    text = yaml.safe_dump({**config, "run_dir": str(run_dir)}, sort_keys=False, allow_unicode=True)
    _write(run_dir / "config.yaml", text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
