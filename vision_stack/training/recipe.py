"""What the value `auto` becomes: a function of plain facts on data, device and start, with a reason for each value.

`RULES` has the options that may be `auto`. A rule reads other options, as typed or as settled, through the `Recipe`,
so that what was typed shapes what follows from it. docs/choosing.md explains the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

AUTO = "auto"
COMPACT = {"hidden_dim": 96, "num_decoder_layers": 6, "ffn_dim": 384}  # of heads that CPUs train
COMPACT_CHANNELS = 96  # of their necks
BASE_RATE, BASE_WIDTH, BASE_BATCH = 5e-4, 96, 4  # measured on the pedestrians of configs/experiment/pennfudan.yaml
EPOCHS = 30
STEPS = {"cpu": (1000, 3000), "other": (1000, 20_000)}  # fewest and most
VALIDATIONS = 12  # in a run
SMALL_OBJECT = 24  # pixels: six cells of the mask features, of stride 4
MOST_WORKERS = 8
TYPICAL_OBJECTS = 8  # of an image, in what a batch takes of shared memory
GIB_PER_MEGAPIXEL = 4.0  # of one image in training with the full head in bf16, a cautious estimate


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the rules go by. Equal facts give equal values, on every rank."""

    finds: str  # objects, segments or classes, by the task
    num_train: int
    num_val: int
    num_classes: int
    short_edge: int  # pixels: three of four training images have at most this
    aspect: float  # longer / shorter edge: three of four training images have at most this
    object_size: float | None  # edge of an object / shorter edge of its image, the lower quartile; None: not known
    max_objects: int  # in one training image
    can_be_cut_out: bool = True  # objects have masks, and are single ones
    device: Literal["cpu", "cuda", "mps"]
    device_memory: float | None = None  # GiB of one GPU
    has_bf16: bool = False
    world_size: int = 1
    cores: int = 2  # that this machine's processes may use, over all of its devices
    shared_memory: float | None = None  # GiB that are free; None: not limited
    backbone: str = ""  # model_name to take where that is auto
    backbone_reason: str = ""
    pretrained: bool = False  # the backbone's initial weights were found
    fine_tunes: bool = False  # `weights=`: the whole model was trained before

    @property
    def compact(self) -> bool:
        """Whether the head is to be one that trains on a CPU within the hour."""
        return self.device == "cpu" and not self.fine_tunes


class Settled(NamedTuple):
    value: Any
    reason: str  # empty where the value only says that another option counts


class Recipe:
    """Options by their dotted path, `auto` among them replaced when first asked for.

    Args:
        options: plain options of configs/train.yaml.
        defaults: the same, with each `auto` replaced by its config's default.
        facts: of the run.
    """

    def __init__(self, options: Mapping[str, Any], defaults: Mapping[str, Any], facts: Facts) -> None:
        self.options, self.defaults, self.facts = options, defaults, facts
        self.settled: dict[str, Settled] = {}

    def __getitem__(self, path: str) -> Any:
        value = lookup(self.options, path)
        if value != AUTO or path not in RULES:
            return value
        if path not in self.settled:
            self.settled[path] = Settled(*RULES[path](self, path))
        return self.settled[path].value

    def typed(self, path: str) -> Any:
        """The value that does not depend on the facts; None for `auto`."""
        value = lookup(self.options, path)
        return None if value == AUTO else value

    def default(self, path: str) -> Any:
        return lookup(self.defaults, path)

    @property
    def batch(self) -> int:
        """Images of one optimizer step, over all devices."""
        return self["data.batch_size"] * (self["trainer.accumulate_grad_batches"] or 1) * self.facts.world_size

    @property
    def steps_of_epoch(self) -> int:
        return max(1, self.facts.num_train // self.batch)

    @property
    def steps(self) -> int:
        """Optimizer steps of the run; 0 where nothing but a time or nobody limits them."""
        by_epochs = max(self["trainer.max_epochs"] or 0, 0) * self.steps_of_epoch
        limits = [limit for limit in (max(self["trainer.max_steps"], 0), by_epochs) if limit]
        return min(limits, default=0)


Rule = Callable[[Recipe, str], tuple[Any, str]]
RULES: dict[str, Rule] = {}


def rule(*paths: str) -> Callable[[Rule], Rule]:
    """Decorator: these options may be `auto`, and take what the function gives for them."""

    def decorate(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(paths, function))
        return function

    return decorate


# Model


@rule("backbone.model_name")
def _backbone(recipe: Recipe, _: str) -> tuple[str, str]:
    return recipe.facts.backbone, recipe.facts.backbone_reason


@rule("backbone.freeze_norm")
def _freeze_norm(recipe: Recipe, _: str) -> tuple[bool, str]:
    batch = recipe["data.batch_size"]
    if not recipe.facts.pretrained:
        return False, "random weights need their statistics"
    return batch < 16, f"pretrained, batch {batch} on a device"


@rule("neck.channels")
def _channels(recipe: Recipe, path: str) -> tuple[int, str]:
    return (COMPACT_CHANNELS, "compact for a CPU") if recipe.facts.compact else _full(recipe, path)


@rule("head.hidden_dim", "head.num_decoder_layers", "head.ffn_dim")
def _head_size(recipe: Recipe, path: str) -> tuple[int, str]:
    if recipe.facts.compact:
        return COMPACT[path.rpartition(".")[2]], "compact for a CPU"
    return _full(recipe, path)


def _full(recipe: Recipe, path: str) -> tuple[Any, str]:
    return recipe.default(path), "as published"


@rule("head.num_queries")
def _num_queries(recipe: Recipe, _: str) -> tuple[int, str]:
    facts = recipe.facts
    most = min(300, round_up(1.5 * facts.max_objects, 10))
    fewest = 30 if facts.compact else 100
    return max(fewest, most), f"at most {facts.max_objects} {facts.finds} in an image"


@rule("head.mask_feature_pos_embed")
def _mask_feature_pos_embed(recipe: Recipe, _: str) -> tuple[bool, str]:
    return _from_scratch(recipe, True, False)


@rule("head.loss.pixel_ce_weight")
def _pixel_ce_weight(recipe: Recipe, _: str) -> tuple[float, str]:
    return _from_scratch(recipe, 8.0, 0.0)


def _from_scratch(recipe: Recipe, value: Any, otherwise: Any) -> tuple[Any, str]:
    if recipe.facts.pretrained or recipe.facts.fine_tunes:
        return otherwise, "pretrained backbone"
    return value, "backbone from scratch"


@rule("head.loss.class_weight")
def _class_weight(recipe: Recipe, path: str) -> tuple[float, str]:
    with_masks = recipe.default("head.loss.mask_weight") is not None and recipe.default("head.masks") is not False
    if recipe.facts.compact and with_masks:  # as measured
        return 2 * recipe.default(path), "compact head: twice as published"
    return _full(recipe, path)


@rule("head.loss.num_points")
def _num_points(recipe: Recipe, path: str) -> tuple[int, str]:
    height, width = recipe["data.eval_transform.short_edge"], recipe["data.eval_transform.long_edge"]
    quarter = max(256, height * width // 16 // 4)
    return min(recipe.default(path), quarter), f"a quarter of the masks' cells at {height} x {width}"


# Data


@rule("data.batch_size")
def _batch_size(recipe: Recipe, _: str) -> tuple[int, str]:
    facts = recipe.facts
    few = max(2, facts.num_train // (4 * facts.world_size))
    if facts.device == "cpu":
        batch, reason = 4, "CPU"
    elif facts.device_memory is None:
        batch, reason = 2, facts.device
    else:
        pixels = recipe["data.eval_transform.short_edge"] * recipe["data.eval_transform.long_edge"]
        factor = 1.0 if str(recipe["trainer.precision"]).startswith(("bf16", "16")) else 1.6
        fitting = 0.7 * facts.device_memory / (GIB_PER_MEGAPIXEL * factor * pixels / 2**20)
        batch, reason = 2 ** int(math.log2(min(max(fitting, 1), 16))), f"GPU with {facts.device_memory:.0f} GB"
    return (few, f"{facts.num_train} training images") if few < batch else (batch, reason)


@rule("data.num_workers")
def _num_workers(recipe: Recipe, _: str) -> tuple[int, str]:
    facts = recipe.facts
    mine = max(1, facts.cores // facts.world_size)
    cores = f"{mine} core{'s' * (mine > 1)}" + (" for each device" if facts.world_size > 1 else "")
    if facts.device == "cpu":  # which trains on the same cores
        return min(2, mine // 2), cores
    wanted = min(MOST_WORKERS, max(1, mine - 1))
    if facts.shared_memory is None:
        return wanted, cores
    edges = [recipe["data.eval_transform.short_edge"], recipe["data.eval_transform.long_edge"]]
    image = math.prod(edges) * (4 + TYPICAL_OBJECTS / (recipe["data.mask_stride"] or 1) ** 2)  # bytes, masks included
    batches = facts.shared_memory / facts.world_size * 2**30 / (image * recipe["data.batch_size"])
    fitting = max(1, int((batches - 1) / 2))  # two of each worker and one in use
    if fitting < wanted:
        return fitting, f"{cores}, {facts.shared_memory:.1f} GB of shared memory"
    return wanted, cores


@rule("data.eval_transform.short_edge")
def _eval_short_edge(recipe: Recipe, _: str) -> tuple[int, str]:
    typed = recipe.typed("data.train_transform.short_edges")
    if typed is not None:
        return sorted(typed)[len(typed) // 2], "as in training"
    facts = recipe.facts
    base, most = (
        (384, 512) if facts.device == "cpu" else (800, 1024) if (facts.device_memory or 0) >= 15 else (640, 800)
    )
    size, reason = base, f"{'CPU' if facts.device == 'cpu' else 'GPU'}"
    if facts.object_size is not None and facts.object_size * base < SMALL_OBJECT:
        size = min(most, round_up(SMALL_OBJECT / max(facts.object_size, 1e-6), 32))
        reason = f"small objects, a quarter below {facts.object_size * base:.0f} pixels at {base}"
    available = max(32, facts.short_edge // 32 * 32)
    return (available, f"images of {facts.short_edge} pixels") if available < size else (size, reason)


@rule("data.eval_transform.long_edge")
def _eval_long_edge(recipe: Recipe, _: str) -> tuple[int, str]:
    return _long_edge(recipe, recipe["data.eval_transform.short_edge"])


@rule("data.train_transform.short_edges")
def _short_edges(recipe: Recipe, _: str) -> tuple[list[int], str]:
    size = recipe["data.eval_transform.short_edge"]
    edges = {max(32, round(size * part / 12 / 32) * 32) for part in (10, 11, 12, 13, 14)}
    return sorted(edges), f"a sixth around {size}"


@rule("data.train_transform.long_edge")
def _train_long_edge(recipe: Recipe, _: str) -> tuple[int, str]:
    return _long_edge(recipe, max(recipe["data.train_transform.short_edges"]))


def _long_edge(recipe: Recipe, short: int) -> tuple[int, str]:
    aspect = min(max(recipe.facts.aspect, 1.0), 2.0)
    return max(short, round(short * aspect / 32) * 32), f"images of {aspect:.2f} : 1"


@rule("data.train_transform.crop_size")
def _crop_size(recipe: Recipe, _: str) -> tuple[int | None, str]:
    if recipe["data.train_transform.mode"] == "large_scale_jitter":
        return recipe["data.eval_transform.long_edge"], "the longer edge of evaluation"
    return None, ""


@rule("data.train_transform.copy_paste")
def _copy_paste(recipe: Recipe, _: str) -> tuple[float, str]:
    return (0.5, "objects have masks") if recipe.facts.can_be_cut_out else (0.0, "no masks of single objects")


# Optimizer and trainer


@rule("optim.lr")
def _lr(recipe: Recipe, _: str) -> tuple[float, str]:
    """With the square root of the batch, as the noise of Adam's steps has it (Malladi et al. 2022), and inversely with
    the head's width (as muP, Yang et al. 2022), from the rate that was measured."""
    batch, width = recipe.batch, recipe["head.hidden_dim"] or recipe["neck.channels"] or 256
    rate = BASE_RATE * BASE_WIDTH / width * math.sqrt(batch / BASE_BATCH)
    if recipe.facts.fine_tunes:
        return float(f"{rate / 2:.1e}"), f"batch {batch}, head {width} wide, trained before: half"
    return float(f"{rate:.1e}"), f"batch {batch}, head {width} wide"


@rule("optim.backbone_lr_multiplier")
def _backbone_rate(recipe: Recipe, _: str) -> tuple[float, str]:
    facts = recipe.facts
    if not facts.pretrained and not facts.fine_tunes:
        return 1.0, "random backbone"
    return (0.5, "pretrained, compact head") if facts.compact else (0.1, "pretrained")


@rule("optim.warmup_steps")
def _warmup(recipe: Recipe, _: str) -> tuple[int, str]:
    steps = recipe.steps
    if not steps:
        return 100, "length unknown"
    warmup = min(500, max(20, steps // 50))
    if warmup > steps // 2:
        return steps // 2, f"half of {steps:,} steps"
    return warmup, f"2% of {steps:,} steps, 20 to 500"


@rule("trainer.max_steps")
def _max_steps(recipe: Recipe, _: str) -> tuple[int, str]:
    if (recipe.typed("trainer.max_epochs") or -1) > 0:
        return -1, ""
    facts = recipe.facts
    low, high = STEPS.get(facts.device, STEPS["other"])
    epochs = EPOCHS
    if facts.fine_tunes:
        low, high, epochs = low // 2, high // 2, epochs // 2
    wanted = math.ceil(facts.num_train * epochs / recipe.batch)
    if low <= wanted <= high:
        return wanted, f"{epochs} epochs of {facts.num_train:,} images"
    bound = f"at least {low:,}" if wanted < low else f"at most {high:,}"
    return min(max(wanted, low), high), f"{facts.num_train:,} images, {bound}"


@rule("trainer.max_epochs")
def _max_epochs(recipe: Recipe, _: str) -> tuple[int, str]:
    return -1, ""


@rule("trainer.precision")
def _precision(recipe: Recipe, _: str) -> tuple[str, str]:
    facts = recipe.facts
    if facts.device == "cuda":
        return ("bf16-mixed", "GPU with bf16") if facts.has_bf16 else ("32-true", "GPU without bf16")
    return "32-true", {"cpu": "CPU", "mps": "mps"}[facts.device]


@rule("trainer.check_val_every_n_epoch")
def _check_val_epochs(recipe: Recipe, _: str) -> tuple[int | None, str]:
    return None if isinstance(recipe["trainer.val_check_interval"], int) else 1, ""


@rule("trainer.val_check_interval")
def _check_val_batches(recipe: Recipe, _: str) -> tuple[int | None, str]:
    """Batches between two validations, which together cost no more than half of what training does."""
    if recipe.typed("trainer.check_val_every_n_epoch") is not None:
        return None, ""
    steps, facts = recipe.steps, recipe.facts
    if not steps:
        return None, "length unknown"
    affordable = steps * recipe.batch * 2 // max(facts.num_val, 1)  # a forward pass takes a quarter of a step or so
    times = min(VALIDATIONS, max(4, affordable))
    return math.ceil(steps / times) * (recipe["trainer.accumulate_grad_batches"] or 1), f"{times} times in the run"


def round_up(value: float, step: int) -> int:
    return math.ceil(value / step) * step


def lookup(options: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, None where there is none."""
    value: Any = options
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest of `values` such that a `share` of them is at most that large."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
