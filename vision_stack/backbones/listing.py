"""What backbones there are: `vision-stack backbones [FILTER]` prints a row for each.

Built on the meta device, one by one as they are asked for: no memory, no weights.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import timm

from vision_stack.backbones.meta import on_meta
from vision_stack.backbones.names import named_backbones, named_options
from vision_stack.backbones.timm_backbone import TimmBackboneConfig
from vision_stack.config import ConfigError, from_dict, registered
from vision_stack.ops.text import matches

MANY = 40  # rows; timm's models beyond that are counted, for each takes about a second


class Row(NamedTuple):
    """A backbone as its yaml has it."""

    name: str  # of configs/backbone, or timm's
    model: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    parameters: int  # of the stages that are built


def describe(name: str, config: Any) -> Row:
    """Built on the meta device."""
    with on_meta():
        backbone = config.build()
    specs = backbone.out_specs
    count = sum(p.numel() for p in backbone.parameters())
    return Row(
        name,
        getattr(config, "model_name", config.type),
        tuple(spec.channels for spec in specs),
        tuple(spec.stride for spec in specs),
        count,
    )


def named_rows(text: str = "") -> Iterator[Row]:
    """The named backbones whose name or model matches: a part of it, or a pattern with `*` as in a shell."""
    for name, file in named_backbones().items():
        options = named_options(file)
        options.pop("pretrained", None)
        if matches(text, name) or matches(text, options.get("model_name", "")):
            yield describe(name, from_dict(options, "backbone"))


def timm_rows(names: list[str]) -> Iterator[Row]:
    """Models of timm with their maps at strides 4 to 32, where they have these; none of those without features."""
    for name in names:
        try:
            config = TimmBackboneConfig(name)
            strides = {spec.stride for spec in config.stages}
            if len(strides) > 1:
                config.out_strides = sorted(strides & {4, 8, 16, 32}) or None
            yield describe(name, config)
        except ConfigError:
            continue


def print_backbones(text: str = "", *, timm_models: bool = False, width: int | None = None) -> int:
    """Print a row for each backbone that matches, each as soon as it is known, and return how many there are."""
    width = width or shutil.get_terminal_size().columns
    known = [name for name in timm.list_models() if timm_models and matches(text, name)]
    count = 0
    for count, row in enumerate(chain(named_rows(text), timm_rows(known[:MANY])), start=1):
        if count == 1:
            print(_line("backbone=", "channels", "strides", "M param.", "model", width))
        channels, strides = (" ".join(map(str, numbers)) for numbers in (row.channels, row.strides))
        print(_line(row.name, channels, strides, f"{row.parameters / 1e6:.1f}", row.model, width), flush=True)
    lines = [f"{count} backbones"]
    if len(known) > MANY:
        lines.append(f"and {len(known) - MANY} more models of timm; narrow the filter to see them")
    lines.append(f"By type, with the architecture in backbone.* options: {', '.join(registered('backbone'))}")
    lines.append("Any model of timm: backbone=timm backbone.model_name=NAME (--timm lists them)")
    print("\n".join(part for line in lines for part in textwrap.wrap(line, width)))
    return count


def _line(name: str, channels: str, strides: str, parameters: str, model: str, width: int) -> str:
    """The model's name comes last and is cut, so that a row is a line."""
    return f"{name:21s} {channels:18s} {strides:10s} {parameters:>8s}  {model}"[:width]
