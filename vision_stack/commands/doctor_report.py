"""What an examination found, as lines for the terminal, as json, and as the contents of the page."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision_stack.commands.doctor_pictures import picture_of
from vision_stack.data.checks.diagnosis import KINDS, SEVERITIES, Diagnosis
from vision_stack.data.checks.doctor import Examination
from vision_stack.data.configs import DataConfig
from vision_stack.visualization.doctor_page import ClassRow, Finding, Histogram, Page, Picture, render

_LISTED = 3  # findings of a kind in the terminal
_ROWS = 2000  # of the page's table
_PICTURES = 6  # of a kind
_EDGES = (0, 4, 8, 16, 32, 64, 96, 128, 192, 256, 512, 1024)  # pixels, of the histogram of object sizes
_BINS = 16


def title_of(config: DataConfig) -> str:
    """A name for the data set that is fit for a file's."""
    folder = Path(config.root).expanduser().resolve().name if config.root else config.type
    return re.sub(r"[^\w.-]+", "_", folder) or config.type


def summary(examination: Examination, config: DataConfig, page: Path | None) -> list[str]:
    """Lines for the terminal."""
    lines = [f"{config.root or config.type}: {examination.format}, task={examination.task}"]
    for name, each in examination.statistics.items():
        objects = "" if each.num_objects is None else f", {each.num_objects:,} objects"
        lines.append(f"{name:<8} {each.num_images:,} images{objects}, {len(each.classes):,} classes")
    for kind, (severity, title) in KINDS.items():
        found = [each for each in examination.diagnoses if each.kind == kind]
        if found:
            lines.append(f"{severity:<8} {title}: {len(found):,}")
            lines += [f"         {each.split}: {each.problem}" for each in found[:_LISTED]]
            lines += [f"         ... and {len(found) - _LISTED:,} more"] if len(found) > _LISTED else []
    counts = ", ".join(f"{examination.count(severity):,} {severity}s" for severity in SEVERITIES)
    return [*lines, f"{counts}{f'; page: {page}' if page else ''}"]


def as_json(examination: Examination, config: DataConfig) -> dict[str, Any]:
    """Plain values."""
    view = examination.view
    return {
        "data": config.type,
        "format": examination.format,
        "root": config.root,
        "task": examination.task,
        "seen_at": {"short_edge": view.short_edge, "long_edge": view.long_edge, "stride": view.stride},
        "counts": {severity: examination.count(severity) for severity in SEVERITIES},
        "splits": {name: each.plain() for name, each in examination.statistics.items()},
        "findings": [_plain(each) for each in examination.diagnoses],
    }


def _plain(found: Diagnosis) -> dict[str, Any]:
    problem = found.problem
    return {
        "severity": found.severity,
        "kind": found.kind,
        "split": found.split,
        "file": problem.file,
        "field": problem.field,
        "message": problem.message,
        "remedy": problem.remedy,
        "images": [record.file_name for each in found.exhibits for record in (each.record, each.other) if record],
    }


def page_of(examination: Examination, config: DataConfig, argv: Sequence[str]) -> str:
    """The document; `argv` is what was typed after the verb."""
    splits = list(examination.statistics)
    names = dict.fromkeys(name for each in examination.statistics.values() for name in each.classes)
    classes = [
        ClassRow(
            name,
            {
                split: (count.objects, count.images)
                for split, each in examination.statistics.items()
                if (count := each.classes.get(name))
            },
        )
        for name in names
    ]
    classes.sort(key=lambda row: -max((count for count, _ in row.counts.values()), default=0))
    view = examination.view
    page = Page(
        title=f"Data of {title_of(config)}",
        subtitle=f"{examination.format}, task={examination.task}; sizes as seen at {view}, stride {view.stride}",
        command=f"vision-stack doctor {shlex.join(argv)}",
        splits=splits,
        facts=list(_facts(examination)),
        histograms=list(_histograms(examination)),
        classes=classes,
        unit="objects" if all(each.num_objects is not None for each in examination.statistics.values()) else "pixels",
        totals={severity: examination.count(severity) for severity in SEVERITIES},
        findings=[_row(each) for each in examination.diagnoses[:_ROWS]],
        pictures=list(_pictures(examination)),
    )
    return render(page)


def _row(found: Diagnosis) -> Finding:
    problem = found.problem
    title = KINDS[found.kind].title
    return Finding(found.severity, title, found.split, problem.file, problem.field, problem.message, problem.remedy)


def _pictures(examination: Examination) -> Iterator[Picture]:
    drawn: Counter[str] = Counter()
    for found in examination.diagnoses:
        for exhibit in found.exhibits:
            if drawn[found.kind] >= _PICTURES:
                break
            if jpeg := picture_of(exhibit, examination.splits.get(found.split)):
                drawn[found.kind] += 1
                caption = exhibit.caption or found.problem.message
                yield Picture(found.severity, KINDS[found.kind].title, found.split, caption, jpeg)


def _facts(examination: Examination) -> Iterator[tuple[str, Sequence[str]]]:
    plain = [each.plain() for each in examination.statistics.values()]
    rows = {
        "images": "images",
        "images without objects": "images_without_objects",
        "objects": "objects",
        "crowd regions": "crowd_regions",
        "objects without a mask": "objects_without_mask",
    }
    for title, key in rows.items():
        yield title, ["not known" if each[key] is None else f"{each[key]:,}" for each in plain]
    yield "classes", [f"{len(each['classes']):,}" for each in plain]
    for title, key in {
        "objects in an image (least, median, most)": "objects_per_image",
        "edge of objects in pixels (least, median, largest)": "object_edge",
        "the same as seen by the model": "object_edge_seen",
    }.items():
        yield title, [_range(each[key]) for each in plain]
    yield (
        "image sizes (smallest, median, largest)",
        [", ".join(f"{width} x {height}" for width, height in each["image_sizes"].values()) for each in plain],
    )


def _range(quantiles: dict[str, float]) -> str:
    return ", ".join(f"{quantiles[name]:,g}" for name in ("min", "median", "max")) if quantiles else "not known"


def _histograms(examination: Examination) -> Iterator[Histogram]:
    statistics = examination.statistics
    numbers = {name: each.objects_per_image for name, each in statistics.items()}
    counted = {name: values for name, values in numbers.items() if values is not None and len(values)}
    if counted:
        most = max(int(values.max()) for values in counted.values())
        bounds = np.unique(np.linspace(0, most + 1, min(_BINS, most + 1) + 1).astype(int))
        labels = [str(a) if b - a == 1 else f"{a}-{b - 1}" for a, b in pairwise(bounds)]
        yield Histogram("Objects in an image", labels, _count(counted, bounds))
    for title, values in {
        "Edge of objects as seen by the model, in pixels": {name: each.seen for name, each in statistics.items()},
        "Longer side of images, in pixels": {name: each.sizes.max(axis=1) for name, each in statistics.items()},
    }.items():
        if any(len(each) for each in values.values()):
            bounds = np.array([*_EDGES, np.inf]) if "objects" in title else _round_bounds(list(values.values()))
            labels = [f"{a:g}-" if np.isinf(b) else f"{a:g}-{b:g}" for a, b in pairwise(bounds)]
            yield Histogram(title, labels, _count(values, bounds))


def _round_bounds(values: list[NDArray[Any]]) -> NDArray[np.float64]:
    low, high = min(each.min() for each in values if len(each)), max(each.max() for each in values if len(each))
    return np.unique(np.linspace(low, high + 1, _BINS + 1).round())


def _count(values: dict[str, Any], bounds: NDArray[Any]) -> dict[str, list[float]]:
    return {name: np.histogram(each, bounds)[0].tolist() for name, each in values.items()}
