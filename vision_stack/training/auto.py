"""Options with `auto` in them: what stands there until the data is read, and what takes its place then."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vision_stack.config import RENAMED, from_dict, registered, to_dict
from vision_stack.data.configs import DataConfig
from vision_stack.data.datamodule import DataModule, build_datamodule
from vision_stack.structures import HeadConfig, Task
from vision_stack.training.optim import OptimConfig
from vision_stack.training.recipe import AUTO, RULES, Facts, Recipe, Settled, lookup

DATA_TASKS: tuple[Task, ...] = ("semantic", "panoptic")  # that are chosen where the data has no other
DEFAULT_TASK: Task = "instance"  # of configs/train.yaml
PLACEHOLDERS = {  # of options without a dataclass, or without a default that fits whatever else is typed
    "backbone.model_name": "resnet50",
    "data.train_transform.crop_size": 512,
    "trainer.max_epochs": -1,
    "trainer.max_steps": -1,
    "trainer.precision": "32-true",
    "trainer.check_val_every_n_epoch": 1,
    "trainer.val_check_interval": None,
}


def fitting(options: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy without values that the data's own recipe has for other parts than the chosen ones.

    `experiment/shapes.yaml` sets `head.num_queries`, which `head=mask_rcnn` does not have. What was typed stays, and so
    does another recipe that was named, so that mistakes in them are reported.
    """
    result = _renamed(options)
    typed = {name.lstrip("+"): value for name, _, value in (text.partition("=") for text in overrides)}
    own = lookup(result, "data.type")
    if typed.get("experiment", own) != own:
        return result
    for kind in ("neck", "head"):
        if cls := registered(kind).get(str(result[kind].get("type"))):
            _drop_unknown(result[kind], cls, kind, typed)
    return result


def task_of_data(config: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The options with a task that the data has annotations for, and what to say of that.

    It is only chosen where nobody has: nothing but the default stands there, and a mask head can learn it as well.
    """
    result = dict(config)
    typed = any(text.lstrip("+").startswith(("task=", "resume=", "weights=")) for text in overrides)
    if (
        typed
        or result["task"] != DEFAULT_TASK
        or result["data"].get("type") != "auto"
        or not result["data"].get("root")
    ):
        return result, []
    tasks = from_dict(without_autos(config)["data"], kind="data").tasks()
    chosen = next((task for task in DATA_TASKS if task in tasks), None)
    if chosen is None or DEFAULT_TASK in tasks:
        return result, []
    result["task"] = chosen
    return result, [f"task        {chosen}: what the data has; task=NAME chooses another"]


def data_for(head: HeadConfig, early: Mapping[str, Any]) -> DataModule:
    """The data of plain options without `auto`, with what the head learns from.

    Raises:
        ConfigError: the head does not learn the task, or not from such masks.
    """
    config: DataConfig = from_dict(early["data"], kind="data")
    head.check_task(early["task"])
    head.check_mask_stride(config.mask_stride)
    return build_datamodule(config, early["seed"], task=early["task"], masks=head.reads_masks)


def _drop_unknown(part: dict[str, Any], cls: type[Any], path: str, typed: Iterable[str]) -> None:
    """Remove what a config does not have, nor the configs in it, unless it was typed."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in part.keys() - {"type", *fields}:
        option = f"{path}.{name}"
        if option not in RENAMED and not any(key == option or key.startswith(f"{option}.") for key in typed):
            del part[name]
    for name, field in fields.items():
        if isinstance(part.get(name), dict) and field.default_factory is not dataclasses.MISSING:
            _drop_unknown(part[name], type(field.default_factory()), f"{path}.{name}", typed)


def _renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with the present names of options; both names at once are left for the decoder to refuse."""
    result = copy.deepcopy(dict(options))
    for old, new in RENAMED.items():
        if _has(result, old) and not _has(result, new):
            (part, old_name), new_name = _parent(result, old), new.rpartition(".")[2]
            part[new_name] = part.pop(old_name)
    return result


def auto_paths(options: Mapping[str, Any]) -> list[str]:
    """The options that are `auto` and can be."""
    return [path for path in RULES if lookup(options, path) == AUTO]


def without_autos(options: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which options that are `auto` and can be have their configs' defaults; those of no config are gone."""
    result = copy.deepcopy(dict(options))
    for path in auto_paths(options):
        part, last = _parent(result, path)
        part[last] = _default(options, path)
        if part[last] is dataclasses.MISSING:
            _remove(result, path)
    return result


def _default(options: Mapping[str, Any], path: str) -> Any:
    """The default of an option by its dataclass, that of the head's own kind for `head.loss.class_weight`."""
    group, name, *rest = path.split(".")
    if path in PLACEHOLDERS:
        return PLACEHOLDERS[path]
    cls = OptimConfig if group == "optim" else registered(group).get(str(options[group].get("type")))
    field = {field.name: field for field in dataclasses.fields(cls)}.get(name) if cls else None
    if field is None:
        return dataclasses.MISSING
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return to_dict(lookup(to_dict(value), ".".join(rest)) if rest else value)


def settle(
    options: Mapping[str, Any],
    defaults: Mapping[str, Any],
    facts: Facts | None,
    stored: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Settled]]:
    """Options without `auto`, and what was put in its place.

    Args:
        options: plain options of configs/train.yaml.
        defaults: the same, decoded without the `auto`s. An option that its part does not have is left out of the
            result.
        facts: of the run; None where `stored` has all that is asked for.
        stored: `settled_values` of the run that is resumed, which go before the facts.
    """
    known = {path: value for path, value in (stored or {}).items() if lookup(options, path) == AUTO}
    given = copy.deepcopy(dict(options))
    for path, value in known.items():
        part, last = _parent(given, path)
        part[last] = value
    settled = {path: Settled(value, "as in the interrupted run") for path, value in known.items()}
    missing = [path for path in auto_paths(given) if not _has(defaults, path)]
    result = copy.deepcopy(given)
    recipe = Recipe(given, defaults, facts) if facts else None
    for path in auto_paths(given):
        if path in missing or recipe is None:
            _remove(result, path)
        else:
            part, last = _parent(result, path)
            part[last] = recipe[path]
            settled[path] = recipe.settled[path]
    return result, {path: settled[path] for path in RULES if path in settled}


def settled_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all options that may be `auto`, for checkpoints."""
    return {path: copy.deepcopy(lookup(options, path)) for path in RULES if _has(options, path)}


def describe_settled(settled: Mapping[str, Settled]) -> list[str]:
    """A row for each value and reason: `optim.lr 5e-4 (auto: batch 4)`; values of a part that share one, together."""
    rows: dict[tuple[str, str], list[str]] = {}
    for path, (value, reason) in settled.items():
        if not reason:
            continue
        group, _, name = path.rpartition(".")
        rows.setdefault((group, reason), []).append(f"{name} {_show(value)}")
    lines = [f"{group}.{', '.join(values)} (auto: {reason})" for (group, reason), values in rows.items()]
    return [f"{'' if i else 'derived':<11} {line}" for i, line in enumerate(lines)]


def _show(value: Any) -> str:
    if isinstance(value, float) and 0 < abs(value) < 0.01:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _has(options: Mapping[str, Any], path: str) -> bool:
    *parents, last = path.split(".")
    part = lookup(options, ".".join(parents)) if parents else options
    return isinstance(part, Mapping) and last in part


def _parent(options: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    *parents, last = path.split(".")
    part = options
    for name in parents:
        part = part[name]
    return part, last


def _remove(options: dict[str, Any], path: str) -> None:
    """Remove an option, and with the last of a group the group."""
    part, last = _parent(options, path)
    del part[last]
    if not part:
        _remove(options, path.rpartition(".")[0])
