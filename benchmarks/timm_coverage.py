"""One small model of every timm module as a backbone: are its maps what it declares, at its native size and an odd one?

`timm_families.json` is the list: module -> model, and the `img_size` that a model of one size is built with to take the
odd one. Images are padded, never resized.
"""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vision_stack.backbones import TimmBackbone, TimmBackboneConfig

LIST = Path(__file__).with_name("timm_families.json")
ODD_SIZE = (250, 333)


class Family(NamedTuple):
    """An entry of the list."""

    module: str
    model: str
    img_size: tuple[int, int] | None = None  # for the odd size; None: any size works, or no option helps


class Outcome(NamedTuple):
    """What became of one model at one size: `problem` is empty where all is as declared."""

    problem: str
    parameters: int = 0
    flops: int = 0
    seconds: float = 0.0


def families() -> list[Family]:
    """The committed list."""
    return [Family(module, **entry) for module, entry in json.loads(LIST.read_text(encoding="utf-8")).items()]


def native_size(model: str) -> tuple[int, int]:
    """(height, width) that the published weights were made for."""
    weights = timm.models.get_pretrained_cfg(model)
    return tuple(weights.input_size[1:]) if weights is not None else (224, 224)


def backbone(family: Family, size: tuple[int, int]) -> TimmBackbone:
    """With every stage selected, in eval mode, on the default device."""
    config = TimmBackboneConfig(family.model, img_size=family.img_size if size == ODD_SIZE else None)
    config.out_indices = list(range(len(config.stages)))
    return config.build().eval()


def wrong_maps(net: TimmBackbone, maps: tuple[torch.Tensor, ...], size: tuple[int, int]) -> str:
    """The first map that is not [1, channels, ceil(H/stride), ceil(W/stride)], in words; else nothing."""
    for spec, x in zip(net.out_specs, maps, strict=True):
        wanted = (1, spec.channels, -(-size[0] // spec.stride), -(-size[1] // spec.stride))
        if x.shape != wanted:
            return f"{spec.name} of stride {spec.stride} is {list(x.shape)}, not {list(wanted)}"
    return ""


def measure(family: Family, size: tuple[int, int]) -> Outcome:
    """With real numbers: shapes, a gradient that reaches the stem, and what the model costs."""
    gc.collect()
    try:
        net = backbone(family, size).requires_grad_(False)
        stem = next(m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)).weight.requires_grad_()
        pixel_values = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        with FlopCounterMode(display=False) as counter:
            maps = net(pixel_values).feature_maps
        problem = wrong_maps(net, maps, size)
        maps[-1].square().mean().backward()
        if not problem and (stem.grad is None or not stem.grad.any()):
            problem = "no gradient reaches the stem"
        del maps
        start = time.perf_counter()
        with torch.inference_mode():
            net(pixel_values)
        seconds = time.perf_counter() - start
    except Exception as error:  # whatever timm raises; the table says what it was
        return Outcome(f"{type(error).__name__}: {error}".split("\n")[0][:160])
    return Outcome(problem, sum(p.numel() for p in net.parameters()), counter.get_total_flops(), seconds)


def update_list() -> None:
    """Keep the entries that still hold, drop vanished modules, add the smallest model of each new one."""
    known = {family.module: family for family in families()}
    found: dict[str, dict[str, Any]] = {}
    for module in timm.list_modules():
        names = timm.list_models(module=module)
        if module in known and known[module].model in names:
            family = known[module]
            found[module] = {"model": family.model} | ({"img_size": family.img_size} if family.img_size else {})
        elif model := _smallest(names):
            found[module] = {"model": model}
    rows = [f"  {json.dumps(module)}: {json.dumps(entry)}" for module, entry in found.items()]
    LIST.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


def _smallest(names: list[str]) -> str | None:
    """By parameters, of those that timm builds with `features_only`; of its own tests' models if all else fails."""
    sizes: dict[str, tuple[bool, int]] = {}
    for name in names:
        try:
            with torch.device("meta"):
                timm.create_model(name, features_only=True)
                count = sum(p.numel() for p in timm.create_model(name).parameters())
        except (ValueError, RuntimeError, AssertionError, TypeError, AttributeError):
            continue
        sizes[name] = (name.startswith("test_"), count)
    return min(sizes, key=sizes.__getitem__) if sizes else None
