"""The losses of RF-DETR-Seg, D-FINE and EoMT on all supervised outputs, with their matching, forward and backward.

There are as many queries as in the published small models, or as objects where these are more. transformers is given
masks that are made already, and with "its mask product" makes them of embeddings and features, as vision_stack does in
its loss. Of D-FINE, vision_stack also supervises the box before the first layer, and boxes and edges by the union of
all layers' matches, as the paper does and transformers does not.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from batches import max_rss
from detr_peers import NUM_CLASSES
from timing import alternate, report
from torch import Tensor
from torchvision.ops import box_convert
from transformers import DFineConfig, EomtConfig, RfDetrConfig
from transformers.loss.loss_d_fine import DFineForObjectDetectionLoss
from transformers.loss.loss_rf_detr import RfDetrForSegmentationLoss
from transformers.models.d_fine.modeling_d_fine import get_contrastive_denoising_training_group
from transformers.models.eomt.modeling_eomt import EomtForUniversalSegmentation, EomtLoss

from vision_stack.heads import DFineHeadConfig, EoMTHeadConfig, RFDETRSegHeadConfig
from vision_stack.losses.box_mask_criterion import BoxMaskCriterion
from vision_stack.ops.box_edges import NUM_BINS, bin_values
from vision_stack.outputs import BoxOutputs, EdgeDistributions, LayeredMaskOutputs, MaskFactors, MaskLayer
from vision_stack.structures import Target

IMAGES, REQUIRED = 2, 2.0
OBJECTS = (1, 10, 50, 100, 300)
SIDES = ("vision_stack", "transformers", "with its mask product")

Step = Callable[[], float]


def compare_criteria(family: str, title: str, size: int, counts: list[int], rounds: int) -> None:
    for count in counts:
        steps = CASES[family](size, count)
        times = alternate(steps, rounds)
        report(f"criterion, {title}, {size} px x {IMAGES}, {count} objects an image", times, SIDES[0], REQUIRED)
        torch.manual_seed(0)
        print(
            "  total loss: " + ", ".join(f"{side} {step():.3f}" for side, step in list(steps.items())[:2]), flush=True
        )


def peak_memory(family: str, side: str, size: int, count: int) -> tuple[float, float]:
    """MiB at the peak of two steps, and before them, of this process."""
    step = CASES[family](size, count)[side]
    before = max_rss()
    for _ in range(2):
        step()
    return max_rss(), before


def rf_detr_seg(size: int, count: int) -> dict[str, Step]:
    """Of four layers and the proposals of 13 groups."""
    layers, groups, queries, channels = 4, 13, max(100, count), 256
    random = _Random(size)
    total = groups * queries
    logits, boxes = 2 * random.normal(layers + 1, IMAGES, total, NUM_CLASSES) - 4, random.boxes(layers + 1, total)
    features = torch.stack([random.smooth(channels, 12, size // 4) for _ in range(layers + 1)])
    embed = 0.3 * random.normal(layers + 1, IMAGES, total, channels)
    targets, labels = random.objects(count)
    criterion = BoxMaskCriterion(RFDETRSegHeadConfig().loss.build())
    config = RfDetrConfig(num_labels=NUM_CLASSES, decoder_layers=layers)

    def ours() -> float:
        x, b, e, f = (_leaf(each) for each in (logits, boxes, embed, features))
        masks = MaskFactors(e[:-1], f[:-1], e[-1], f[-1])
        outputs = BoxOutputs(x[-2], b[-2], x[:-2], b[:-2], random.image_sizes, x[-1], b[-1], masks=masks)
        return _backward(criterion(outputs, targets, groups))

    def theirs(masks: list[Tensor], leaves: list[Tensor]) -> float:
        x, b = leaves
        layered = (x[:-1], b[:-1], masks[:-1])
        last = (x[-2], labels, torch.device("cpu"), b[-2], masks[-2])
        loss, _, _ = RfDetrForSegmentationLoss(*last, config, *layered, x[-1], b[-1], masks[-1])
        loss.backward()
        return loss.item()

    return _sides(ours, theirs, embed, features, [logits, boxes])


def d_fine(size: int, count: int) -> dict[str, Step]:
    """Of three layers, the first box, the proposals and noised objects."""
    layers, queries = 3, max(300, count)
    random = _Random(size)
    targets, labels = random.objects(count)
    *_, meta = get_contrastive_denoising_training_group(
        labels, NUM_CLASSES, queries, lambda x: x[..., None].float(), num_denoising_queries=100
    )
    total = sum(meta["dn_num_split"])
    logits, boxes = 2 * random.normal(layers + 1, IMAGES, total, NUM_CLASSES) - 4, random.boxes(layers + 1, total)
    edges, first = 2 * random.normal(layers, IMAGES, total, 4, NUM_BINS), random.boxes(1, total)[0]
    encoder = 2 * random.normal(IMAGES, queries, NUM_CLASSES) - 4, random.boxes(1, queries)[0]
    criterion = DFineHeadConfig().loss.build()
    config = DFineConfig(num_labels=NUM_CLASSES, decoder_layers=layers)
    split = meta["dn_num_split"]

    def ours() -> float:
        leaves = [_leaf(each) for each in (logits, boxes, edges, *encoder)]
        (noised_x, x), (noised_b, b), (noised_e, e) = (each.split(split, 2) for each in leaves[:3])
        bins = bin_values(4.0, b)
        found = [
            EdgeDistributions(*pair, bins) for pair in zip((e, noised_e), first.split(split, 1)[::-1], strict=True)
        ]
        outputs = BoxOutputs(x[-1], b[-1], x[:-1], b[:-1], random.image_sizes, *leaves[3:], noised_x, noised_b, *found)
        return _backward(criterion(outputs, targets))

    def theirs() -> float:
        x, b, e, encoder_x, encoder_b = (_leaf(each) for each in (logits[1:], boxes[1:], edges, *encoder))
        x, b, corners = x.transpose(0, 1), b.transpose(0, 1), e.flatten(3).transpose(0, 1)
        references = first[:, None].expand(-1, layers, -1, -1)
        loss, _, _ = DFineForObjectDetectionLoss(
            x[:, -1], labels, torch.device("cpu"), b[:, -1], config, x, b, encoder_x, encoder_b, meta, corners,
            references,
        )  # fmt: skip
        loss.backward()
        return loss.item()

    return {SIDES[0]: ours, SIDES[1]: theirs}


def eomt(size: int, count: int) -> dict[str, Step]:
    """Of four predictions, each of which has a map of its own."""
    layers, queries, channels = 4, max(200, count), 384
    random = _Random(size)
    logits = random.normal(layers, IMAGES, queries, NUM_CLASSES + 1)
    features = torch.stack([random.smooth(channels, 12, size // 4) for _ in range(layers)])
    embed = 0.25 * random.normal(layers, IMAGES, queries, channels)
    targets, _ = random.objects(count)
    criterion = EoMTHeadConfig().loss.build(NUM_CLASSES)
    config = EomtConfig(num_labels=NUM_CLASSES)
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    model: Any = SimpleNamespace(criterion=EomtLoss(config, weights), weight_dict=weights)

    def ours() -> float:
        parts = zip(*(_leaf(each).unbind(0) for each in (logits, embed, features)), strict=True)
        return _backward(criterion(LayeredMaskOutputs(tuple(MaskLayer(*part) for part in parts)), targets))

    def theirs(masks: list[Tensor], leaves: list[Tensor]) -> float:
        mask_labels, class_labels = ([target[name] for target in targets] for name in ("masks", "labels"))
        total = torch.zeros(())
        for layer_masks, layer_logits in zip(masks, leaves[0], strict=True):
            losses = EomtForUniversalSegmentation.get_loss_dict(
                model, layer_masks, layer_logits, [x.float() for x in mask_labels], class_labels, None
            )
            total = total + sum(losses.values())
        total.backward()
        return total.item()

    return _sides(ours, theirs, embed, features, [logits])


CASES: dict[str, Callable[[int, int], dict[str, Step]]] = {"rf_detr_seg": rf_detr_seg, "d_fine": d_fine, "eomt": eomt}


class _Random:
    """Outputs and objects of images of `size` x `size` pixels, the same each time."""

    def __init__(self, size: int) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.size = size
        self.image_sizes = torch.full((IMAGES, 2), float(size))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def boxes(self, layers: int, queries: int) -> Tensor:
        """(cx, cy, w, h), [L, B, Q, 4]."""
        uniform = torch.rand(layers, IMAGES, queries, 4, generator=self.generator)
        return torch.cat([0.2 + 0.6 * uniform[..., :2], 0.05 + 0.3 * uniform[..., 2:]], -1)

    def smooth(self, channels: int, coarse: int, size: int) -> Tensor:
        """[B, channels, size, size], as the models give maps."""
        x = F.interpolate(self.normal(IMAGES, channels, coarse, coarse), size=(size, size), mode="bicubic")
        return x.contiguous(memory_format=torch.channels_last)

    def objects(self, count: int) -> tuple[list[Target], list[dict[str, Tensor]]]:
        """As ours, and as transformers has them; masks are blobs that boxes know nothing of."""
        ours: list[Target] = []
        theirs = []
        for boxes, blobs in zip(self.boxes(1, count)[0], self.smooth(count, 8, self.size), strict=True):
            labels, masks = torch.randint(NUM_CLASSES, (count,), generator=self.generator), (blobs > 1.0).contiguous()
            theirs.append({"class_labels": labels, "boxes": boxes, "masks": masks})
            ours.append({"labels": labels, "boxes": box_convert(boxes, "cxcywh", "xyxy") * self.size, "masks": masks})
        return ours, theirs


def _sides(
    ours: Step,
    theirs: Callable[[list[Tensor], list[Tensor]], float],
    embed: Tensor,
    features: Tensor,
    others: list[Tensor],
) -> dict[str, Step]:
    """Steps of the three sides; `theirs` is given masks of all layers, and leaves of what else it needs."""

    def products(factors: tuple[Tensor, Tensor]) -> list[Tensor]:
        return [torch.einsum("bqc,bchw->bqhw", *pair) for pair in zip(*factors, strict=True)]

    made: list[Tensor] = []

    def given() -> float:
        if not made:
            made.extend(products((embed, features)))
        return theirs([_leaf(x) for x in made], [_leaf(x) for x in others])

    def with_product() -> float:
        return theirs(products((_leaf(embed), _leaf(features))), [_leaf(x) for x in others])

    return {SIDES[0]: ours, SIDES[1]: given, SIDES[2]: with_product}


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def _backward(losses: dict[str, Tensor]) -> float:
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    return total.item()
