"""Losses and scores of a run as a picture, from the csv that its logger wrote."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vision_stack.ops.files import write_file

SCORES = ("AP", "PQ", "mIoU")
Series = dict[str, list[tuple[float, float]]]


def plot_curves(csv_file: str | Path, png_file: str | Path) -> None:
    """Draw every column named after a loss, every one named after AP, PQ or mIoU, and the learning rate, by step.

    Args:
        csv_file: of Lightning's CSVLogger: one row per logging call, empty where a row has no value for a column.
        png_file: the picture to write; its folder is made if missing.

    Raises:
        ValueError: the file has no column `step`, or nothing to draw.
    """
    series = _read(Path(csv_file))
    # Only the last layer's losses: loss_mask, not loss_mask_0.
    losses = {name: points for name, points in series.items() if "loss" in name.lower() and not name[-1].isdigit()}
    panels = [("loss", losses)] if losses else []
    for score in SCORES:
        lines = {name: points for name, points in series.items() if score in name.replace("/", "_").split("_")}
        panels += [(score, lines)] if lines else []
    rates = {name: points for name, points in series.items() if name.rpartition("/")[2] == "lr"}
    if not panels:
        raise ValueError(
            f"{csv_file}: no column with values is named after a loss, {', '.join(SCORES)}; found: {', '.join(series)}"
        )
    panels += [("learning rate", rates)] if rates else []
    figure = Figure(figsize=(6 * len(panels), 4), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, title, lines)
    png = io.BytesIO()
    figure.savefig(png, dpi=120, format="png")
    write_file(png_file, png.getvalue(), durable=False)


def _read(csv_file: Path) -> Series:
    with csv_file.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "step" not in (reader.fieldnames or ()):
            raise ValueError(f"{csv_file}: has no column 'step'; give the metrics.csv of a run with logger=csv")
        series: Series = {}
        for row in reader:
            for name, text in row.items():
                if name not in ("step", "epoch") and text and math.isfinite(float(text)):
                    series.setdefault(name, []).append((float(row["step"]), float(text)))
    return series


def _draw(axes: Axes, title: str, lines: Series) -> None:
    for name, points in lines.items():
        steps, values = zip(*sorted(points), strict=True)
        axes.plot(steps, values, label=name, linewidth=1.2, marker="o" if len(steps) < 20 else None, markersize=3)
    if title == "loss" and all(value > 0 for points in lines.values() for _, value in points):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
