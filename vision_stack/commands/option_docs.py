"""The options of the yaml files, and what their comments say, without Hydra."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vision_stack.config import config_dir

OVERLAYS = ("experiment", "augment")  # folders of yaml files that set options of other groups
_LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<value>.*?)(?:(?:^| )# ?(?P<comment>.*))?")


@functools.cache
def option_docs(file: Path) -> dict[str, str]:
    """The options of a yaml file by dotted name, and what their comments say; of the files it builds on, too."""
    docs: dict[str, str] = {}
    if not file.is_file():  # of a plugin
        return docs
    stack: list[tuple[int, str]] = []
    above: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("#"):
            above.append(line.lstrip("# ").rstrip())
            continue
        match = _LINE.fullmatch(line)
        base = re.fullmatch(r"(?:defaults: \[| *- )(?!_self_)(\w+)\]?", line)
        if base:
            docs |= option_docs(file.with_name(f"{base[1]}.yaml"))
        if match is None:
            above = []
            continue
        while stack and stack[-1][0] >= len(match["indent"]):
            stack.pop()
        stack.append((len(match["indent"]), match["key"]))
        name = ".".join(key for _, key in stack)
        text = match["comment"] or " ".join(above)
        above = []
        if match["value"].strip() and (text or name not in docs):
            docs[name] = text
    return {name: text for name, text in docs.items() if not name.startswith(("defaults", "hydra"))}


def groups() -> list[str]:
    """Of options, each with a folder of yaml files; `OVERLAYS` are none."""
    folders = (path.name for path in config_dir().iterdir() if path.is_dir())
    return sorted(name for name in folders if name not in OVERLAYS and not name.startswith(("_", ".")))


def choices(group: str) -> list[str]:
    """Names of its yaml files; those of experiments are in folders, too."""
    folder = config_dir() / group
    files = folder.rglob("*.yaml") if group == "experiment" else folder.glob("*.yaml")
    names = (file.relative_to(folder).with_suffix("").as_posix() for file in files)
    return sorted(name for name in names if not name.startswith("_"))  # those are built on


def introduction(group: str, choice: str) -> str:
    """The comment that a yaml file begins with."""
    lines = (config_dir() / group / f"{choice}.yaml").read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.strip("# ") for line in comment if not line.startswith("# @package"))


@functools.cache
def known_options(verb: str) -> Mapping[str, Sequence[str]]:
    """Dotted names of all options of a verb, whatever is chosen, and the choices of their groups that have them.

    Those of no group have none. Of `data` the checkpoint chooses for eval.
    """
    known: dict[str, list[str]] = {name: [] for name in option_docs(config_dir() / f"{verb}.yaml")}
    for group in {"train": groups(), "eval": ["data", "logger", "trainer"]}.get(verb, []):
        for choice in choices(group):
            if group != "trainer" or (choice == "eval") == (verb == "eval"):
                for name in option_docs(config_dir() / group / f"{choice}.yaml"):
                    known.setdefault(f"{group}.{name}", []).append(choice)
    return known
