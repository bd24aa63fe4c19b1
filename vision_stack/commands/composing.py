"""The yaml files and what was typed, composed by Hydra into plain options."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from vision_stack.commands import run_folders  # noqa: F401  registers the resolver that the yaml files use
from vision_stack.commands.option_docs import groups
from vision_stack.config import config_dir

CHOICES = "choices"  # in the plain options: which yaml each group came from


class Composition(NamedTuple):
    """What is to be composed."""

    name: str  # of the config: `configs/{name}.yaml`, or one that was made up
    options: list[str]  # on top of it


def compose_options(composition: Composition) -> tuple[dict[str, Any], DictConfig]:
    """Plain options, and Hydra's own config.

    Raises:
        ValueError: the experiment that was named does not exist.
    """
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose(composition.name, composition.options, return_hydra_config=True)
        check_experiment(config.hydra)
    hydra = config.hydra
    with open_dict(config):
        del config["hydra"]
    return plain_options(config, hydra), hydra


def plain_options(config: DictConfig, hydra: HydraConf | DictConfig, *, complete: bool = False) -> dict[str, Any]:
    """Options without interpolations, as a run stores them in its config.yaml; with the names of the yaml files that
    were chosen, as `choices`.

    Args:
        complete: refuse options that were to be given and were not.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=complete)
    plain.setdefault(CHOICES, chosen(hydra))
    return plain


def chosen(hydra: HydraConf | DictConfig) -> dict[str, Any]:
    """The choice in each group, a list where there are several."""
    names_of = {group: name for group, name in hydra.runtime.choices.items() if "/" not in group and name}
    for text in hydra.overrides.task:  # Hydra does not record lists
        group, _, names = text.partition("=")
        if names.startswith("[") and group in groups():
            names_of[group] = choice_names(names)
    return names_of


def choice_names(choice: str) -> list[str]:
    """Of one choice as it is typed, or of several: `[csv,wandb]`."""
    return [name.strip(" '\"") for name in choice.strip("[]").split(",")]


def check_experiment(config: HydraConf | DictConfig) -> None:
    """Raise ValueError if the experiment that was named does not exist: in the defaults list it is optional."""
    typed = any(text.lstrip("+").startswith("experiment=") for text in config.overrides.task)
    names = config.runtime.choices.get("experiment")
    if not typed or names is None:
        return
    loader = GlobalHydra.instance().config_loader()
    known = sorted(_experiments(loader))
    for name in names if isinstance(names, ListConfig) else [names]:
        if name not in known:
            raise ValueError(f"experiment={name}: there is no such experiment; {_nearest(name, known)}")


def _nearest(name: str, known: Sequence[str]) -> str:
    """Those that were probably meant, in folders too, or all that can be run."""
    whole = [each for each in known if not each.startswith("parts/")]  # which others are made of
    leaf = name.rpartition("/")[2]
    close = [each for each in whole if each.endswith(f"/{leaf}")] or difflib.get_close_matches(name, whole, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"choose one of: {', '.join(whole)}"


def _experiments(loader: ConfigLoader, folder: str = "") -> Iterator[str]:
    """Names of all experiments on the search path, in folders too."""
    group = f"experiment/{folder}".rstrip("/")
    yield from (f"{folder}{name}" for name in loader.get_group_options(group))
    for name in loader.get_group_options(group, ObjectType.GROUP):
        yield from _experiments(loader, f"{folder}{name}/")
