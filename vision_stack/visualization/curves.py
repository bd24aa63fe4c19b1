"""Losses and scores of a run as a picture, from the csv that its logger wrote."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from vision_stack.ops.files import write_file

SCORES = ("AP", "PQ", "mIoU")
PANELS_ACROSS = 3
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
    losses = {name: points for name, points in series.items() if "loss" in name.lower()}
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
    across = min(PANELS_ACROSS, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(5.5 * across, 4.8 * down), layout="constrained")
    every = figure.subplots(down, across, squeeze=False).ravel()
    last = max(step for _, lines in panels for points in lines.values() for step, _ in points)
    for axes, (title, lines) in zip(every, panels, strict=False):
        _draw(axes, title, lines, last)
    for axes in every[len(panels) :]:
        axes.set_axis_off()
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


def _draw(axes: Axes, title: str, lines: Series, last_step: float) -> None:
    for name, points in lines.items():
        steps, values = zip(*sorted(points), strict=True)
        style = {"color": "black", "linewidth": 2.0, "zorder": 3} if name == "train/loss" else {"linewidth": 1.2}
        label = name if title in ("loss", "learning rate") else f"{name}, best {max(values):.3f}"
        axes.plot(steps, values, label=label, marker="o" if len(steps) < 20 else None, markersize=3, **style)
    everything = [value for points in lines.values() for _, value in points]
    if title == "loss" and min(everything) > 0 and max(everything) > 3 * min(everything):
        _set_log(axes, math.log10(max(everything) / min(everything)))
    else:
        top = max(everything) if max(everything) > 0 else 1.0
        axes.set_ylim(min(0.0, *everything) - 0.02 * top, 1.05 * top)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    axes.set_xlim(-0.02 * max(last_step, 1.0), 1.02 * max(last_step, 1.0))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel("step")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)


def _plain(value: float) -> str:
    """0, 0.02, 35, and as learning rates are written: 2.5e-4."""
    if 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.3g}"


def _set_log(axes: Axes, decades: float) -> None:
    """Few ticks, written as plain numbers, at least two of them however narrow the range is."""
    axes.set_yscale("log")
    subs = (1, 2, 3, 5, 7) if decades < 1 else (1, 2, 5) if decades < 2.5 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
