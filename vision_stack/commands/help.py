"""`vision-stack VERB --help`: every option with its default and a sentence, read from the comments of the yaml files.

The yaml files are the only place where options are explained. A comment stands behind its option, or above it on lines
of its own.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vision_stack.commands.aliases import ALIASES, canonical
from vision_stack.commands.composing import Composition, chosen, compose_options
from vision_stack.commands.option_docs import OVERLAYS, choices, groups, introduction, known_options, option_docs
from vision_stack.config import config_dir

PARTS = ("backbone", "neck", "head")
INTRODUCTIONS = {
    "train": "Train a model: on generated scenes, or with data=DIR on your own images.",
    "eval": "Evaluate a checkpoint: AP, PQ or mIoU, by its task.",
    "predict": "Predict on images: pictures and predictions.json.",
}
SHOWN_VALUES = (
    "Values shown are those of data=shapes, the generated scenes. With data=DIR most are auto: derived from data and\n"
    "device, printed, and stored."
)
EXAMPLES = {
    "train": ("", "data=DIR", "data=coco data.root=DIR backbone=swin_tiny epochs=30", "resume=auto"),
    "eval": ("checkpoint=outputs/.../checkpoints/best.ckpt", "checkpoint=DIR data=coco data.root=DIR"),
    "predict": ("checkpoint=outputs/.../checkpoints/best.ckpt source=photo.jpg", "checkpoint=DIR source=FOLDER"),
}


class Documented(NamedTuple):
    """An option: its dotted name, its default as it would be typed, and what its comment says."""

    name: str
    default: str
    text: str


def help_text(verb: str, typed: Sequence[str], topics: Sequence[str] = ()) -> str:
    """All options of a verb; with groups named (`--help head=mask2former`), those of these groups.

    Args:
        topics: groups whose choices are asked for instead (`--help head`), or options (`--help lr`).
    """
    of_groups = [_all_choices(topic) for topic in topics if topic in {*groups(), *OVERLAYS}]
    of_options = [_about(verb, topic) for topic in topics if topic not in {*groups(), *OVERLAYS}]
    if topics:
        return "\n\n".join([*of_groups, *of_options])
    values, hydra = compose_options(Composition(verb, ["run_dir='outputs/<date>/<time>'", *typed]))
    names = chosen(hydra)
    named = [group for group in names if any(text.startswith(f"{group}=") for text in typed)]
    sections = [_section(group, names[group], values) for group in named if group not in OVERLAYS]
    return "\n\n".join(filter(None, sections or [_introduction(verb), *_all_sections(verb, names, values)]))


def _about(verb: str, topic: str) -> str:
    """The options of this name, of every group that has one; with a short name, what it stands for."""
    name = canonical(topic)
    alias = ALIASES[verb].get(name)
    places = alias.place.split(", ") if alias else []
    rows = [Documented(name, "", f"{alias.text} ({alias.place})")] if alias else []
    for option, having in known_options(verb).items():
        if option in (name, *places) or (not alias and option.endswith(f".{name}")):
            group, _, key = option.partition(".")
            files = [config_dir() / group / f"{choice}.yaml" for choice in having] or [config_dir() / f"{verb}.yaml"]
            texts = dict.fromkeys(option_docs(file).get(key if having else option, "") for file in files)
            rows += [Documented(option, "", text) for text in texts]
    return "\n".join(_table(rows, show_default=False))


def _introduction(verb: str) -> str:
    lines = [INTRODUCTIONS[verb], ""]
    if verb == "train":
        lines = [INTRODUCTIONS[verb], SHOWN_VALUES, ""]
    lines += [f"  vision-stack {verb} {example}".rstrip() for example in EXAMPLES[verb]]
    rows = [Documented(name, "", f"{alias.text} ({alias.place})") for name, alias in ALIASES[verb].items()]
    return "\n".join([*lines, "", "Short names, also as flags (--name VALUE):", *_table(rows, show_default=False)])


def _all_sections(verb: str, chosen: Mapping[str, str], values: Mapping[str, Any]) -> Iterator[str]:
    docs = option_docs(config_dir() / f"{verb}.yaml")
    own = [
        Documented(name, _show(value), docs.get(name, ""))
        for name, value in _leaves({k: v for k, v in values.items() if k in {name.partition(".")[0] for name in docs}})
        if not name.startswith("hydra")
    ]
    yield "\n".join(["Options:", *_table(own)])
    if parts := [group for group in (*PARTS, "data", "experiment") if group in chosen]:
        rows = [Documented(group, chosen[group], _choices(group)) for group in parts]
        if verb == "train":
            rows.append(Documented("augment", chosen.get("augment", "null"), _choices("augment")))
        yield "\n".join(["Parts (all of a kind: --help head; options of one: --help head=mask2former):", *_table(rows)])
    for group in chosen:
        if group not in (*PARTS, *OVERLAYS, "hydra") and isinstance(values.get(group), Mapping):
            yield _section(group, chosen[group], values)
    yield (
        "Several values run one after the other with -m (-m lr=1e-4,5e-4). --cfg=job prints the options as yaml, "
        "--hydra-help what Hydra itself takes."
    )


def _section(group: str, name: str, values: Mapping[str, Any]) -> str:
    docs = option_docs(config_dir() / group / f"{name}.yaml")
    rows = [
        Documented(f"{group}.{key}", _show(value), docs.get(key, ""))
        for key, value in _leaves(values.get(group) or {})
        if not key.endswith("_target_") and key != "type"
    ]
    return "\n".join([f"{group}={name}:", *_table(rows)]) if rows else ""


def _all_choices(group: str) -> str:
    rows = [
        Documented(f"{group}={name}", "", introduction(group, name))
        for name in choices(group)
        if not name.startswith("parts/")
    ]
    more = ["", "`vision-stack backbones` lists them with their sizes."] if group == "backbone" else []
    how = f"Choices (options of one: --help {rows[0].name}):"
    return "\n".join([how, *_table(rows, show_default=False), *more])


def _choices(group: str) -> str:
    names = choices(group)
    if len(names) <= 12:
        return " | ".join(names)
    return f"{len(names)} to choose from" + ("; `vision-stack backbones` lists them" if group == "backbone" else "")


def _table(rows: Sequence[Documented], show_default: bool = True) -> list[str]:
    columns = min(shutil.get_terminal_size().columns, 120)
    names = [f"{row.name}={row.default}" if show_default else row.name for row in rows]
    width = min(max((len(name) for name in names), default=0), 38)
    lines: list[str] = []
    for name, row in zip(names, rows, strict=True):
        text = textwrap.wrap(row.text, max(columns - width - 4, 20)) or [""]
        first = text.pop(0) if len(name) <= width else ""
        lines.append(f"  {name:<{width}}  {first}".rstrip())
        lines += [f"  {'':<{width}}  {line}" for line in text]
    return lines


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _show(value: Any) -> str:
    """A default as it would be typed."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{','.join(_show(item) for item in value)}]"
    return "" if value == "???" else f"{value:g}" if isinstance(value, float) else str(value)
