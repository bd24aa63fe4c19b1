"""Modules of the user's own that register parts: imported by name, and their parts made choices of Hydra's groups."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from vision_stack.commands.composing import choice_names
from vision_stack.config import Config, registered, to_dict

KINDS = ("backbone", "neck", "head")


def import_plugins(names: str | Sequence[str]) -> None:
    """Import modules of the user's own, one or several, which register parts.

    Raises:
        ValueError: there is no such module, or this is not a list of names.
    """
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"plugins: expected a list of modules, plugins=[my_parts], got {names!r}")
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and imports something that is not
            raise ValueError(f"plugins: no module {name} in {os.getcwd()}, nor among what is installed") from None


def offer_plugins(options: Sequence[str]) -> None:
    """Import what `plugins=` says among the options, so that its parts can be chosen: `head=my_head`.

    A part has the options of its config with their defaults, unless a yaml file of that name is on the search path.
    """
    names = _listed(options, "plugins")
    if not names:
        return
    import_plugins(names)
    folders = [_folder(path) for path in _listed(options, "hydra.searchpath")]
    for kind in KINDS:
        for name, cls in registered(kind).items():
            own = cls.__module__.partition(".")[0] != __package__.partition(".")[0]
            if own and not any((folder / kind / f"{name}.yaml").is_file() for folder in folders):
                ConfigStore.instance().store(group=kind, name=name, node=_options(kind, cls), provider="plugins")


def _listed(options: Sequence[str], name: str) -> list[str]:
    """The members of a list that was typed; none if it was not."""
    values = [value for key, _, value in (text.partition("=") for text in options) if key.lstrip("+") == name]
    return [each for each in choice_names(values[-1]) if each] if values else []


def _folder(path: str) -> Traversable:
    """What Hydra's search path means: `pkg://my_package.configs`, `file:///home/me/configs` or a plain path."""
    kind, _, place = path.rpartition("://")
    return files(place) if kind == "pkg" else Path(place)


def _options(kind: str, cls: type[Config]) -> dict[str, Any]:
    """As the part's yaml file would have them; `???` is an option that has to be given."""
    plain: dict[str, Any] = {"type": cls.type}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            plain[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            plain[field.name] = field.default_factory()
        else:
            plain[field.name] = "???"
    if kind == "backbone":
        plain["pretrained"] = False  # where its weights come from is no option of its config
    return {name: to_dict(value) for name, value in plain.items()}
