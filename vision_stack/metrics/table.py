"""COCO metrics for the terminal, within 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

_TITLES = {"segm": "masks", "bbox": "boxes"}
_SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def format_table(metrics: Mapping[str, Any]) -> Group:
    """Twelve numbers for masks and for boxes side by side, then AP by class, best first. Numbers are per cent.

    Args:
        metrics: from `CocoEvaluator.compute`.
    """
    kinds = [kind for kind in _TITLES if kind in metrics]
    per_class: Mapping[str, Mapping[str, float | None]] = metrics["per_class"]
    parts: list[Any] = [_summary_table(metrics, kinds)]
    if per_class:
        parts += [Text("AP by class", style="bold"), _class_table(per_class, kinds)]
    missing = [name for name, values in per_class.items() if all(values.get(kind) is None for kind in kinds)]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        parts.append(Text(f"{len(missing)} of {len(per_class)} classes have no objects here: {shown}", style="dim"))
    return Group(*parts)


def _summary_table(metrics: Mapping[str, Any], kinds: list[str]) -> Table:
    recalls = [name for name in metrics[kinds[0]] if name.startswith("AR")]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", *(_TITLES[kind] for kind in kinds), "", *(_TITLES[kind] for kind in kinds)):
        table.add_column(heading, justify="right" if heading else "left")
    for precision, recall in zip(_SUMMARY, recalls, strict=True):
        cells = [precision, *(_percent(metrics[kind][precision]) for kind in kinds)]
        table.add_row(*cells, recall, *(_percent(metrics[kind][recall]) for kind in kinds))
    return table


def _class_table(per_class: Mapping[str, Mapping[str, float | None]], kinds: list[str]) -> Table:
    """Classes with objects, sorted by their first AP, downwards and then to the right."""
    rows = [(name, [values.get(kind) for kind in kinds]) for name, values in per_class.items()]
    rows = [row for row in rows if any(value is not None for value in row[1])]
    rows.sort(key=lambda row: (-(row[1][0] or 0.0), row[0]))
    columns = 2 if len(rows) > 10 else 1
    height = -(-len(rows) // columns)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for _ in range(columns):
        table.add_column("class", max_width=22, no_wrap=True, overflow="ellipsis")
        for kind in kinds:
            table.add_column(_TITLES[kind], justify="right")
    for first in range(height):
        cells: list[Text | str] = []
        for name, values in rows[first::height]:
            cells += [Text(name), *(_percent(value) for value in values)]
        table.add_row(*cells)
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
