"""`resume=`: the options of the run that is resumed, from the config.yaml in its folder, with what was typed on top."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from vision_stack.commands.arguments import (
    continue_in_run_dir,
    option_key,
    refuse_finished_run,
    resumed_checkpoint,
    run_of,
    train_arguments,
    typed_run_dir,
)
from vision_stack.commands.composing import CHOICES, Composition, choice_names
from vision_stack.commands.option_docs import OVERLAYS, groups
from vision_stack.commands.run_config import check_trusted, literal_options, read_run_config, read_yaml
from vision_stack.config import config_dir
from vision_stack.ops.run_files import CONFIG_FILE

RESUMED = "resumed_run"  # name of the config that is made of the file
LENGTHS = {"trainer.max_epochs": "-1", "trainer.max_steps": "-1", "trainer.max_time": "null"}  # no limit


def train_composition(argv: Sequence[str], *, one_run: bool = True) -> Composition:
    """What a training is composed of: the yaml files, or the run that is resumed; and the options on top.

    Args:
        argv: `option=value`, as typed.
        one_run: False for a sweep, which writes into folders below `run_dir`, and where nothing is trained.

    Raises:
        ValueError: `resume` or `run_dir` does not fit what is there, or the run's config.yaml cannot be followed.
    """
    options = continue_in_run_dir(argv)
    checkpoint = resumed_checkpoint(options)
    run = run_of(checkpoint) if checkpoint else None
    stored = read_run_config(run / CONFIG_FILE) if run and (run / CONFIG_FILE).is_file() else {}
    if run is None or CHOICES not in stored:  # taken out of its run, or of an earlier version
        return Composition("train", train_arguments(options, one_run=one_run))
    if one_run:
        refuse_finished_run(typed_run_dir(options) or run, str(checkpoint))
    try:
        return _on_top(stored, options)
    except ValueError as error:
        raise ValueError(f"resume: {run / CONFIG_FILE}: {error}") from None


def _on_top(stored: dict[str, Any], options: Sequence[str]) -> Composition:
    """The stored options as a config of Hydra's, and what was typed as overrides of it."""
    typed = {option_key(option): option.partition("=")[2] for option in options}
    choices = {group: _checked(group, name, stored) for group, name in stored[CHOICES].items()}
    for overlay in OVERLAYS:
        name = _text(choices.get(overlay, "null"))
        if choice_names(typed.get(overlay, name)) != choice_names(name):
            raise ValueError(f"the run has {overlay}={name}; give single options to change it, or start a new run")
    named = {group: typed[group] for group in choices if group in typed and group not in OVERLAYS}
    new = {group: name for group, name in named.items() if choice_names(name) != choice_names(_text(choices[group]))}
    hydra = [option for option in options if option_key(option).startswith("hydra.")]
    chosen = _compose_groups(named, hydra)
    for option in options:
        if option.startswith("~"):
            _remove(stored, option[1:].partition("=")[0].split("."))
    check_trusted(stored, typed, chosen)
    base = literal_options(stored)
    replaced = _compose_groups({group: _text(choices[group]) for group in new}, hydra)
    for group, name in new.items():
        base[group] = _changed(base[group], replaced[group], chosen[group])
        base[CHOICES][group] = choice_names(name) if name.startswith("[") else name
    main = read_yaml(config_dir() / "train.yaml")
    own = [each for each in main["defaults"] if each == "_self_" or next(iter(each)).startswith("override hydra/")]
    node = {"defaults": own, **base, "hydra": main["hydra"]}
    ConfigStore.instance().store(RESUMED, OmegaConf.create(node))
    rest = [o for o in options if not o.startswith("~") and option_key(o) not in named.keys() | set(OVERLAYS)]
    again = [f"+{option}" if re.match(r"\+[^+]", option) else option for option in rest]  # there already, perhaps
    return Composition(RESUMED, [*again, *_lifted(typed, base)])


def _lifted(typed: Mapping[str, str], base: Mapping[str, Any]) -> list[str]:
    """`epochs=20` is how long the run is to be, whatever limited it before."""
    changed = [key for key in LENGTHS if key in typed and typed[key] != str(_lookup(base, key.split(".")))]
    return [f"{key}={no_limit}" for key, no_limit in LENGTHS.items() if changed and key not in typed]


def _remove(options: Any, path: Sequence[str]) -> None:
    """`~callbacks.progress`, which may have been typed for the run, too."""
    parent = _lookup(options, path[:-1])
    if isinstance(parent, dict):
        parent.pop(path[-1], None)


def _lookup(options: Any, path: Sequence[str]) -> Any:
    for name in path:
        options = options.get(name) if isinstance(options, dict) else None
    return options


# Groups, which are chosen by name


def _checked(group: str, name: Any, stored: Mapping[str, Any]) -> Any:
    """The stored choice of a group, one name or several."""
    names = name if isinstance(name, list) else [name]
    if group not in OVERLAYS and not (group in groups() and isinstance(stored.get(group), dict)):
        raise ValueError(f"{CHOICES}.{group}: there is no such group of options")
    if not all(isinstance(each, str) and re.fullmatch(r"\w+(/\w+)*", each, re.ASCII) for each in names):
        raise ValueError(f"{CHOICES}.{group}: expected a name, got {name!s:.60}")
    return name


def _text(name: Any) -> str:
    """A choice as it would be typed."""
    return f"[{','.join(name)}]" if isinstance(name, list) else str(name)


def _compose_groups(choices: Mapping[str, str], hydra: Sequence[str]) -> dict[str, Any]:
    """What the yaml files have for these choices, with interpolations, without anything of an experiment's."""
    if not choices:
        return {}
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", ["~experiment", *(f"{group}={name}" for group, name in choices.items()), *hydra])
    return {group: OmegaConf.to_container(config[group], resolve=False) for group in choices}


def _changed(base: Any, old: Any, new: Any) -> Any:
    """`base` with the differences between two choices: single options that were typed for the run stay."""
    if old == new:
        return base
    if not all(isinstance(each, Mapping) for each in (base, old, new)):
        return new
    kept = {key: value for key, value in base.items() if key in new or key not in old}
    return kept | {
        key: _changed(base.get(key), old.get(key), value) for key, value in new.items() if key in base or key not in old
    }
