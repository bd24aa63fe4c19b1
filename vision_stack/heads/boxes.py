"""What detectors share: from scored boxes to detections, and the pyramid that they read.

A detector of one's own derives from `BoxHead` and gives `forward`, `compute_loss` and `candidates`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from vision_stack.config import ConfigError, Positive
from vision_stack.heads.base import Decoder, Head
from vision_stack.postprocess.nms import Suppression, suppress
from vision_stack.structures import (
    DecodeOptions,
    Features,
    FeatureSpec,
    HeadConfig,
    ImageInfo,
    Instances,
    Task,
)

Outputs = TypeVar("Outputs")


class Candidates(NamedTuple):
    """Scored boxes of one image, in pixels of the resized image, before suppression."""

    boxes: Tensor  # [N, 4]
    labels: Tensor  # [N], 0..K-1
    scores: Tensor  # [N]


@dataclass(frozen=True, kw_only=True)
class BoxHeadConfig(HeadConfig):
    """Base of configs of heads that find boxes and need no masks."""

    tasks: ClassVar[frozenset[Task]] = frozenset({"detection"})
    needs_masks: ClassVar[bool] = False
    limit: ClassVar[str] = "detections_per_img"
    nms: Literal["hard", "soft"] = "hard"  # soft: Bodla et al. 2017, Gaussian
    class_agnostic_nms: bool = False  # boxes of different classes suppress each other, too
    soft_nms_sigma: Positive = 0.5

    def suppression(self, iou_threshold: float) -> Suppression:
        return Suppression(self.nms, iou_threshold, self.class_agnostic_nms, self.soft_nms_sigma)


class BoxHead(Head[Outputs]):
    """Base of heads that find boxes.

    Attributes:
        suppression: what becomes of candidates that overlap; `set_nms` changes it.
        max_objects: detections of an image, at most.
    """

    suppression: Suppression
    max_objects: int

    def set_nms(
        self,
        method: Literal["hard", "soft"] | None = None,
        *,
        iou_threshold: float | None = None,
        class_agnostic: bool | None = None,
    ) -> None:
        given: dict[str, Any] = {"method": method, "iou_threshold": iou_threshold, "class_agnostic": class_agnostic}
        self.suppression = self.suppression._replace(**{k: v for k, v in given.items() if v is not None})

    def candidates(self, outputs: Outputs) -> list[Candidates]:
        """The scored boxes of each image."""
        raise NotImplementedError

    @torch.no_grad()
    def detections(self, outputs: Outputs, options: DecodeOptions) -> list[Candidates]:
        """The candidates of each image that suppression and the options leave, best first."""
        limit = min(options.top_k, self.max_objects)
        found = []
        for boxes, labels, scores in self.candidates(outputs):
            kept, kept_scores = suppress(boxes, labels, scores, self.suppression, limit, options.lowest_score)
            found.append(Candidates(boxes[kept], labels[kept], kept_scores))
        return found

    def _boxes(self, outputs: Outputs, infos: Sequence[ImageInfo], options: DecodeOptions) -> Iterator[Instances]:
        for found, info in zip(self.detections(outputs, options), infos, strict=True):
            yield instances(found, in_original_pixels(found.boxes, info), options)

    decoders: ClassVar[Mapping[Task, Decoder]] = {"detection": _boxes}


def instances(found: Candidates, boxes: Tensor, options: DecodeOptions, masks: Any = None) -> Instances:
    """Detections with `boxes` [N, 4] in pixels of the original image; beside run-length codes all is on the CPU."""
    labels, scores = found.labels, found.scores.float()
    if options.masks == "rle":
        boxes, labels, scores = boxes.cpu(), labels.cpu(), scores.cpu()
    return Instances(boxes, labels, scores, masks)


def in_original_pixels(boxes: Tensor, info: ImageInfo) -> Tensor:
    """Boxes [N, 4] of the resized image -> of the image itself, float32."""
    (height, width), (input_height, input_width) = info.size, info.input_size
    return boxes.float() * boxes.new_tensor([width / input_width, height / input_height] * 2, dtype=torch.float32)


class Anchors(AnchorGenerator):
    """torchvision's, but in float32 at least, whatever the maps: bfloat16 counts pixels in steps of 8 from 1024 on."""

    def forward(self, image_list: ImageList, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        return super().forward(image_list, [precise(x[:1, :1]) for x in feature_maps])


def precise(x: Tensor) -> Tensor:
    """At least float32, for coordinates and losses."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def image_list(features: Features) -> ImageList:
    """Sizes as torchvision's anchor generator and proposals read them; there are no pixels in it."""
    sizes = [(height, width) for height, width in features.image_sizes]
    return ImageList(torch.empty(len(sizes), 3, *features.size, device="meta"), sizes)


def check_pyramid(head: str, in_specs: tuple[FeatureSpec, ...], strides: tuple[int, ...]) -> int:
    """Channels of the maps, which are equal.

    Raises:
        ConfigError: they differ, or one of the strides is missing; the line says which neck fits.
    """
    channels = {spec.channels for spec in in_specs}
    if len(channels) > 1 or not set(strides) <= {spec.stride for spec in in_specs}:
        raise ConfigError(
            f"head: {head} needs maps of equal channels at strides {', '.join(map(str, strides))}, got "
            f"{', '.join(f'{s.channels} at {s.stride}' for s in in_specs)}; use neck=fpn, or neck=simple_pyramid with "
            "a plain ViT"
        )
    return channels.pop()
