"""Precision against recall, scores by class, and what is taken for what, as pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vision_stack.ops.files import write_file
from vision_stack.ops.text import shorten

Cells = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
NAMED_CURVES = 8  # of more classes, half as many of the best and of the worst are named
NAMED_BARS = 40
CONFUSED = 24  # classes with a row and a column of their own
NAME_LENGTH = 24


def plot_precision_recall(
    curves: Mapping[str, NDArray[np.float64]],
    png_file: str | Path,
    *,
    all_classes: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    mark: tuple[float, float, str] | None = None,
) -> None:
    """The mean over the classes and each class; of many the best and the worst are named. AP50 is in the legend.

    Args:
        curves: by class, precision [N] at N recalls from 0 to 1 in equal steps; at least one class.
        all_classes: recall and precision, by falling score, of the detections of all classes together.
        mark: recall, precision and text of a point to mark.
    """
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    scores = {name: float(precision.mean()) for name, precision in curves.items()}
    ranked = sorted(scores, key=lambda name: -scores[name])
    found = [name for name in ranked if scores[name]]
    recall = np.linspace(0, 1, len(next(iter(curves.values()))))
    if len(curves) > 1:
        named = found
        if len(found) > NAMED_CURVES:
            named = found[: NAMED_CURVES // 2] + found[-(NAMED_CURVES // 2) :]
        for name in named:
            axes.plot(recall, curves[name], linewidth=1.2, label=f"{shorten(name, NAME_LENGTH)} {scores[name]:.3f}")
        others = [name for name in found if name not in named]
        for name in others:
            label = f"{len(others)} classes between" if name == others[0] else None
            axes.plot(recall, curves[name], linewidth=0.8, color="0.8", zorder=1, label=label)
    mean, what = np.mean([*curves.values()], axis=0), f"mean of {len(curves)} classes" if len(curves) > 1 else ranked[0]
    label = f"{shorten(what, NAME_LENGTH)} {mean.mean():.3f}"
    axes.plot(recall, mean, linewidth=2.5, color="black", zorder=3, label=label)
    if all_classes is not None and found:
        axes.plot(*all_classes, linewidth=1.2, color="black", linestyle=":", zorder=3, label="not interpolated")
    if mark is not None and found:
        axes.plot(*mark[:2], "o", color="crimson", zorder=4, label=mark[2])
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="Precision and recall, IoU 0.5")
    axes.grid(alpha=0.3)
    if found:
        _legend_beside(axes, [name for name in ranked if not scores[name]])
    else:
        objects = f"an object of any of the {len(curves)} classes" if len(curves) > 1 else "an object"
        _say(axes, f"No detection matches {objects}\nby an IoU of 0.5 or more: AP50 is 0")
    _save(figure, png_file)


def plot_class_scores(scores: Mapping[str, float], png_file: str | Path, *, score_name: str) -> None:
    """A bar for each class, best first, and the mean; of many classes the best and the worst.

    Args:
        scores: by class, in [0, 1]; at least one.
    """
    ranked = sorted(scores, key=lambda name: -scores[name])
    shown: list[str | None] = [*ranked]
    if len(ranked) > NAMED_BARS:
        shown = [*ranked[: NAMED_BARS // 2], None, *ranked[-(NAMED_BARS // 2) :]]
    between = f"... {len(ranked) - NAMED_BARS} classes between"
    labels = [between if name is None else shorten(name, NAME_LENGTH) for name in shown]
    values = [0.0 if name is None else scores[name] for name in shown]
    figure = Figure(figsize=(7, 0.24 * len(shown) + 1.4), layout="constrained")
    axes = figure.subplots()
    most = max(0.1, *values)
    axes.barh(range(len(shown)), values, color="#4c72b0")
    for row, (name, value) in enumerate(zip(shown, values, strict=True)):
        if name is not None:
            axes.text(value + 0.01 * most, row, f"{value:.3f}", va="center", fontsize="small")
    mean = sum(scores.values()) / len(scores)
    axes.axvline(mean, color="0.75", linewidth=1.0, zorder=0)
    axes.set_yticks(range(len(shown)), labels, fontsize="small")
    title = f"{score_name} by class, mean {mean:.3f}"
    axes.set(xlabel=score_name, xlim=(0, 1.12 * most), ylim=(len(shown) - 0.4, -0.6), title=title)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    _save(figure, png_file)


def plot_confusion(
    cells: Cells, names: Sequence[str], png_file: str | Path, *, title: str = "", unit: str = "objects"
) -> None:
    """Shares of each true class (row) by found class (column), and counts; classes that do not occur are left out.

    Of many classes the most frequent ones are shown, the rest together as "other".

    Args:
        cells: true class [N], found class [N] and count [N]; class `len(names)` is "nothing": a true class that is
            nothing belongs to false detections, a found one to missed objects.
        names: by class.
        unit: what is counted.
    """
    grid, rows, columns = _grid(cells, names)
    shares = grid / np.maximum(grid.sum(1, keepdims=True), 1)
    size = (0.44 * len(columns) + 3.2, 0.40 * len(rows) + 2.2)
    figure = Figure(figsize=(max(size[0], 5.0), max(size[1], 4.0)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    figure.colorbar(image, ax=axes, label="share of the row", fraction=0.04, pad=0.02)
    labels = [f"{name}  {_short(total)}" for name, total in zip(rows, grid.sum(1).tolist(), strict=True)]
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor", fontsize="small")
    axes.set_yticks(range(len(rows)), labels, fontsize="small")
    axes.set(xlabel="found", ylabel=f"true, number of {unit}", title=title)
    for edges, set_ticks in ((len(columns), axes.set_xticks), (len(rows), axes.set_yticks)):
        set_ticks(np.arange(0.5, edges - 1), minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    for (row, column), count in np.ndenumerate(grid):
        if count:
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, _short(int(count)), ha="center", va="center", fontsize="x-small", color=color)
    _save(figure, png_file)


def _grid(cells: Cells, names: Sequence[str]) -> tuple[NDArray[np.int64], list[str], list[str]]:
    """Counts [rows, columns] of the classes shown, and the names of rows and columns."""
    true, found, counts = cells
    nothing = len(names)
    number = [np.bincount(side, counts, nothing + 1).astype(np.int64) for side in (true, found)]
    classes = [c for c in np.lexsort((-number[1], -number[0])).tolist() if c != nothing and number[0][c] + number[1][c]]
    shown = classes if len(classes) <= CONFUSED + 1 else classes[:CONFUSED]
    labels = [shorten(names[c], NAME_LENGTH) for c in shown]
    if len(shown) < len(classes):
        labels.append(f"other ({len(classes) - len(shown)} classes)")
    place = np.full(nothing + 1, len(shown))
    place[shown] = range(len(shown))
    place[nothing] = len(labels)
    grid = np.zeros((len(labels) + 1, len(labels) + 1), np.int64)
    np.add.at(grid, (place[true], place[found]), counts)
    rows, columns = [*labels, "(no object)"], [*labels, "(not found)"]
    if not number[0][nothing]:
        grid, rows = grid[:-1], rows[:-1]
    if not number[1][nothing]:
        grid, columns = grid[:, :-1], columns[:-1]
    return grid, rows, columns


def _short(count: int) -> str:
    """A count in four characters: 950, 1.2k, 35k, 4.1M."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 0.9995 * size:
            return f"{count / size:.1f}{letter}" if count < 9.95 * size else f"{count / size:.0f}{letter}"
    return str(count)


def _legend_beside(axes: Axes, missed: Sequence[str]) -> None:
    title = "AP50"
    if missed:
        listed = "\n".join(f"  {shorten(name, NAME_LENGTH)}" for name in missed[:5])
        more = f"\n  and {len(missed) - 5} more" if len(missed) > 5 else ""
        title = f"{len(missed)} {'class' if len(missed) == 1 else 'classes'} with AP50 0:\n{listed}{more}\n\nAP50"
    axes.legend(
        fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1.0), title=title, title_fontsize="small",
        alignment="left", frameon=False,
    )  # fmt: skip


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, fontsize="large", color="crimson")


def _save(figure: Figure, png_file: str | Path) -> None:
    png = io.BytesIO()
    figure.savefig(png, dpi=120, format="png")
    write_file(png_file, png.getvalue(), durable=False)
