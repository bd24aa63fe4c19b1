"""The page that shows what is wrong with a data set: one file of HTML, without anything from the network.

All text of the data set's, such as names of classes and files, is escaped, and characters that cannot be seen are
written out. The page's own policy forbids any other script, style, or address, whatever the text holds.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

GENERATOR = "vision-stack doctor"  # in every page, which tells ours from others
_WIDTH, _HEIGHT, _BELOW = 420, 130, 34  # of a histogram and of the labels below, in pixels
_LABELS = 8  # below a histogram


class Finding(NamedTuple):
    """A row of the table."""

    severity: str  # error, warning or note
    kind: str
    split: str
    file: str
    field: str
    message: str
    remedy: str


class Picture(NamedTuple):
    """Where a finding can be seen."""

    severity: str
    kind: str
    split: str
    caption: str
    jpeg: bytes


class Histogram(NamedTuple):
    """Bars of several splits beside each other."""

    title: str
    labels: Sequence[str]  # of the bins
    counts: Mapping[str, Sequence[float]]  # by split, one for each bin


class ClassRow(NamedTuple):
    """Of each split objects, and images that have some."""

    name: str
    counts: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the page shows, in plain text."""

    title: str
    subtitle: str
    command: str  # that made it
    splits: Sequence[str]
    facts: Sequence[tuple[str, Sequence[str]]]  # a name and a value for each split
    histograms: Sequence[Histogram]
    classes: Sequence[ClassRow]
    unit: str  # what classes are counted in
    totals: Mapping[str, int]  # findings by severity, also those that are not in `findings`
    findings: Sequence[Finding]
    pictures: Sequence[Picture]


def render(page: Page) -> str:
    """The whole document."""
    style, script = (Path(__file__).with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".css", ".js"))
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
    clean = "" if any(page.totals.values()) else '<p class="clean">Nothing to report.</p>'
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta name="generator" content="{GENERATOR}">',
            f"<title>{_text(page.title)}</title>",
            f"<style>{style}</style></head><body>",
            f"<header><h1>{_text(page.title)}</h1><p>{_text(page.subtitle)}</p>",
            f"<p><code>{_text(page.command)}</code></p></header>",
            f'<section id="totals">{"".join(_total(page, severity) for severity in page.totals)}</section>{clean}',
            _findings(page),
            _pictures(page),
            _facts(page),
            f'<section id="histograms">{"".join(_histogram(each) for each in page.histograms)}</section>',
            _classes(page),
            f"<script>{script}</script></body></html>",
            "",
        ]
    )


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _text(value: object) -> str:
    """Escaped for text and for attributes in quotes; what cannot be seen is written out."""
    return html.escape("".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value)))


def _total(page: Page, severity: str) -> str:
    count = page.totals[severity]
    name = severity if count == 1 else f"{severity}s"
    return f'<button type="button" class="{severity}" data-severity="{severity}"><b>{count:,}</b> {name}</button>'


def _table(name: str, heads: Iterable[str], rows: Iterable[str]) -> str:
    """Columns are sorted by a click on their heads (`doctor_page.js`)."""
    head = "".join(f'<th scope="col"><button type="button">{_text(text)}</button></th>' for text in heads)
    return f'<table id="{name}"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _findings(page: Page) -> str:
    if not page.findings:
        return ""
    choices = {
        "severity": list(page.totals),
        "kind": list(dict.fromkeys(each.kind for each in page.findings)),
        "split": list(dict.fromkeys(each.split for each in page.findings)),
    }
    selects = "".join(
        f'<label>{name} <select id="{name}"><option value="">all</option>'
        + "".join(f'<option value="{_text(value)}">{_text(value)}</option>' for value in values)
        + "</select></label>"
        for name, values in choices.items()
    )
    search = '<label>contains <input id="words" type="search"></label>'
    hidden = sum(page.totals.values()) - len(page.findings)
    more = f"<p>{hidden:,} more are not listed here; --json lists all.</p>" if hidden else ""
    rows = (
        f"<tr {_data(each)}><td><span class='{_text(each.severity)}'>{_text(each.severity)}</span></td>"
        f"<td>{_text(each.kind)}</td><td>{_text(each.split)}</td><td>{_text(each.message)}</td>"
        f"<td>{_text(each.remedy)}</td><td title='{_text(each.file)}'><code>{_text(Path(each.file).name)} "
        f"{_text(each.field)}</code></td></tr>"
        for each in page.findings
    )
    heads = ("severity", "kind", "split", "finding", "what to do", "file and field")
    return (
        f'<section><h2>Findings</h2><form id="filters">{selects}{search}<output id="shown"></output></form>'
        f"<div class='scroll'>{_table('findings', heads, rows)}</div>{more}</section>"
    )


def _data(each: Finding | Picture) -> str:
    """Attributes that filters go by."""
    return f'data-severity="{_text(each.severity)}" data-kind="{_text(each.kind)}" data-split="{_text(each.split)}"'


def _pictures(page: Page) -> str:
    if not page.pictures:
        return ""
    figures = "".join(
        f"<figure {_data(each)}><button type='button'><img alt='{_text(each.caption)}' "
        f"src='data:image/jpeg;base64,{base64.b64encode(each.jpeg).decode()}'></button>"
        f"<figcaption><span class='{_text(each.severity)}'>{_text(each.kind)}</span> {_text(each.caption)}</figcaption>"
        "</figure>"
        for each in page.pictures
    )
    return f'<section><h2>The worst of each kind</h2><div id="pictures">{figures}</div></section>'


def _facts(page: Page) -> str:
    rows = (
        f"<tr><td>{_text(name)}</td>{''.join(f'<td>{_text(value)}</td>' for value in values)}</tr>"
        for name, values in page.facts
    )
    return f"<section><h2>Splits</h2>{_table('facts', ('', *page.splits), rows)}</section>"


def _histogram(histogram: Histogram) -> str:
    """As SVG: each split in shares of its own total, so that splits of any size can be compared."""
    shares = {name: [count / max(sum(counts), 1) for count in counts] for name, counts in histogram.counts.items()}
    most = max((share for each in shares.values() for share in each), default=0) or 1
    step = _WIDTH / max(len(histogram.labels), 1)
    bar = 0.86 * step / max(len(shares), 1)
    parts = []
    for place, (name, each) in enumerate(shares.items()):
        for index, share in enumerate(each):
            x, height = index * step + 0.07 * step + place * bar, share / most * (_HEIGHT - 4)
            count = histogram.counts[name][index]
            title = f"{name}, {histogram.labels[index]}: {count:,.0f} ({share:.1%})"
            parts.append(
                f'<rect class="split{place % 3}" x="{x:.1f}" y="{_HEIGHT - height:.1f}" width="{bar:.1f}" '
                f'height="{height:.1f}"><title>{_text(title)}</title></rect>'
            )
    every = max(1, -(-len(histogram.labels) // _LABELS))
    for index in range(0, len(histogram.labels), every):
        x = (index + 0.5) * step
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT + 14}">{_text(histogram.labels[index])}</text>')
    legend = "".join(
        f'<span class="key"><svg width="10" height="10"><rect class="split{place % 3}" width="10" height="10"/></svg> '
        f"{_text(name)}</span>"
        for place, name in enumerate(shares)
    )
    view = f"0 0 {_WIDTH} {_HEIGHT + _BELOW}"
    return (
        f'<figure class="histogram"><figcaption>{_text(histogram.title)} {legend}</figcaption>'
        f'<svg viewBox="{view}" role="img" aria-label="{_text(histogram.title)}"><line x1="0" x2="{_WIDTH}" '
        f'y1="{_HEIGHT}" y2="{_HEIGHT}"/>{"".join(parts)}</svg></figure>'
    )


def _classes(page: Page) -> str:
    most = max((count for row in page.classes for count, _ in row.counts.values()), default=0) or 1
    rows = []
    for row in page.classes:
        cells = [f"<td>{_text(row.name)}</td>"]
        for place, split in enumerate(page.splits):
            objects, images = row.counts.get(split, (0, 0))
            bar = f'<rect class="split{place % 3}" width="{100 * objects / most:.2f}" height="10"/>'
            cells.append(
                f'<td data-value="{objects}"><svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none">'
            )
            cells.append(f'{bar}</svg> {objects:,}</td><td data-value="{images}">{images:,}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = ["class", *(f"{split}: {what}" for split in page.splits for what in (page.unit, "images"))]
    table = _table("classes", heads, rows)
    return f"<section><h2>Classes</h2><div class='scroll'>{table}</div></section>"
