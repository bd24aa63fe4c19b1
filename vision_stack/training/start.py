"""`weights=`: a run that starts from a trained model, ours or published, instead of only from the options.

The model's own parts are used, whatever the yaml files say. What the command line says about a part overrides it:
`head.num_queries=50` changes that value, `backbone=swin_tiny` takes another backbone. Weights are taken over as far as
they then fit, the class head's rows by the names of the classes; with fewer queries the first are kept. A detector is
trained for detection unless the command line names a task: with `task=instance` a head that can have masks gets them,
untrained.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vision_stack.config import ConfigError, from_dict, to_dict
from vision_stack.model import VisionModel
from vision_stack.ops.text import shorten
from vision_stack.structures import Category, Task
from vision_stack.training.optim import OptimConfig
from vision_stack.weights.class_names import ClassMatch, match_classes

MAP_NORMS, TOKEN_NORM = "backbone.norms.", "backbone.net.model.norm."
PARTS = ("backbone", "neck", "head")
SHOWN_CLASSES = 40


@dataclass(frozen=True)
class Start:
    """The trained model that a run starts from, and the parts of the run's own model."""

    source: str
    model: VisionModel
    parts: dict[str, Any]  # configs, by kind
    changed: tuple[str, ...]  # what the command line changed, as typed: "head.num_queries", "backbone"
    task: Task  # of the run
    task_reason: str = ""  # why it is not that of the options

    @property
    def pixel_statistics(self) -> dict[str, Any]:
        """Mean and std of the trained model, which another backbone may not share."""
        own, config = "backbone" in self.changed, self.model.config
        return {} if own else {"image_mean": config.image_mean, "image_std": config.image_std}


class QueryMatch(NamedTuple):
    """Learnt queries of a model and of its source, as (groups, queries in each)."""

    own: tuple[int, int]
    theirs: tuple[int, int]

    def __str__(self) -> str:
        (own_groups, own), (groups, theirs) = self
        per_group = ", per group" if max(own_groups, groups) > 1 else ""
        parts = [f"queries: {_kept(own, theirs)}{per_group}"]
        if own_groups != groups:
            parts.append(f"groups: {_kept(own_groups, groups)}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Transfer:
    """What the run's model took over. Names are its own."""

    matched: tuple[str, ...]
    regrouped: tuple[str, ...]  # rows of the class head, by name
    fresh: tuple[str, ...]  # in no fitting form in the source: random, or of the backbone's own published weights
    classes: tuple[ClassMatch, ...]
    cut: tuple[str, ...] = ()  # tables of learnt queries, of which the first were taken
    queries: tuple[QueryMatch, ...] = ()  # how many those are

    def __str__(self) -> str:
        kept = sum(match.source is not None for match in self.classes)
        fresh = f"; at random: {', '.join(self.fresh[:4])}{' ...' if len(self.fresh) > 4 else ''}" if self.fresh else ""
        rows = f", {len(self.regrouped)} by class ({kept} of {len(self.classes)} classes known)"
        queries = "".join(f"; {match}" for match in self.queries)
        return f"{len(self.matched)} tensors taken over{rows if self.regrouped else ''}{queries}{fresh}"


def read_start(source: str, config: Mapping[str, Any], overrides: Sequence[str]) -> Start:
    """The model that `weights=source` means, and the parts of the run's own.

    Args:
        config: the plain options of configs/train.yaml.
        overrides: the command line's.

    Raises:
        ValueError: no such model, or an option that its part does not have; one line.
    """
    try:
        model = VisionModel.from_pretrained(source)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith("weights") else f"weights: {text}") from None
    typed = [match[1] for text in overrides if (match := re.match(r"\+{0,2}([\w./]+)(?:@[\w.]+)?=", text))]
    task: Task = config["task"]
    parts: dict[str, Any] = {}
    changed: list[str] = []
    for kind in PARTS:
        keys = [key for key in typed if key == kind or (key.startswith(f"{kind}.") and key != "backbone.pretrained")]
        options = without_pretrained(config[kind])
        if kind not in keys:
            own = to_dict(getattr(model.config, kind))
            if kind == "head" and "task" in typed and getattr(type(model.config.head)(), "masks", None) == "auto":
                own["masks"] = "auto"  # stored as what it was for the task of the weights
            for key in keys:
                _put(own, options, key)
            options = own
        parts[kind] = from_dict(options, kind=kind)
        changed += keys
    reason = ""
    silent = "experiment=from_weights"  # says nothing of the task
    named = any(text.startswith(("task=", "experiment=", "head=")) and text != silent for text in overrides)
    if not named and not parts["head"].serves(task):
        reason = f"that of the weights, whose head has nothing for task={task}"
        task = model.config.task
    parts["head"] = parts["head"].fitted(task)
    return Start(source, model, parts, tuple(changed), task, reason)


def transfer(start: Start, model: VisionModel) -> Transfer:
    """Take over what fits: a backbone as a whole, but for norms of its maps, or not at all; of the rest each tensor by
    itself, or its rows."""
    theirs, own = start.model.state_dict(), model.state_dict()
    theirs |= _final_norm(theirs, own)
    known = [category.name for category in start.model.categories]
    classes = match_classes([category.name for category in model.categories], known)
    fitting = {name: theirs[name] for name, tensor in own.items() if _fits(theirs.get(name), tensor)}
    whole = [name for name in own if name.startswith("backbone.") and not name.startswith(MAP_NORMS)]
    if any(name not in fitting for name in whole):
        fitting = {name: tensor for name, tensor in fitting.items() if not name.startswith("backbone.")}
    by_class = _by_class(start, model, classes)
    by_query, queries = _by_query(start, model)
    by_rows = {f"head.{name}" for name in model.head.class_rows()} | by_query.keys()
    fitting = {name: tensor for name, tensor in fitting.items() if name not in by_rows}
    taken_over = fitting | by_class | by_query
    if not taken_over:
        changed = ", ".join(start.changed) or "nothing"
        raise ValueError(
            f"weights: nothing in {start.source} fits this model; the command line changes {changed}: keep the "
            "backbone of the weights, or leave weights out"
        )
    model.load_state_dict(taken_over, strict=False)
    return Transfer(
        matched=tuple(fitting),
        regrouped=tuple(by_class),
        fresh=tuple(name for name in own if name not in taken_over),
        classes=tuple(classes),
        cut=tuple(by_query),
        queries=tuple(dict.fromkeys(queries)),  # the same for all tables of a head
    )


def describe_start(
    start: Start,
    categories: Sequence[Category],
    optim: OptimConfig,
    config: Mapping[str, Any],
    overrides: Sequence[str],
) -> list[str]:
    """What the run took from the weights, the recipe it trains by, and the table of classes."""
    names = [text.partition("=")[2] for text in overrides if text.startswith("experiment=")]
    recipe = f"experiment={names[-1]}" if names else "the options as they are"
    changed = f", changed on the command line: {', '.join(start.changed)}" if start.changed else ""
    length = config["trainer"].get("max_epochs")
    epochs = f", {length} epochs" if length and length > 0 else ""
    known = [category.name for category in start.model.categories]
    report = start.model.load_report  # of a model that transformers wrote
    return [
        f"{'model':<11} that of {start.source}{changed}",
        *([f"{'loaded':<11} {report}"] if report else []),
        f"{'recipe':<11} {recipe}: rate {optim.lr:g} (backbone x {optim.backbone_lr_multiplier:g}), {optim.schedule}, "
        f"batch {config['data']['batch_size']}{epochs}, decay {optim.weight_decay:g}, clip {optim.clip_norm:g}",
        *describe_classes(match_classes([category.name for category in categories], known), known),
    ]


def describe_classes(matches: Sequence[ClassMatch], known: Sequence[str]) -> list[str]:
    """A table: class of the data set, class of the weights, how they were found to be the same."""
    shown = [
        (shorten(match.name), "-" if match.source is None else shorten(known[match.source]), match.how)
        for match in matches[:SHOWN_CLASSES]
    ]
    table = [("class", "of weights", "found by"), *shown]
    width, width_theirs = (max(len(row[column]) for row in table) for column in (0, 1))
    rows = [f"  {name:<{width}}  {theirs:<{width_theirs}}  {how}" for name, theirs, how in table]
    more = [f"  ... and {len(matches) - SHOWN_CLASSES} more"] if len(matches) > SHOWN_CLASSES else []
    return [*rows, *more]


def backbone_warnings(options: Mapping[str, Any], data: str, overrides: Sequence[str] = ()) -> list[str]:
    """Why a backbone may be a poor start for images that were not generated, unless that was typed.

    What `pretrained: auto` did not find, `load_pretrained` has warned of.
    """
    name, warnings = str(options.get("model_name", "")), []
    if data == "shapes":
        return []
    if name.startswith("test_"):  # timm's own name for networks to try things out with
        warnings.append(f"THE BACKBONE IS A TOY ({name}), made for generated scenes; give backbone=resnet50")
    elif options.get("pretrained", False) is False and not any("backbone.pretrained=" in text for text in overrides):
        warnings.append("THE BACKBONE STARTS FROM RANDOM WEIGHTS: backbone.pretrained is false; give auto")
    return warnings


def without_pretrained(options: Mapping[str, Any]) -> dict[str, Any]:
    """A part's options without the question of initial weights, which its config does not have."""
    return {name: value for name, value in options.items() if name != "pretrained"}


def _put(own: dict[str, Any], options: Mapping[str, Any], key: str) -> None:
    """Change `own` to what `options` has at a dotted key such as head.loss.num_points."""
    kind, *path, last = key.split(".")
    try:
        for name in path:
            own, options = own[name], options[name]
        if last not in own:
            raise KeyError
        own[last] = copy.deepcopy(options[last])
    except (KeyError, TypeError):
        raise ConfigError(
            f"{key}: the {kind} of the weights has no such option; leave it out, or choose a {kind} by {kind}=NAME"
        ) from None


def _by_class(start: Start, model: VisionModel, classes: Sequence[ClassMatch]) -> dict[str, Tensor]:
    """The class head's parameters, where rows of their classes can be taken over."""
    theirs, own = start.model.state_dict(), model.state_dict()
    source_rows = start.model.head.class_rows()
    found = {}
    for name, rows in model.head.class_rows().items():
        key = f"head.{name}"
        if name in source_rows:
            found[key] = _rows(own[key], rows, theirs[key], source_rows[name], classes)
    return {key: taken for key, taken in found.items() if taken is not None}


def _by_query(start: Start, model: VisionModel) -> tuple[dict[str, Tensor], list[QueryMatch]]:
    """Tables of learnt queries that are laid out otherwise than the source's, with what it has of them."""
    theirs, own = start.model.state_dict(), model.state_dict()
    source_rows = start.model.head.query_rows()
    found, matches = {}, []
    for name, rows in model.head.query_rows().items():
        key, their_rows = f"head.{name}", source_rows.get(name, rows)
        if torch.equal(rows, their_rows) or own[key].shape[1:] != theirs[key].shape[1:]:
            continue
        found[key] = _first_queries(own[key], rows, theirs[key], their_rows)
        matches.append(QueryMatch(_layout(rows), _layout(their_rows)))
    return found, matches


def _final_norm(theirs: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The norm after the last block of a timm transformer, by its other name: detectors have it on their last map, EoMT
    on its tokens."""
    before, after = _norm_of_last_map(theirs), _norm_of_last_map(own)
    if before and not after:
        after = TOKEN_NORM
    elif after and not before:
        before = TOKEN_NORM
    else:
        return {}
    return {f"{after}{n.removeprefix(before)}": tensor for n, tensor in theirs.items() if n.startswith(before)}


def _norm_of_last_map(names: Iterable[str]) -> str:
    """What the names of its parameters begin with; "" if maps have no norms."""
    last = max((int(name.split(".")[2]) for name in names if name.startswith(MAP_NORMS)), default=None)
    return "" if last is None else f"{MAP_NORMS}{last}."


def _fits(theirs: Tensor | None, own: Tensor) -> bool:
    return theirs is not None and theirs.shape == own.shape


@torch.no_grad()
def _rows(
    own: Tensor, own_rows: Tensor, theirs: Tensor, their_rows: Tensor, classes: Sequence[ClassMatch]
) -> Tensor | None:
    """`own` with the rows [K, R] of known classes, and those of no class, from `theirs`; None where they do not fit."""
    own_rest, their_rest = _others(own, own_rows), _others(theirs, their_rows)
    same = own.shape[1:] == theirs.shape[1:] and own_rows.shape[1] == their_rows.shape[1]
    if not same or len(own_rest) != len(their_rest):
        return None
    taken = own.clone()
    for label, match in enumerate(classes):
        if match.source is not None:
            taken[own_rows[label]] = theirs[their_rows[match.source]]
    taken[own_rest] = theirs[their_rest]
    return taken


@torch.no_grad()
def _first_queries(own: Tensor, own_rows: Tensor, theirs: Tensor, their_rows: Tensor) -> Tensor:
    """`own` with the first queries of each of the first groups from `theirs`; rows are [G, Q]."""
    groups, queries = (min(pair) for pair in zip(own_rows.shape, their_rows.shape, strict=True))
    taken = own.clone()
    taken[own_rows[:groups, :queries]] = theirs[their_rows[:groups, :queries]]
    return taken


def _layout(rows: Tensor) -> tuple[int, int]:
    return rows.shape[0], rows.shape[1]


def _kept(own: int, theirs: int) -> str:
    return f"{min(own, theirs)} of {theirs} kept" + (f", {own - theirs} more at random" if own > theirs else "")


def _others(tensor: Tensor, rows: Tensor) -> list[int]:
    """Rows of a parameter that belong to no class: "no object", background."""
    return sorted(set(range(len(tensor))) - set(rows.flatten().tolist()))
