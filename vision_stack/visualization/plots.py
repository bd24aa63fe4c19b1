"""Precision against recall, and a confusion matrix, as pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vision_stack.ops.files import write_file
from vision_stack.ops.text import shorten

MANY_CLASSES = 10  # beyond that the curves have no names of their own
MANY_CELLS = 25  # classes, beyond which cells have no numbers


def plot_precision_recall(
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    png_file: str | Path,
    *,
    mark: tuple[float, float, str] | None = None,
) -> None:
    """A curve for each class, and a thick one for the first, all classes together.

    Args:
        curves: name -> recall and precision, rising in recall.
        mark: recall, precision and text of a point to mark.
    """
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    named = len(curves) <= MANY_CLASSES + 1
    for number, (name, (recall, precision)) in enumerate(curves.items()):
        style = {"linewidth": 2.5, "color": "black", "zorder": 3} if not number else {"linewidth": 1.0, "alpha": 0.8}
        axes.plot(recall, precision, label=shorten(name) if named or not number else None, **style)
    if mark is not None:
        axes.plot(*mark[:2], "o", color="crimson", zorder=4, label=mark[2])
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="IoU 0.5")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower left")
    _save(figure, png_file)


def plot_confusion(counts: NDArray[np.int64], names: Sequence[str], png_file: str | Path, *, title: str = "") -> None:
    """Shares of each row (true class) by column (found class), with the counts written into them.

    Args:
        counts: [R, C]; R and C are the number of names.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    labels = [shorten(name, 24) for name in names]
    side = min(max(4.0, 0.45 * len(names) + 2.0), 20.0)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046)
    step = max(1, len(names) // 40)
    axes.set_xticks(range(0, len(names), step), labels[::step], rotation=60, ha="right", fontsize="small")
    axes.set_yticks(range(0, len(names), step), labels[::step], fontsize="small")
    axes.set(xlabel="found", ylabel="true", title=title)
    if len(names) <= MANY_CELLS:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize="x-small", color=color)
    _save(figure, png_file)


def _save(figure: Figure, png_file: str | Path) -> None:
    png = io.BytesIO()
    figure.savefig(png, dpi=120, format="png")
    write_file(png_file, png.getvalue(), durable=False)
