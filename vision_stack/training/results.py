"""What validation found: scores, predictions, and the files that hold them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vision_stack.metrics import Evaluator
from vision_stack.metrics.base import Report, class_names
from vision_stack.ops.files import naming, remove, replacing, scratch_beside, write_file
from vision_stack.ops.run_files import CONFIG_FILE

METRICS_FILE, PREDICTIONS_FILE, PREDICTIONS_DIR = "metrics.json", "predictions.json", "predictions"
CONFUSION_TABLE = "confusion.csv"


@dataclass(frozen=True)
class Results:
    """Of one pass over the validation set.

    Attributes:
        metrics: what the evaluator's `compute` gives, and the map from labels to category ids and names:
            instance `{"segm": {"AP": ..., "AP50": ...}, "bbox": {...}, "per_class": {...}, "categories": [...]}`;
            panoptic `{"all": {"PQ", "SQ", "RQ", "classes"}, "things", "stuff", "per_class", "categories"}`;
            semantic `{"mIoU", "pixel_accuracy", "mean_accuracy", "per_class", "categories"}`;
            always `"num_images"`, how many were validated, the first ones of the set; of instances `"operating_point"`,
            the score with the best F1 at an IoU of 0.5 (an F1 of 0: no detection matches an object).
        predictions: what `predictions.json` gets, with the data set's own image and category ids: COCO results,
            COCO panoptic annotations, or the names of the semantic label maps.
        files: label maps by name, for the folder `predictions`; none for instances.
        score: mask AP, PQ or mIoU, by which the best checkpoint is chosen; -1 where there is nothing to find.
        line: the most important metrics in words.
        logged: those that loggers get.
        report: where the model errs, drawn into `pictures/`.
    """

    metrics: dict[str, Any]
    predictions: Any
    files: dict[str, bytes]
    score: float
    line: str
    logged: dict[str, float | None]
    report: Report

    @classmethod
    def of(cls, evaluator: Evaluator, *, only_updated: bool = False) -> Results:
        """What an evaluator has been fed, scored; `only_updated` leaves out images that it has not been fed."""
        metrics = evaluator.compute(only_updated=only_updated)
        report = evaluator.report(metrics)
        if report.point is not None:
            metrics = {**metrics, "operating_point": report.point}
        classes = [{"index": i, "id": c.id, "name": c.name} for i, c in enumerate(evaluator.categories)]
        return cls(
            metrics={**metrics, "num_images": evaluator.num_images, "categories": classes},
            predictions=evaluator.results(),
            files=evaluator.files(),
            score=evaluator.score(metrics),
            line=evaluator.one_line(metrics),
            logged=evaluator.scalars(metrics),
            report=report,
        )

    def scalars(self) -> dict[str, float]:
        """`segm_AP`, `segm_AP50`, ..., `bbox_AP`, ...; `PQ`, ...; `mIoU`, ...: what loggers get."""
        return {name: float(value) for name, value in self.logged.items() if value is not None}

    def one_line(self) -> str:
        return self.line

    def write(self, run_dir: Path) -> None:
        """Write `metrics.json`, `predictions.json`, the folder `predictions`, `confusion.csv`, pictures of errors; each
        is replaced as a whole."""
        if self.files:
            write_files(run_dir / PREDICTIONS_DIR, self.files)
        found = {"annotations": self.predictions} if isinstance(self.predictions, list) else dict(self.predictions)
        write_predictions(run_dir, found.pop("annotations"), found)
        classes = self.metrics["categories"]
        ids = [c["id"] for c in classes]
        names = class_names([c["name"] for c in classes], ids)
        if self.report.confusion:
            table = self.report.confusion.to_csv(names, ids)
            write_file(run_dir / CONFUSION_TABLE, table.encode(errors="backslashreplace"))
        draw_report(self.report, names, run_dir / "pictures")
        write_file(run_dir / METRICS_FILE, f"{json.dumps(self.metrics, indent=2)}\n".encode())


def draw_report(report: Report, names: Sequence[str], folder: Path) -> None:
    """`classes.png`, `precision_recall.png` and `confusion.png`, of what the report has."""
    from vision_stack.visualization import plots  # matplotlib takes a while

    if len(report.class_scores) > 1:
        plots.plot_class_scores(report.class_scores, folder / "classes.png", score_name=report.score_name)
    point = report.point
    if report.curves:
        mark = None
        if point and point["f1"]:
            mark = point["recall"], point["precision"], f"best F1 {point['f1']:.2f}, score >= {point['threshold']:.3g}"
        curves = folder / "precision_recall.png"
        plots.plot_precision_recall(report.curves, curves, all_classes=report.all_classes, mark=mark)
    if report.confusion:
        title = f"{report.unit.capitalize()} by class"
        if point:
            why = "best F1" if point["f1"] else "no correct detection"
            title += f"\nIoU 0.5, score >= {point['threshold']:.3g} ({why})"
        plots.plot_confusion(report.confusion, names, folder / "confusion.png", title=title, unit=report.unit)


def write_predictions(run_dir: Path, records: Iterable[Mapping[str, Any]], header: Mapping[str, Any]) -> None:
    """`predictions.json`, record by record: a list of them; with a header, a mapping whose `annotations` they are."""
    with replacing(run_dir / PREDICTIONS_FILE) as file:
        file.write(b'{"annotations": [' if header else b"[")
        for number, record in enumerate(records):
            file.write(f"{', ' if number else ''}{json.dumps(record)}".encode())
        file.write(f"], {json.dumps(header)[1:]}".encode() if header else b"]")


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """A folder of just these files, in place of one that may be there."""
    scratch = scratch_beside(folder)
    try:
        for name, content in files.items():
            path = scratch / name
            with naming(folder / name):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        with naming(folder):
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(scratch, folder)
    except BaseException:
        remove(scratch)
        raise


class _Plain(yaml.SafeDumper):
    """Writes a list that stands in two places twice, instead of a reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def absolute(folder: str) -> str:
    """With its parents, from the home directory for `~`."""
    return os.path.abspath(os.path.expanduser(folder))


def write_config(config: Mapping[str, Any], run_dir: Path) -> None:
    """`config.yaml`: all options of the run, resolved; the data's folder as an absolute path, since the run may be
    resumed from elsewhere."""
    data = config.get("data")
    if isinstance(data, Mapping) and isinstance(data.get("root"), str):
        config = {**config, "data": {**data, "root": absolute(data["root"])}}
    text = yaml.dump({**config, "run_dir": str(run_dir)}, Dumper=_Plain, sort_keys=False, allow_unicode=True)
    write_file(run_dir / CONFIG_FILE, text.encode())


def is_run_dir(folder: Path) -> bool:
    """Whether a run has written its options (`write_config`) into a folder."""
    try:
        lines = (folder / CONFIG_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.startswith("run_dir:") for line in lines)
