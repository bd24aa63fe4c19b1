"""Mask2Former's loss on ten supervised outputs, with its matching, forward and backward: time, memory, agreement.

vision_stack makes the mask logits that it needs from embeddings and features in its loss; transformers is given those
of all queries and layers, made in its decoder, and with "its mask product" makes them here. Of maps as small as these
vision_stack matches with all pixels, transformers with random points; the latter finds slightly worse matches.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from batches import max_rss
from timing import alternate, report
from torch import Tensor
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from vision_stack.losses import MaskCriterionConfig
from vision_stack.ops.point_sampling import pixel_centers
from vision_stack.outputs import MaskOutputs
from vision_stack.structures import Target

LAYERS, IMAGES, QUERIES, CLASSES, CHANNELS, MAP, SIZE = 10, 2, 100, 80, 256, 96, 384
REQUIRED = {1: 1.5, 10: 1.5, 50: 2.5, 100: 2.5}
WEIGHTS = {"cross_entropy": 2.0, "mask": 5.0, "dice": 5.0}
SIDES = ("vision_stack", "transformers", "with its mask product")


class Case(NamedTuple):
    """Outputs whose masks are smooth and spread over several units, and blobs as objects."""

    outputs: MaskOutputs
    targets: list[Target]


def compare_criteria(counts: list[int], rounds: int) -> None:
    for count in counts:
        case = new_case(count)
        steps = {side: new_step(side, case) for side in SIDES}
        title = f"criterion, {LAYERS} outputs, {count} objects an image, forward and backward"
        times = alternate(steps, rounds)
        report(title, times, "vision_stack", REQUIRED.get(count))
        totals = {side: _mean_and_error(steps[side]) for side in SIDES[:2]}
        with patch("torch.rand", _all_pixels_to_match(torch.rand)):
            totals["transformers, matched at all pixels as vision_stack does"] = _mean_and_error(steps[SIDES[1]])
        print("  total loss, mean of four draws of points: " + ", ".join(f"{k} {v}" for k, v in totals.items()))


def peak_memory(side: str, count: int) -> tuple[float, float]:
    """MiB at the peak of two steps, and before the first; of a process that does nothing else."""
    step = new_step(side, new_case(count))
    before = max_rss()
    for _ in range(2):
        step()
    return max_rss(), before


def new_case(count: int) -> Case:
    generator = torch.Generator().manual_seed(0)

    def smooth(channels: int, coarse: int, size: int) -> Tensor:
        noise = torch.randn(IMAGES, channels, coarse, coarse, generator=generator)
        return F.interpolate(noise, size=(size, size), mode="bicubic")

    features = smooth(CHANNELS, 12, MAP).contiguous(memory_format=torch.channels_last)  # as the model gives them
    embed = 0.3 * torch.randn(LAYERS, IMAGES, QUERIES, CHANNELS, generator=generator)
    logits = torch.randn(LAYERS, IMAGES, QUERIES, CLASSES + 1, generator=generator)
    labels = torch.randint(CLASSES, (IMAGES, count), generator=generator)
    targets: list[Target] = [
        {"labels": labels[image], "masks": masks > 1.0, "boxes": torch.zeros(count, 4)}
        for image, masks in enumerate(smooth(count, 8, SIZE))
    ]
    return Case(MaskOutputs(logits[-1], embed[-1], features, logits[:-1], embed[:-1]), targets)


def new_step(side: str, case: Case) -> Callable[[], float]:
    """What takes the gradients with respect to the side's inputs, and returns the total loss."""
    if side == "vision_stack":
        return _our_step(case)
    return _their_step(case, with_product=side == SIDES[2])


def _our_step(case: Case) -> Callable[[], float]:
    class_, mask, dice = WEIGHTS.values()
    config = MaskCriterionConfig(class_weight=class_, mask_weight=mask, dice_weight=dice, mask_loss="point")
    criterion = config.build(CLASSES)

    def step() -> float:
        leaves = MaskOutputs(*_leaves(case.outputs))
        total = torch.stack(list(criterion(leaves, case.targets).values())).sum()
        total.backward()
        return total.item()

    return step


def _their_step(case: Case, with_product: bool) -> Callable[[], float]:
    criterion = Mask2FormerLoss(Mask2FormerConfig(num_labels=CLASSES), {})
    masks = [target["masks"].float() for target in case.targets]
    labels = [target["labels"] for target in case.targets]
    factors = case.outputs.all_mask_embed, case.outputs.mask_features
    given = [] if with_product else _products(*factors)

    def step() -> float:
        logits = _leaves(case.outputs.all_logits)
        maps = [x.detach().requires_grad_() for x in given] or _products(
            *(x.detach().requires_grad_() for x in factors)
        )
        earlier = [
            {"masks_queries_logits": m, "class_queries_logits": c} for m, c in zip(maps[:-1], logits[:-1], strict=True)
        ]
        losses = criterion(maps[-1], logits[-1], masks, labels, earlier)
        weights = {name: next(w for part, w in WEIGHTS.items() if part in name) for name in losses}
        total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        total.backward()
        return total.item()

    return step


def _leaves(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in tensors]


def _products(embed: Tensor, features: Tensor) -> list[Tensor]:
    return [torch.einsum("bqc,bchw->bqhw", each, features) for each in embed]


def _mean_and_error(step: Callable[[], float]) -> str:
    values = [step() for _ in range(4)]
    return f"{statistics.mean(values):.3f} +- {statistics.stdev(values) / len(values) ** 0.5:.3f}"


def _all_pixels_to_match(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What gives transformers' matcher the centres of all pixels in place of random points; else draws."""
    centers = pixel_centers(MAP, MAP, torch.device("cpu"))[None]
    return lambda *shape, **options: centers if shape[0] == 1 else draw(*shape, **options)
