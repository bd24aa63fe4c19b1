"""What heads of the DETR family share: the maps they read, proposals, refined boxes, losses and detections.

A head of one's own derives from `DETRHead` and gives `forward`, with the outputs' `masks` by `mask_factors`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert

from vision_stack.config import ConfigError, Count, Fraction, Layers
from vision_stack.heads.base import Decoder, Head
from vision_stack.heads.boxes import Candidates, instances, precise
from vision_stack.layers.attention import check_width
from vision_stack.layers.conv import conv_norm
from vision_stack.layers.deformable import Padding, cell_centers, padding_of, to_maps, to_tokens
from vision_stack.layers.mlp import MLP
from vision_stack.layers.query_masks import STRIDE as MASK_STRIDE
from vision_stack.layers.query_masks import QueryMasks
from vision_stack.losses.box_criterion import BoxCriterionConfig
from vision_stack.losses.box_mask_criterion import BoxMaskCriterion
from vision_stack.ops.boxes import inverse_sigmoid
from vision_stack.outputs import BoxOutputs, MaskFactors
from vision_stack.postprocess.instance import query_masks
from vision_stack.structures import (
    DecodeOptions,
    Features,
    FeatureSpec,
    HeadConfig,
    ImageInfo,
    Instances,
    Pyramid,
    Target,
    Task,
)

FINEST_STRIDE = 8  # of the maps that queries read
PRIOR_LOGIT = -4.59512  # of the probability 0.01 that a query starts with (RetinaNet, Sec. 4.1)
PROPOSAL_SIZE = 0.05  # of the image, on the finest map
BORDER = 0.01  # of the image; proposals whose centre or size is nearer to 0 or 1 are not used


@dataclass(frozen=True, kw_only=True)
class DETRHeadConfig(HeadConfig):
    """Base of configs of heads whose queries give class logits and a box each, and a mask where they are asked to."""

    tasks: ClassVar[frozenset[Task]] = frozenset({"detection", "instance"})
    mask_tasks: ClassVar[frozenset[Task]] = frozenset({"instance"})  # for which queries need a mask
    needs_masks: ClassVar[bool] = False  # by default
    num_queries: Count = 300
    hidden_dim: Count = 256
    num_decoder_layers: Layers = 6
    num_heads: Count = 8
    ffn_dim: Count = 1024
    dropout: Fraction = 0.1
    loss: BoxCriterionConfig = field(default_factory=BoxCriterionConfig)
    masks: bool | Literal["auto"] = "auto"  # of the queries; "auto": with task=instance
    mask_ffn_dim: Count = 1024  # of the layers between queries and masks

    def check(self) -> None:
        """ConfigError unless attention heads and sine positions fit the width."""
        check_width("hidden_dim", self.hidden_dim, self.num_heads)

    @property
    def reads_masks(self) -> bool:
        return self.masks is True

    def fitted(self, task: Task) -> DETRHeadConfig:
        return replace(self, masks=task in self.mask_tasks) if self.masks == "auto" else self

    def serves(self, task: Task) -> bool:
        return super().serves(task) and (task not in self.mask_tasks or self.masks is not False)

    def check_task(self, task: Task) -> None:
        super().check_task(task)
        if not self.serves(task):
            raise ConfigError(f"head.masks: task={task} needs them; set head.masks=true, or use task=detection")

    @property
    def pyramid(self) -> Pyramid:
        return Pyramid(finest_stride=MASK_STRIDE if self.reads_masks else FINEST_STRIDE)


class Memory(NamedTuple):
    """What queries read: the cells of all maps, one map after the other."""

    tokens: Tensor  # [B, S, C]
    shapes: list[tuple[int, int]]
    padding: Padding | None


class DETRHead(Head[BoxOutputs]):
    """Base of heads that give `BoxOutputs`: subclasses add `forward`.

    Attributes:
        num_levels: how many maps are read, all from stride 8 on.
        masks: makes the masks of queries; None in a head without.
        mask_map: which of the maps masks are made of: that of their stride; None: the finest that queries read.
    """

    max_objects: int
    class_layers: ClassVar[tuple[str, ...]] = ("class_embed.",)

    def __init__(self, config: DETRHeadConfig, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.max_objects = config.num_queries
        criterion = config.loss.build()
        self.criterion = BoxMaskCriterion(criterion) if config.reads_masks else criterion
        self.read = [index for index, spec in enumerate(in_specs) if spec.stride >= FINEST_STRIDE]
        if not self.read:
            raise ConfigError(
                f"head: {config.type} needs maps at stride {FINEST_STRIDE} or coarser, got "
                f"{tuple(spec.stride for spec in in_specs)}; choose them by backbone.out_strides=[8,16,32], or use "
                "neck=simple_pyramid with a plain ViT"
            )
        self.num_levels = len(self.read)
        self.input_projections = nn.ModuleList(
            self.projection(in_specs[index].channels, config.hidden_dim) for index in self.read
        )
        self.masks, self.mask_map = None, None
        if config.reads_masks:
            self.masks = QueryMasks(config.hidden_dim, config.num_decoder_layers, config.mask_ffn_dim)
            self.mask_map = next((n for n, spec in enumerate(in_specs) if spec.stride == MASK_STRIDE), None)
        if self.mask_map is not None:
            self.mask_projection = self.projection(in_specs[self.mask_map].channels, config.hidden_dim)

    @staticmethod
    def projection(in_channels: int, dim: int) -> nn.Module:
        """Takes a map to the head's width."""
        return nn.Identity() if in_channels == dim else conv_norm(in_channels, dim, 1, "group", relu=False, bias=True)

    def memory(self, features: Features) -> Memory:
        """The maps that are read, projected to the head's width."""
        read = [features.maps[index] for index in self.read]
        tokens, shapes = to_tokens([f(x) for f, x in zip(self.input_projections, read, strict=True)])
        return Memory(tokens, shapes, padding_of(features, shapes))

    def mask_factors(
        self, hidden: Sequence[Tensor], memory: Memory, features: Features, proposed: Tensor | None = None
    ) -> MaskFactors | None:
        """What masks are made of; None in a head without masks.

        Args:
            hidden: queries [B, Q, C] after each layer. Not in training the last layer's alone get masks.
            proposed: [B, P, C] of proposals that are to have masks in training.
        """
        if self.masks is None:
            return None
        supervised = hidden if self.training else hidden[-1:]
        if self.mask_map is None:
            x = to_maps(memory.tokens, memory.shapes)[0]
        else:
            x = self.mask_projection(features.maps[self.mask_map])
        return MaskFactors(*self.masks(x, features.size, torch.stack(list(supervised)), proposed))

    def compute_loss(self, outputs: BoxOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Weighted losses by name; their sum is the total. See `vision_stack.losses.box_criterion`, and of heads with
        masks `vision_stack.losses.box_mask_criterion`."""
        return self.criterion(outputs, targets)

    def set_progress(self, step: int, total: int | None) -> None:
        self.criterion.set_progress(step / total if total else 0.0)

    @torch.no_grad()
    def detections(self, outputs: BoxOutputs, options: DecodeOptions) -> list[Candidates]:
        """Of each image the best pairs of a query and a class, best first; boxes as shares of the image, within it."""
        return [found for found, _ in self.ranked(outputs, options)]

    @torch.no_grad()
    def ranked(self, outputs: BoxOutputs, options: DecodeOptions) -> list[tuple[Candidates, Tensor]]:
        """The `detections` of each image, and the query of each."""
        most = min(options.top_k, self.max_objects)

        def wanted(scores: Tensor) -> int:
            return min(most, int((scores >= options.lowest_score).sum(1).max()))

        # A pair among the k best is of one of the k best queries, which are far fewer cells, and their classes are
        # ordered as logits are.
        logits = precise(outputs.pred_logits)
        best = logits.amax(2)
        chosen = best.topk(wanted(best.sigmoid())).indices
        scores = take(logits, chosen).flatten(1).sigmoid()
        scores, cells = scores.topk(wanted(scores))
        queries, labels = chosen.gather(1, cells // self.num_classes), cells % self.num_classes
        boxes = box_convert(precise(outputs.pred_boxes), "cxcywh", "xyxy").clamp(0, 1)
        columns = (take(boxes, queries), labels, scores, queries)
        counts = (scores >= options.lowest_score).sum(1).tolist()  # the best come first
        found = [[x[image, :count] for x in columns] for image, count in enumerate(counts)]
        return [(Candidates(*candidates), of_queries) for *candidates, of_queries in found]

    def _boxes(self, outputs: BoxOutputs, infos: Sequence[ImageInfo], options: DecodeOptions) -> Iterator[Instances]:
        for found, info in zip(self.detections(outputs, options), infos, strict=True):
            yield instances(found, in_pixels(found, info), options)

    def _instances(
        self, outputs: BoxOutputs, infos: Sequence[ImageInfo], options: DecodeOptions
    ) -> Iterator[Instances]:
        if outputs.masks is None:
            raise ConfigError("head.masks: task=instance needs them; build the head with masks=True")
        embed, features = outputs.masks.embed[-1], outputs.masks.features[-1]
        for image, ((found, queries), info) in enumerate(zip(self.ranked(outputs, options), infos, strict=True)):
            masks = query_masks(features[image], embed[image], queries, info, options.masks)
            yield instances(found, in_pixels(found, info), options, masks)

    decoders: ClassVar[Mapping[Task, Decoder]] = {"detection": _boxes, "instance": _instances}


def in_pixels(found: Candidates, info: ImageInfo) -> Tensor:
    """Boxes in pixels of the image itself, [N, 4] float32."""
    height, width = info.size
    return found.boxes.float() * found.boxes.new_tensor([width, height] * 2).float()


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows of each image: values [B, S, D], index [B, Q] -> [B, Q, D]."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def refined(delta: Tensor, reference: Tensor) -> Tensor:
    """Boxes [B, Q, 4] from what a layer adds to the logits of a reference: a point [B, Q, 2] or a box [B, Q, 4]."""
    return (delta + F.pad(inverse_sigmoid(reference), (0, 4 - reference.shape[2]))).sigmoid()


def proposals(memory: Memory) -> tuple[Tensor, Tensor]:
    """A box (cx, cy, w, h) at each cell, larger on coarser maps (Deformable DETR, Sec. A.4), and whether to use it.

    Returns:
        boxes as shares of the image, [1 or B, S, 4], and bool [1 or B, S].
    """
    centers = cell_centers(memory.shapes, memory.padding, memory.tokens).view(-1, memory.tokens.shape[1], 2)
    sizes = [centers.new_full((h * w, 2), PROPOSAL_SIZE * 2**level) for level, (h, w) in enumerate(memory.shapes)]
    boxes = torch.cat([centers, torch.cat(sizes).expand_as(centers)], dim=2)
    usable = ((boxes > BORDER) & (boxes < 1 - BORDER)).all(2)
    return boxes, usable if memory.padding is None else usable & ~memory.padding.cells


def proposal_logits(memory: Memory) -> tuple[Tensor, Tensor]:
    """Logits of `proposals`, infinite where they are not to be used, [1 or B, S, 4], and whether they are."""
    boxes, usable = proposals(memory)
    return torch.logit(boxes).masked_fill(~usable[..., None], torch.inf), usable


def image_sizes_of(features: Features) -> Tensor:
    """(width, height) of each image without padding, in pixels: [B, 2], at least float32."""
    first = features.maps[0]
    dtype = torch.promote_types(first.dtype, torch.float32)
    if features.unpadded_sizes is None:  # nothing that would fix the batch where a model is exported
        height, width = features.size
        return torch.stack([torch.full((), n, device=first.device, dtype=dtype) for n in (width, height)]).expand(
            first.shape[0], -1
        )
    sizes = torch.tensor([(width, height) for height, width in features.unpadded_sizes], dtype=dtype)
    return sizes.to(first.device, non_blocking=True)


def box_mlp(dim: int, size: float = 0.0) -> MLP:
    """What moves a reference, at first by nothing; `size` is the logit of the boxes' sides where that is a point."""
    mlp = MLP(dim, dim, 4, num_layers=3)
    last: Any = mlp.layers[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias[:2])
    nn.init.constant_(last.bias[2:], size)
    return mlp


def start_at_prior(classifier: nn.Linear) -> nn.Linear:
    """A classifier whose sigmoids start at 0.01."""
    nn.init.constant_(classifier.bias, PRIOR_LOGIT)
    return classifier
