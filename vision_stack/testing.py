"""Contract tests for parts of your own: each builds a part, tries what the framework relies on, and raises
AssertionError with a line that says what is not kept.

    def test_my_head_keeps_the_contract():
        check_head(MyHeadConfig(hidden=16))
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vision_stack.backbones.base import crop_to_image
from vision_stack.backbones.families.vit import ViTConfig
from vision_stack.config import Config, from_dict, registered, to_dict
from vision_stack.heads.base import Head
from vision_stack.necks.fpn import FPNConfig
from vision_stack.structures import (
    BackboneConfig,
    DecodeOptions,
    Features,
    FeatureSpec,
    HeadConfig,
    ImageInfo,
    Instances,
    NeckConfig,
    PanopticSegmentation,
    Prediction,
    SemanticSegmentation,
    Target,
    Task,
)

__all__ = ["check_backbone", "check_head", "check_neck"]

STRIDES = (4, 8, 16, 32)
TOP_K = 5
SIZES = ((64, 64), (75, 101))  # the second is no multiple of any stride


def check_backbone(config: BackboneConfig) -> None:
    """Maps as declared at sizes of any kind, gradients, both memory formats, pixel statistics, the way through a dict.

    Raises:
        AssertionError: the contract is not kept.
    """
    _check_config(config, "backbone")
    torch.manual_seed(0)
    backbone = config.build()
    specs = backbone.out_specs
    _check_specs(specs, "the backbone")
    for values, name in ((backbone.image_mean, "image_mean"), (backbone.image_std, "image_std")):
        _expect(len(values) == 3, f"{name} has {len(values)} values, not one for each of R, G, B")
    _expect(min(backbone.image_std) > 0, "image_std has a value that is not positive")
    for size in SIZES:
        pixels = _random(2, 3, *size).requires_grad_()
        maps = backbone(pixels).feature_maps
        _expect(isinstance(maps, tuple), f"feature_maps is a {type(maps).__name__}, not a tuple")
        _check_maps(maps, specs, size, "the backbone")
    sum(x.square().mean() for x in maps).backward()
    _expect(bool(pixels.grad is not None and pixels.grad.any()), "no gradient reaches the pixels")
    _check_gradients(backbone, "the backbone")
    backbone.eval()
    with torch.no_grad():
        expected = backbone(pixels).feature_maps
        backbone.to(memory_format=torch.channels_last)
        found = backbone(pixels.contiguous(memory_format=torch.channels_last)).feature_maps
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3, msg=lambda text: f"channels_last differs: {text}")


def check_neck(config: NeckConfig, in_specs: Sequence[FeatureSpec] | None = None) -> None:
    """Maps as declared at sizes of any kind, names and strides, gradients, the way through a dict.

    Args:
        in_specs: of the maps that it gets; by default four of strides 4 to 32.

    Raises:
        AssertionError: the contract is not kept.
    """
    _check_config(config, "neck")
    torch.manual_seed(0)
    given = tuple(in_specs or (FeatureSpec(f"stage{n}", 8 * 2**n, 4 * 2**n) for n in range(4)))
    neck = config.build(given)
    _check_specs(neck.out_specs, "the neck")
    for size in SIZES:
        features = _random_features(given, size)
        maps = neck(features)
        _expect(isinstance(maps, tuple), f"the neck gives a {type(maps).__name__}, not a tuple of maps")
        _check_maps(tuple(crop_to_image(maps, neck.out_specs, size)), neck.out_specs, size, "the neck")
    if any(True for _ in neck.parameters()):
        sum(x.square().mean() for x in maps).backward()
        _check_gradients(neck, "the neck")


def check_head(config: HeadConfig, in_specs: Sequence[FeatureSpec] | None = None, num_classes: int = 3) -> None:
    """Losses and gradients with many, few and no objects, ignored regions, predictions for each task, class rows, the
    way through a dict and a state dict.

    Args:
        in_specs: of the maps that it gets; by default those of a pyramid as the config asks for it.

    Raises:
        AssertionError: the contract is not kept.
    """
    _check_config(config, "head")
    given = tuple(in_specs or _specs_for(config))
    tasks = sorted(config.tasks)
    _expect(bool(tasks), "tasks is empty: say what the head can be trained for")
    served = [task for task in tasks if config.serves(task)]
    _expect(bool(served), f"serves gives False for each of tasks, {tasks}")
    for task in served:
        fitted = config.fitted(task)
        _check_config(fitted, "head")
        of_same_options = [other for other in served if config.fitted(other) == fitted]
        if task == of_same_options[0]:
            _check_head(fitted, given, num_classes, of_same_options)


def _check_head(config: HeadConfig, given: tuple[FeatureSpec, ...], num_classes: int, tasks: Sequence[Task]) -> None:
    """Of a config that is fitted to each of the tasks."""
    torch.manual_seed(0)
    head = config.build(given, num_classes)
    _expect(isinstance(head, Head), f"build gives a {type(head).__name__}, which does not derive from Head")
    _expect(head.num_classes == num_classes, f"num_classes is {head.num_classes}, not the {num_classes} asked for")
    decoders = sorted(head.decoders)
    _expect(decoders == sorted(config.tasks), f"decoders are for {decoders}, tasks are {sorted(config.tasks)}")
    limit = head.max_objects
    _expect(limit is None or limit >= 1, f"max_objects is {limit}; leave it None where there is no limit")
    _expect(limit is None or hasattr(config, config.limit), f"limit names an option that there is not: {config.limit}")
    head.set_progress(0, 10)
    head.set_progress(1, None)
    _check_losses(config, head, given, num_classes)
    _check_class_rows(head, num_classes)
    _check_query_rows(head)
    twin = config.build(given, num_classes)
    twin.load_state_dict(head.state_dict())
    for task in tasks:
        found = _predict(config, head, given, task)
        again = _predict(config, twin, given, task)
        for one, other in zip(found, again, strict=True):
            _expect(_equal(one, other), "a head with the same state dict predicts something else in eval mode")


def _specs_for(config: HeadConfig) -> tuple[FeatureSpec, ...]:
    """Maps as the head is made for: a pyramid, or those of a plain transformer whose last blocks it runs."""
    if config.tail:
        return (FeatureSpec("stage1", 32, 16),)
    return FPNConfig(channels=32).fitted(config.pyramid).specs(STRIDES)


def _check_losses(config: HeadConfig, head: Any, specs: tuple[FeatureSpec, ...], num_classes: int) -> None:
    head.train()
    size = SIZES[1]
    names: set[str] = set()
    for counts in ((2, 1), (0, 3), (0, 0)):
        targets = [_target(count, size, num_classes, config.reads_masks) for count in counts]
        if counts == (0, 3):
            targets[1]["ignored"] = torch.tensor([[30.0, 30.0, 90.0, 70.0]])
        before = copy.deepcopy(targets)
        head.zero_grad(set_to_none=True)
        features = _features(config, specs, size)
        kept = [x.clone() for x in features.maps]
        losses = head.compute_loss(head(features, targets), targets)
        what = f"with {counts} objects in a batch"
        _expect(isinstance(losses, dict) and bool(losses), f"compute_loss gives {type(losses).__name__}, not a dict")
        for name, loss in losses.items():
            _expect(loss.ndim == 0, f"{name} has shape {list(loss.shape)}; losses are scalars")
            _expect(bool(loss.isfinite()), f"{name} is {loss.item()} {what}")
        _expect(not names or names == set(losses), f"losses are {sorted(losses)} {what}, otherwise {sorted(names)}")
        names = set(losses)
        total = torch.stack(list(losses.values())).sum()
        _expect(total.requires_grad, f"there is no gradient {what}")
        total.backward()
        _check_gradients(head, f"the head {what}", all_of_them=counts == (2, 1))
        _expect(all(_same(a, b) for a, b in zip(targets, before, strict=True)), "targets are changed in place")
        unchanged = all(torch.equal(a, b) for a, b in zip(features.maps, kept, strict=True))
        _expect(unchanged, "maps are changed in place, which others may read, too")


def _check_class_rows(head: Any, num_classes: int) -> None:
    parameters = dict(head.named_parameters())
    for name, rows in head.class_rows().items():
        _expect(name in parameters, f"class_rows names {name}, which is not a parameter")
        fits = rows.ndim == 2 and len(rows) == num_classes and rows.dtype == torch.int64
        _expect(fits, f"class_rows[{name!r}] is {rows.dtype} {list(rows.shape)}, not int64 [{num_classes}, R]")
        _expect(len(rows.unique()) == rows.numel(), f"class_rows[{name!r}]: two classes share a row")
        _expect(int(rows.max()) < len(parameters[name]), f"class_rows[{name!r}]: there is no row {int(rows.max())}")


def _check_query_rows(head: Any) -> None:
    parameters = dict(head.named_parameters())
    for name, rows in head.query_rows().items():
        _expect(name in parameters, f"query_rows names {name}, which is not a parameter")
        fits = rows.ndim == 2 and rows.dtype == torch.int64
        _expect(fits, f"query_rows[{name!r}] is {rows.dtype} {list(rows.shape)}, not int64 [groups, queries]")
        _expect(len(rows.unique()) == rows.numel(), f"query_rows[{name!r}]: two queries share a row")
        _expect(int(rows.max()) < len(parameters[name]), f"query_rows[{name!r}]: there is no row {int(rows.max())}")


@torch.no_grad()
def _predict(config: HeadConfig, head: Any, specs: tuple[FeatureSpec, ...], task: Task) -> list[Prediction]:
    head.eval()
    num_classes = head.num_classes
    infos = [ImageInfo(1, "a", (150, 202), (75, 101)), ImageInfo(2, "b", (30, 41), (60, 82))]
    sizes = tuple(info.input_size for info in infos)
    outputs = head(replace(_features(config, specs, SIZES[1]), unpadded_sizes=sizes))
    is_thing = tuple(n != num_classes - 1 for n in range(num_classes))
    for masks in ("rle", "bool"):
        options = DecodeOptions(threshold=0.0, top_k=TOP_K, masks=masks, is_thing=is_thing)
        found: list[Prediction] = list(head.predict(outputs, infos, task, options))
        _expect(len(found) == len(infos), f"{task}: {len(found)} predictions for {len(infos)} images")
        for each, info in zip(found, infos, strict=True):
            CHECKS[task](each, info, masks, num_classes)
    return found


def _check_objects(found: Any, info: ImageInfo, num_classes: int) -> None:
    _check_kind(found, Instances)
    height, width = info.size
    count = len(found.scores)
    _expect(count <= TOP_K, f"{count} objects, though top_k is {TOP_K}")
    _expect(found.boxes.shape == (count, 4) and found.labels.shape == (count,), "columns of objects differ in length")
    _expect(bool((found.scores[1:] <= found.scores[:-1]).all()), "objects are not sorted, best first")
    _expect(bool(((found.scores >= 0) & (found.scores <= 1)).all()), "scores are not within 0 and 1")
    _check_labels(found.labels, 0, num_classes)
    inside = (found.boxes >= -1e-3) & (found.boxes <= torch.tensor([width, height] * 2) + 1e-3)
    _expect(bool(inside.all()), "boxes reach beyond the image; they are in its own pixels, clipped")


def _check_boxes(found: Any, info: ImageInfo, masks: str, num_classes: int) -> None:
    _check_objects(found, info, num_classes)
    _expect(found.masks is None, "objects of task=detection have masks")


def _check_masks(found: Any, info: ImageInfo, masks: str, num_classes: int) -> None:
    _check_objects(found, info, num_classes)
    count = len(found.scores)
    if masks == "rle":
        _expect(isinstance(found.masks, list) and len(found.masks) == count, f"masks are not a list of {count} RLEs")
    else:
        shape = list(found.masks.shape) if isinstance(found.masks, Tensor) else found.masks
        _expect(shape == [count, *info.size], f"masks are {shape}, not {[count, *info.size]}")


def _check_label_map(found: Any, info: ImageInfo, masks: str, num_classes: int) -> None:
    _check_kind(found, SemanticSegmentation)
    shape = tuple(found.label_map.shape)
    _expect(shape == info.size, f"label_map is {list(shape)}, the image {list(info.size)}")
    _check_labels(found.label_map, 0, num_classes)


def _check_segments(found: Any, info: ImageInfo, masks: str, num_classes: int) -> None:
    _check_kind(found, PanopticSegmentation)
    shape = tuple(found.segment_map.shape)
    _expect(shape == info.size, f"segment_map is {list(shape)}, the image {list(info.size)}")
    _check_labels(found.segment_map, 0, len(found.labels) + 1)
    _check_labels(found.labels, 0, num_classes)


CHECKS: dict[Task, Callable[[Any, ImageInfo, str, int], None]] = {
    "detection": _check_boxes,
    "instance": _check_masks,
    "semantic": _check_label_map,
    "panoptic": _check_segments,
}


def _check_kind(found: Any, kind: type) -> None:
    _expect(type(found) is kind, f"predict gives {type(found).__name__}, not {kind.__name__}")


def _check_labels(labels: Tensor, low: int, stop: int) -> None:
    _expect(bool(((labels >= low) & (labels < stop)).all()), f"there are labels not within {low} and {stop - 1}")


def _check_config(config: Config, kind: str) -> None:
    _expect(config.kind == kind, f"{type(config).__name__} is a config of kind {config.kind!r}, not {kind!r}")
    name = config.type
    _expect(registered(kind).get(name) is type(config), f'{type(config).__name__} lacks @register("{kind}", NAME)')
    _expect(from_dict(to_dict(config), kind) == config, "the config changes on its way through a dict")


def _check_specs(specs: Sequence[FeatureSpec], whose: str) -> None:
    _expect(bool(specs), f"{whose} declares no map in out_specs")
    strides = [spec.stride for spec in specs]
    _expect(strides == sorted(strides), f"{whose} declares maps of strides {strides}, not fine to coarse")
    names = [spec.name for spec in specs]
    _expect(len(set(names)) == len(names), f"{whose} declares two maps of one name: {names}")


def _check_maps(maps: Sequence[Tensor], specs: Sequence[FeatureSpec], size: tuple[int, int], whose: str) -> None:
    _expect(len(maps) == len(specs), f"{whose} gives {len(maps)} maps, but declares {len(specs)}")
    for spec, x in zip(specs, maps, strict=True):
        shape = (2, spec.channels, *(-(-length // spec.stride) for length in size))
        text = f"{whose}'s {spec.name} is {list(x.shape)} for images of {size}, declared is {list(shape)}"
        _expect(tuple(x.shape) == shape, text)


def _check_gradients(module: nn.Module, whose: str, *, all_of_them: bool = True) -> None:
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            _expect(not all_of_them, f"{whose} does not use {name}: it gets no gradient")
        elif parameter.grad is not None:
            _expect(bool(parameter.grad.isfinite().all()), f"{whose}: the gradient of {name} is not finite")
    for name, buffer in module.named_buffers():
        _expect(not buffer.is_floating_point() or bool(buffer.isfinite().all()), f"{whose}: {name} is not finite")


def _features(config: HeadConfig, specs: Iterable[FeatureSpec], size: tuple[int, int]) -> Features:
    """What the head gets, with the last blocks of a small plain transformer if it runs them itself."""
    features = _random_features(specs, size)
    if config.tail is None:
        return features
    torch.manual_seed(0)
    plain = ViTConfig(
        hidden_size=features.maps[0].shape[1],
        intermediate_size=32,
        num_hidden_layers=config.tail.num_blocks + 1,
        num_attention_heads=2,
        image_size=64,
    )
    with torch.no_grad():
        found = plain.with_tail(config.tail).build()(_random(2, 3, *size))
    return replace(features, tokens=found.tokens, tail=found.tail)


def _random_features(specs: Iterable[FeatureSpec], size: tuple[int, int]) -> Features:
    maps = tuple(_random(2, s.channels, *(-(-length // s.stride) for length in size)) for s in specs)
    return Features(maps, size, (size,) * 2, pixels=_random(2, 3, *size))


def _target(count: int, size: tuple[int, int], num_classes: int, masks: bool) -> Target:
    """Rectangles of 12 pixels and more."""
    corners = torch.tensor([[4.0 + 9 * n, 6.0 + 5 * n] for n in range(count)]).reshape(-1, 2)
    boxes = torch.cat([corners, corners + torch.tensor([30.0, 24.0])], dim=1)
    target: Target = {"labels": torch.arange(count) % num_classes, "boxes": boxes}
    if masks:
        target["masks"] = torch.zeros(count, *size, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(target["masks"], boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
    return target


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _same(one: Target, other: Target) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)  # type: ignore[literal-required]


def _equal(one: Any, other: Any) -> bool:
    names = getattr(one, "_fields", None) or ("boxes", "labels", "scores")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def _expect(kept: bool, text: str) -> None:
    if not kept:
        raise AssertionError(text)
