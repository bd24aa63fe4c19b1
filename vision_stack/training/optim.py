"""AdamW with the parameter groups that segmentation models are trained with, and learning rates by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from torch import nn

from vision_stack.backbones.base import Backbone
from vision_stack.config import Config, ConfigError, Fraction, NonNegative, Range

# Tables and tokens that position or query something: their size has no meaning that decay could regularise.
UNDECAYED_NAMES = (
    "relative_position_bias_table",
    "pos_embed",
    "position_embedding",
    "rel_pos",
    "cls_token",
    "reg_token",
    "register_token",
    "mask_token",
    "level_embed",
    "query_embed",
    "logit_scale",
)


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Config):
    """AdamW and its learning rate over time, counted in optimizer steps."""

    kind: ClassVar[str] = ""
    lr: Annotated[float, Range(1e-12)] = 1e-4
    weight_decay: NonNegative = 0.05
    backbone_lr_multiplier: NonNegative = 0.1  # 0 keeps the backbone's weights as they are
    layer_decay: Annotated[float, Range(1e-6, 1.0)] = 1.0  # of the backbone's rates, per layer from output to input
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    schedule: Literal["constant", "cosine", "poly", "step"] = "step"
    warmup_steps: Annotated[int, Range(0)] = 0  # from warmup_factor * lr
    warmup_factor: Fraction = 0.01
    warmup_power: Annotated[float, Range(1e-6)] = 1.0  # 1: linearly; 2: as its square
    hold_fraction: Fraction = 0.0  # of the run after warm-up, before cosine or poly begins to fall
    fall_until: Annotated[float, Range(1e-6, 1.0)] = 1.0  # part of the run after warm-up at which they have fallen
    min_lr_factor: Fraction = 0.0  # where cosine and poly end
    poly_power: NonNegative = 0.9
    milestones: tuple[Annotated[float, Range(0.0)], ...] = (0.889, 0.963)  # up to 1: fraction of all steps, else a step
    milestone_factor: Fraction = 0.1
    clip_norm: NonNegative = 0.01  # of the whole model's gradient; 0 does not clip

    def check(self) -> None:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ConfigError("milestones: must increase, such as [0.889, 0.963]")
        if self.fall_until < self.hold_fraction:
            raise ConfigError(
                f"fall_until: {self.fall_until} comes before hold_fraction, {self.hold_fraction}; raise it"
            )

    @property
    def needs_total_steps(self) -> bool:
        """Whether the schedule depends on how long the run is."""
        by_fraction = self.schedule == "step" and any(m <= 1 for m in self.milestones)
        return self.schedule in ("cosine", "poly") or by_fraction


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`."""
    groups = parameter_groups(model, config)
    # Several times as fast on a CPU. Elsewhere a gradient scaler would unscale inside of it, after clipping.
    fused = all(p.device.type == "cpu" for p in model.parameters())
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=fused)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Backbone or not, decayed or not; with layer-wise decay the backbone's layers apart. The rest comes last.

    Norms, biases, embeddings and position tables are not decayed (Mask2Former's recipe, and Swin's). Empty groups and
    frozen parameters are left out.

    Layer-wise decay (Clark et al. 2020, as in BEiT and ViTDet): with L layers, the stem being the first, the rate of
    layer i = 1..L is multiplied by `layer_decay ** (L + 1 - i)`, and by `backbone_lr_multiplier` as all of the
    backbone. Layers that published weights do not have, such as norms of the maps, count as layer L + 1.

    Args:
        model: has a `backbone`, which with layer-wise decay is a `Backbone`.
    """
    undecayed = {id(p) for p in _undecayed_parameters(model)}
    depths = _depths(model, config)
    groups: dict[tuple[bool, int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():  # names a shared parameter once
        if parameter.requires_grad:
            key = (name.startswith("backbone."), depths.get(name, 0), id(parameter) not in undecayed)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.lr * (config.backbone_lr_multiplier * config.layer_decay**depth if in_backbone else 1.0),
            "weight_decay": config.weight_decay if decayed else 0.0,
            "name": ("backbone" if in_backbone else "rest")
            + (f"_depth{depth}" if depth else "")
            + ("" if decayed else "_undecayed"),
        }
        for (in_backbone, depth, decayed), parameters in sorted(groups.items(), reverse=True)
    ]


def _depths(model: nn.Module, config: OptimConfig) -> dict[str, int]:
    """Name of each parameter in a layer of the backbone -> layers from there to the backbone's end, its own included.

    Empty without layer-wise decay.
    """
    if config.layer_decay == 1.0:
        return {}
    layers = cast(Backbone, model.backbone).layer_groups()
    return {f"backbone.{name}": len(layers) - i for i, layer in enumerate(layers) for name in layer}


def _undecayed_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Norms, biases and scales (one value a channel, or one in all), embeddings, and tables by their name."""
    embeddings = [p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()]
    by_name = [p for name, p in model.named_parameters() if p.ndim <= 1 or any(t in name for t in UNDECAYED_NAMES)]
    return embeddings + by_name


def lr_factor(config: OptimConfig, total_steps: int | None) -> Callable[[int], float]:
    """Step (0 is the first) -> what every group's learning rate is multiplied by.

    Args:
        total_steps: of the whole run, warm-up included; None where nobody knows.

    Raises:
        ConfigError: the schedule needs to know.
    """
    if total_steps is None and config.needs_total_steps:
        raise ConfigError(
            f"optim.schedule: {config.schedule} needs to know the end; give trainer.max_steps or trainer.max_epochs"
        )
    total = max(total_steps or 1, 1)
    steps = [round(m * total) if m <= 1 else int(m) for m in config.milestones]

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            begin = config.warmup_factor
            return begin + (1 - begin) * (step / config.warmup_steps) ** config.warmup_power
        done = (step - config.warmup_steps) / max(total - config.warmup_steps, 1)
        done = max(done - config.hold_fraction, 0.0) / max(config.fall_until - config.hold_fraction, 1e-9)
        done = min(done, 1.0)
        if config.schedule == "cosine":
            return config.min_lr_factor + (1 - config.min_lr_factor) * (1 + math.cos(math.pi * done)) / 2
        if config.schedule == "poly":
            return config.min_lr_factor + (1 - config.min_lr_factor) * (1 - done) ** config.poly_power
        if config.schedule == "step":
            return config.milestone_factor ** sum(step >= milestone for milestone in steps)
        return 1.0

    return factor
