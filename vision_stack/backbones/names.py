"""Where the name of a backbone leads: a directory, one of our named configs, a timm model, or a hub repository."""

from __future__ import annotations

import functools
import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import yaml
from huggingface_hub.utils import HFValidationError, validate_repo_id

from vision_stack.backbones.config_json import TIMM, config_class, read_backbone_config
from vision_stack.backbones.hub import CONFIG_FILE, PublishedWeights, fetch_from_hub
from vision_stack.backbones.stages import STAGE_FIELDS
from vision_stack.config import ConfigError, config_dir, from_dict, registered, to_dict

PROCESSOR_FILE = "preprocessor_config.json"


@functools.cache
def named_backbones() -> dict[str, Path]:
    """The files of configs/backbone by the name that `backbone=` takes, except those of a type only."""
    types = registered("backbone")
    return {file.stem: file for file in sorted((config_dir() / "backbone").glob("*.yaml")) if file.stem not in types}


def config_from_pretrained(
    name: str | Path,
    *,
    use_timm_backbone: bool = False,
    use_pretrained_backbone: bool | str = True,
    **options: Any,
) -> Any:
    """The config of `AutoBackbone.from_pretrained`, with the weights that its backbone is to start from."""
    config = find_backbone(name, use_timm_backbone=use_timm_backbone)
    weights = config.initial_weights if use_pretrained_backbone is True else use_pretrained_backbone
    selection = {option: options.pop(option) for option in STAGE_FIELDS if options.get(option) is not None}
    if options:
        config = from_dict({**to_dict(config), **options}, "backbone")
    config = config.starting_from(weights)
    if selection:
        config.select(**selection)
    return config


def find_backbone(name: str | Path, *, use_timm_backbone: bool = False) -> Any:
    """The config that a name means, which remembers the weights of that name as its `initial_weights`.

    Tried in this order: a directory with a config.json; one of ours, as `backbone=NAME` takes it; a timm model, with a
    tag or without; a hub id (`owner/name`), from the cache or the network. With `use_timm_backbone`, only timm.
    The stages are those of the config.json, otherwise the last.

    Raises:
        ConfigError: the name is none of these; the line says what was tried and what would work.
    """
    text = _checked(name)
    if use_timm_backbone:
        return config_class(TIMM)(text.removeprefix("timm/")).starting_from(True)
    folder, timm_name = Path(os.path.expanduser(text)), text.removeprefix("timm/")
    built_in = text in named_backbones() or timm.is_model(timm_name.partition(".")[0])
    # os.path says no to what cannot be a path, such as a name of 300 letters, where pathlib raises an OSError.
    if os.path.isfile(folder / CONFIG_FILE) or (os.path.isdir(folder) and not built_in):
        config = read_backbone_config(folder / CONFIG_FILE, companion_file(folder, PROCESSOR_FILE))
        return config.starting_from(str(folder))
    if text in named_backbones():
        return _read_named(named_backbones()[text]).starting_from(True)
    if built_in:
        return config_class(TIMM)(timm_name).starting_from(True)
    if _is_hub_id(text):
        return _from_hub(text)
    close = get_close_matches(text, {*named_backbones(), *timm.list_models()}, n=3)
    advice = f"did you mean {', '.join(close)}?" if close else "list_backbones() has the names"
    raise ConfigError(
        f"{text[:80]!r} is not a directory, a built-in name, a timm model or a Hub id (owner/name); {advice}"
    )


def companion_file(name: str | Path, filename: str) -> Path | None:
    """A file beside the config.json of a name, if there is one; asks the hub no more than once."""
    text = _checked(name)
    folder = Path(os.path.expanduser(text))
    if os.path.isdir(folder):
        return folder / filename if os.path.isfile(folder / filename) else None
    if text in named_backbones() or not _is_hub_id(text):
        return None
    found = fetch_from_hub(PublishedWeights(text, None, (filename,)), [])
    return found[0] if found else None


def _checked(name: Any) -> str:
    if not isinstance(name, str | Path) or not 0 < len(str(name)) <= 1000 or "\0" in str(name):
        raise ConfigError(f"name: expected a directory, a hub id or the name of a model, got {name!r:.60}")
    return str(name)


def _is_hub_id(text: str) -> bool:
    """Whether the hub could have a repository of this name, owner/name."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return "/" in text


def _from_hub(repo_id: str) -> Any:
    tried: list[str] = []
    found = fetch_from_hub(PublishedWeights(repo_id, None, (CONFIG_FILE,)), tried)
    if found is None:
        close = get_close_matches(repo_id.partition("/")[2].replace("-", "_"), [*named_backbones()], n=1, cutoff=0.4)
        advice = f", or take {close[0]!r}, which is built in" if close else ""
        raise ConfigError(
            f"{repo_id!r} is not a directory, a built-in name or a timm model; as a Hub id, tried {', '.join(tried)}; "
            f"connect to the network, or give a directory that holds its {CONFIG_FILE} and weights{advice}"
        )
    config = read_backbone_config(found[0], companion_file(repo_id, PROCESSOR_FILE))
    return config.starting_from(PublishedWeights(repo_id, None))


def named_options(file: Path) -> dict[str, Any]:
    """The options of a file of configs/backbone, on top of those of the file that it builds on."""
    options = yaml.safe_load(file.read_text(encoding="utf-8"))
    for base in options.pop("defaults", []):
        options = named_options(file.with_name(f"{base}.yaml")) | options
    return options


def _read_named(file: Path) -> Any:
    options = named_options(file)
    kept = {key: value for key, value in options.items() if key not in ("pretrained", *STAGE_FIELDS)}
    return from_dict(kept, "backbone")
