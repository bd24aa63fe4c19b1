"""The yaml files and what was typed, composed by Hydra into plain options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from vision_stack.commands import run_folders  # noqa: F401  registers the resolver that the yaml files use
from vision_stack.config import config_dir, suggest


def compose_options(verb: str, options: Sequence[str]) -> tuple[dict[str, Any], DictConfig]:
    """The plain options of `configs/{verb}.yaml` with `options` on top, and Hydra's own config.

    Raises:
        ValueError: the experiment that was named does not exist.
    """
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose(verb, list(options), return_hydra_config=True)
        check_experiment(config.hydra)
    hydra = config.hydra
    with open_dict(config):
        del config["hydra"]
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return plain, hydra


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
            raise ValueError(f"experiment={name}: there is no such experiment; {suggest(name, known)}")


def _experiments(loader: ConfigLoader, folder: str = "") -> Iterator[str]:
    """Names of all experiments on the search path, in folders too."""
    group = f"experiment/{folder}".rstrip("/")
    yield from (f"{folder}{name}" for name in loader.get_group_options(group))
    for name in loader.get_group_options(group, ObjectType.GROUP):
        yield from _experiments(loader, f"{folder}{name}/")
