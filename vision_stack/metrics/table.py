"""Metrics for the terminal, within 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from vision_stack.ops.text import shorten

_TITLES = {"segm": "masks", "bbox": "boxes", "boundary": "outlines"}
_SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_BY_FREQUENCY = ("APr", "APc", "APf")  # of LVIS
MAX_ROWS = 200  # of classes


def format_table(metrics: Mapping[str, Any]) -> Group:
    """Twelve numbers for masks, boxes and outlines side by side, then AP by class, best first. Numbers are percentages.

    Args:
        metrics: from `CocoEvaluator.compute`.
    """
    kinds = [kind for kind in _TITLES if kind in metrics]
    per_class: Mapping[str, Mapping[str, float | None]] = metrics["per_class"]
    parts: list[Any] = [_summary_table(metrics, kinds)]
    if per_class:
        parts += [Text("AP by class, %", style="bold"), *_class_tables(per_class, kinds)]
    missing = [name for name, values in per_class.items() if all(values.get(kind) is None for kind in kinds)]
    return Group(*parts, *_missing(missing, len(per_class)))


def score_table(
    summary: Mapping[str, Mapping[str, Any]], per_class: Mapping[str, Mapping[str, Any]], columns: Sequence[str]
) -> Group:
    """A row for each mean, then one for each class that occurs, best first. Numbers are percentages.

    Args:
        summary: {"all": {"PQ": ...}, ...}.
        per_class: {name: {"PQ": ...}}; None for classes that do not occur.
        columns: which metrics, the first one to sort by.
    """
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("%", *columns):
        table.add_column(title, justify="left" if title == "%" else "right")
    for name, values in summary.items():
        table.add_row(name, *(_percent(values[column]) for column in columns))
    parts: list[Any] = [
        table,
        Text(f"{columns[0]} by class, %", style="bold"),
        *_class_tables(per_class, list(columns)),
    ]
    missing = [name for name, values in per_class.items() if values[columns[0]] is None]
    return Group(*parts, *_missing(missing, len(per_class)))


def _missing(missing: Sequence[str], total: int) -> list[Text]:
    if not missing:
        return []
    shown = ", ".join(shorten(name) for name in missing[:5]) + (", ..." if len(missing) > 5 else "")
    return [Text(f"{len(missing)} of {total} classes have no objects here: {shown}", style="dim")]


def _summary_table(metrics: Mapping[str, Any], kinds: list[str]) -> Table:
    recalls = [name for name in metrics[kinds[0]] if name.startswith("AR")]
    table = Table(box=None, padding=(0, 2, 0, 0))
    titles = [_TITLES[kind] for kind in kinds]
    for heading in ("%", *titles, "", *titles):
        table.add_column(heading, justify="right" if heading in titles else "left")
    for precision, recall in zip(_SUMMARY, recalls, strict=True):
        cells = [precision, *(_percent(metrics[kind][precision]) for kind in kinds)]
        table.add_row(*cells, recall, *(_percent(metrics[kind][recall]) for kind in kinds))
    for name in _BY_FREQUENCY:
        if name in metrics[kinds[0]]:
            table.add_row(name, *(_percent(metrics[kind][name]) for kind in kinds))
    return table


def _class_tables(per_class: Mapping[str, Mapping[str, float | None]], kinds: list[str]) -> list[Table | Text]:
    """Classes with objects, best first; of very many only the best and the worst ones."""
    rows = [(name, [values.get(kind) for kind in kinds]) for name, values in per_class.items()]
    rows = [row for row in rows if any(value is not None for value in row[1])]
    rows.sort(key=lambda row: (-(row[1][0] or 0.0), row[0]))
    left_out = len(rows) - MAX_ROWS
    if left_out <= 0:
        return [_class_table(rows, kinds)]
    note = Text(f"{left_out:,} classes between the best and the worst left out here", style="dim")
    half = MAX_ROWS // 2
    return [_class_table(rows[:half], kinds), note, _class_table(rows[-half:], kinds)]


def _class_table(rows: list[tuple[str, list[float | None]]], kinds: list[str]) -> Table:
    """Rows of a class each, downwards and then to the right."""
    columns = 2 if len(rows) > 10 else 1
    height = -(-len(rows) // columns)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for _ in range(columns):
        table.add_column("class", max_width=22, no_wrap=True, overflow="ellipsis")
        for kind in kinds:
            table.add_column(_TITLES.get(kind, kind), justify="right")
    for first in range(height):
        cells: list[Text | str] = []
        for name, values in rows[first::height]:
            cells += [Text(shorten(name)), *(_percent(value) for value in values)]
        table.add_row(*cells)
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
