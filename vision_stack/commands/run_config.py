"""The config.yaml in a run's folder, read as the file of a stranger, which it may be.

It holds plain values, which the registry decodes as it does those of the yaml files, and text that looks like an
interpolation stays text. What could import something or write elsewhere is taken from it only as our own yaml files
have it: `_target_` and the like, `plugins`, where loggers write. Anything else of that kind has to be typed again.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vision_stack.commands.arguments import literal
from vision_stack.commands.composing import CHOICES
from vision_stack.commands.option_docs import groups
from vision_stack.config import config_dir

INSTANTIATED = ("trainer", "callbacks", "logger")  # groups of which objects are made
MAX_BYTES = 4_000_000
_ELSEWHERE = re.compile(r"[/\\]|^\.\.?$|^~")  # in a path that leads out of a folder, or in an address


def read_run_config(file: Path) -> dict[str, Any]:
    """Options by name.

    Raises:
        ValueError: damaged, or nothing that a training wrote; one line.
    """
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file}: more than {MAX_BYTES:,} bytes; give a run that train wrote")
    stored = read_yaml(file)
    if not isinstance(stored, dict) or not isinstance(stored.get(CHOICES, {}), dict):
        raise ValueError(f"{file}: expected a mapping of options; give a run that train wrote")
    return stored


class _Loader(yaml.SafeLoader):
    """Without aliases, of which a few lines unfold to any size."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not supported")
        return super().compose_node(parent, index)


def read_yaml(file: Path) -> Any:
    """Plain values.

    Raises:
        ValueError: not yaml; one line.
    """
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file}: cannot be read as yaml ({reason}); give a run that train wrote") from None


def check_trusted(stored: Mapping[str, Any], typed: Mapping[str, str], chosen: Mapping[str, Any]) -> None:
    """Raise ValueError for what has to be typed again, unless it was.

    Args:
        stored: of a config.yaml.
        typed: options by name.
        chosen: the groups that were typed, as the yaml files have them.
    """
    for name in stored.keys() - _known_groups():
        if name in ("hydra", "defaults") or not any(key.partition(".")[0] == name for key in typed):
            raise ValueError(f"{name}: unknown option; remove it from the file, or give it again as +{name}=...")
    if stored.get("plugins") and "plugins" not in typed:
        names = stored["plugins"] if isinstance(stored["plugins"], list) else [stored["plugins"]]
        raise ValueError(f"plugins: may be any code; give plugins=[{','.join(map(str, names))}] again")
    for group in INSTANTIATED:
        files = sorted((config_dir() / group).glob("*.yaml"))
        own = {value for node in (*map(read_yaml, files), chosen.get(group)) for _, value in _instructions(node, "")}
        for path, value in _instructions(stored.get(group), group):
            if path not in typed and not (path.endswith("_target_") and isinstance(value, str) and value in own):
                raise ValueError(
                    f"{path}: not one of vision_stack's own; if you trust it, give +{path}={value!s:.80} again"
                )
    places = _places(stored)
    for path, value in _leaves(stored.get("logger"), "logger"):
        *_, key = path.split(".")
        if isinstance(value, str) and _ELSEWHERE.search(value) and key != "_target_" and path not in {*places, *typed}:
            raise ValueError(f"{path}: not in the run's folder; if you trust it, give {path}={value:.80} again")


def literal_options(stored: Mapping[str, Any]) -> dict[str, Any]:
    """For OmegaConf: nothing is an interpolation but places of the run's loggers, which follow its folder."""
    options = _literal(stored, "")
    for path, interpolation in _places(stored).items():
        _, name, key = path.split(".", 2)
        options["logger"][name][key] = interpolation
    return options


def _places(stored: Mapping[str, Any]) -> dict[str, str]:
    """Options of the run's loggers that have just what the yaml files say in terms of `run_dir` or the environment."""
    places: dict[str, str] = {}
    yaml_nodes = [node for file in sorted((config_dir() / "logger").glob("*.yaml")) for node in _nodes(read_yaml(file))]
    for name, node in (stored.get("logger") or {}).items():
        for ours in yaml_nodes:
            if not isinstance(node, Mapping) or node.get("_target_") != ours.get("_target_"):
                continue
            for key, value in ours.items():
                if isinstance(value, str) and "${" in value and _means(value, node.get(key, ""), stored):
                    places[f"logger.{name}.{key}"] = value
    return places


def _nodes(logger: Any) -> Iterator[Mapping[str, Any]]:
    yield from (node for node in logger.values() if isinstance(node, Mapping))


def _means(interpolation: str, value: Any, stored: Mapping[str, Any]) -> bool:
    run_dir = str(stored.get("run_dir"))
    with contextlib.suppress(OmegaConfBaseException):
        resolved = OmegaConf.create({"run_dir": literal(run_dir), "value": interpolation}).value
        return isinstance(value, str) and Path(value) == Path(resolved)
    return False


def _known_groups() -> set[str]:
    main = read_yaml(config_dir() / "train.yaml").keys() - {"hydra", "defaults"}
    return main | {*groups(), CHOICES}


def _instructions(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """What `instantiate` obeys: `_target_`, `_args_`, `_partial_`, ..."""
    return ((p, value) for p, value in _leaves(node, path) if any(key.startswith("_") for key in p.split(".")))


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}")
    elif isinstance(node, list) and node:
        for index, value in enumerate(node):
            yield from _leaves(value, f"{path}[{index}]")
    else:
        yield path, node


def _literal(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError(f"{path or 'options'}: expected names as keys; give a run that train wrote")
        return {key: _literal(item, f"{path}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item, path) for item in value]
    if isinstance(value, str):
        return literal(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise ValueError(f"{path}: expected a plain value, got a {type(value).__name__}; give a run that train wrote")
