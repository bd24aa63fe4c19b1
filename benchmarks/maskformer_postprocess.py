"""From the outputs of 8 images to instances of 480 x 640 pixels: vision_stack's post-processing and transformers'."""

from __future__ import annotations

import statistics

import torch
from timing import alternate, report
from torch import Tensor
from transformers import MaskFormerImageProcessor
from transformers.models.maskformer.modeling_maskformer import MaskFormerForInstanceSegmentationOutput

from vision_stack.outputs import MaskOutputs
from vision_stack.postprocess.instance import encode_instances, predict_instances
from vision_stack.structures import ImageInfo, Instances

IMAGES, QUERIES, CLASSES, CHANNELS = 8, 100, 80, 256
MAP, INPUT, SIZE = (96, 96), (384, 384), (480, 640)
THRESHOLD = 0.5


def compare_postprocessing(rounds: int) -> None:
    processor = MaskFormerImageProcessor()
    infos = [ImageInfo(i, "", SIZE, INPUT) for i in range(IMAGES)]
    for kept, required in ((15, 8.0), (100, 2.0)):
        outputs = ellipses(kept)
        theirs = MaskFormerForInstanceSegmentationOutput(
            class_queries_logits=outputs.pred_logits, masks_queries_logits=outputs.pred_masks
        )
        sizes = [SIZE] * IMAGES

        def transformers(theirs=theirs, sizes=sizes, **kind: bool) -> list[dict[str, Tensor]]:  # type: ignore[no-untyped-def]
            return processor.post_process_instance_segmentation(theirs, THRESHOLD, target_sizes=sizes, **kind)

        def ours(outputs: MaskOutputs = outputs) -> list[Instances]:
            return list(predict_instances(outputs, infos, top_k=QUERIES, score_threshold=THRESHOLD))

        found, expected = ours(), transformers(return_binary_maps=True)
        print(f"\n{IMAGES} images to {SIZE[0]} x {SIZE[1]}: {overlap(found, expected)}")

        def with_product(outputs: MaskOutputs = outputs, f=transformers) -> None:  # type: ignore[no-untyped-def]
            outputs.pred_masks  # noqa: B018  vision_stack multiplies the kept queries only, and does it here
            f(return_binary_maps=True)

        contenders = {
            "vision_stack": ours,
            "transformers": lambda f=transformers: f(return_binary_maps=True),
            "with its mask product": with_product,
        }
        report(f"instances, {kept} objects an image", alternate(contenders, rounds), "vision_stack", required)
        contenders = {
            "vision_stack, RLE": lambda outputs=outputs: list(
                encode_instances(outputs, infos, top_k=QUERIES, score_threshold=THRESHOLD)
            ),
            "transformers, RLE of its map": lambda f=transformers: f(return_coco_annotation=True),
        }
        report(f"run-length encoded, {kept} objects an image", alternate(contenders, rounds), "vision_stack, RLE")


def ellipses(kept: int, queries: int = QUERIES, channels: int = CHANNELS) -> MaskOutputs:
    """Outputs whose masks are ellipses of all sizes, `kept` of them of a confident query.

    A quadratic in x and y is a product of embeddings and features like any other.
    """
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(*(torch.linspace(0, 1, length) for length in MAP), indexing="ij")
    features = torch.zeros(IMAGES, channels, *MAP)
    features[:, :5] = torch.stack([torch.ones_like(x), x, x * x, y, y * y])
    center = torch.rand(2, IMAGES, queries, generator=generator)
    radius = 0.03 + 0.25 * torch.rand(2, IMAGES, queries, generator=generator) ** 2
    steepness = 6.0
    embed = torch.zeros(IMAGES, queries, channels)
    embed[..., 0] = steepness * (1 - (center / radius).square().sum(0))
    for axis in range(2):
        embed[..., 1 + 2 * axis] = steepness * 2 * center[axis] / radius[axis] ** 2
        embed[..., 2 + 2 * axis] = -steepness / radius[axis] ** 2
    logits = torch.randn(IMAGES, queries, CLASSES + 1, generator=generator)
    logits[:, :, -1] += 12
    confident = torch.rand(IMAGES, queries, generator=generator).topk(kept).indices
    labels = torch.randint(CLASSES, confident.shape, generator=generator)
    logits[torch.arange(IMAGES)[:, None], confident, labels] += 26
    none = torch.empty(0)
    features = features.contiguous(memory_format=torch.channels_last)  # as the model gives them
    return MaskOutputs(logits, embed, features, none, none)


def overlap(ours: list[Instances], theirs: list[dict[str, Tensor]]) -> str:
    """How well each of our masks is met by one of theirs."""
    best: list[float] = []
    for own, other in zip(ours, theirs, strict=True):
        a, b = own.masks.flatten(1).float(), other["segmentation"].flatten(1).float()
        shared = a @ b.T
        best += (shared / (a.sum(1)[:, None] + b.sum(1) - shared)).max(1).values.tolist()
    count = len(best) / IMAGES, sum(len(each["segments_info"]) for each in theirs) / IMAGES
    return (
        f"{count[0]:.1f} instances an image (transformers {count[1]:.1f}), "
        f"mask IoU mean {statistics.mean(best):.4f}, least {min(best):.4f}"
    )
