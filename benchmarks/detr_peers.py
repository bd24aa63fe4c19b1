"""RF-DETR-Seg, D-FINE and EoMT as transformers has them, with random weights, and as vision_stack loads them.

The architectures are those of the published small models, at any size: no weights are downloaded. Both sides take the
whole square as the image.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from maskformer_peers import adamw, take_step
from torch import Tensor, nn
from torchvision.ops import box_convert
from transformers import (
    DFineConfig,
    DFineForObjectDetection,
    EomtConfig,
    EomtForUniversalSegmentation,
    HGNetV2Config,
    RfDetrConfig,
    RfDetrForInstanceSegmentation,
)

from vision_stack.model import VisionModel
from vision_stack.structures import Batch

NUM_CLASSES = 80


class Family(ABC):
    """One architecture of transformers."""

    multiple: ClassVar[int]  # of pixels that an image's side must be
    title: ClassVar[str]

    @abstractmethod
    def build(self, size: int, num_classes: int) -> nn.Module:
        """The model for images of `size` x `size` pixels."""

    def spread(self, model: Any) -> None:
        """Make random weights such that queries differ, as after training."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 and not name.endswith(("decoder.up", "decoder.reg_scale")):
                    parameter.add_(0.5 * parameter[0].numel() ** -0.5 * torch.randn_like(parameter))

    def labels(self, batch: Batch) -> dict[str, Any]:
        """Objects of a batch as arguments of `forward`."""
        height, width = batch.images.shape[-2:]
        scale = torch.tensor([width, height, width, height])
        return {
            "labels": [
                {
                    "class_labels": target["labels"].as_subclass(Tensor),
                    "boxes": box_convert(target["boxes"].as_subclass(Tensor) / scale, "xyxy", "cxcywh"),
                    "masks": target["masks"].as_subclass(Tensor),
                }
                for target in batch.targets
            ]
        }

    def keep_loss_eager(self, model: Any) -> None:
        """Leave the loss out of what is compiled: it solves assignment problems on the host."""
        model.loss_function = torch.compiler.disable(model.loss_function)

    @abstractmethod
    def predicted(self, outputs: Any) -> tuple[Tensor, Tensor]:
        """What transformers predicts: class logits, and masks or boxes."""

    @abstractmethod
    def predicted_by_ours(self, outputs: Any) -> tuple[Tensor, Tensor]:
        """The same of vision_stack's outputs."""

    def finish_annealing(self, ours: VisionModel, theirs: Any) -> None:  # noqa: B027  most have none
        """Take both models to the end of their training."""


class RFDETRSeg(Family):
    """RF-DETR-Seg-S."""

    multiple, title = 96, "RF-DETR-Seg-S"  # two windows of patches of 12 pixels; batches are padded to 32

    def build(self, size: int, num_classes: int) -> nn.Module:
        backbone = {
            "model_type": "rf_detr_dinov2", "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6,
            "image_size": size, "patch_size": 12, "num_windows": 2,
            "out_features": ["stage3", "stage6", "stage9", "stage12"],
        }  # fmt: skip
        config = RfDetrConfig(
            backbone_config=backbone, decoder_layers=4, decoder_n_points=2, num_queries=100, dropout=0.0,
            num_labels=num_classes,
        )  # fmt: skip
        return RfDetrForInstanceSegmentation(config)

    def predicted(self, outputs: Any) -> tuple[Tensor, Tensor]:
        return outputs.logits, outputs.pred_masks

    def predicted_by_ours(self, outputs: Any) -> tuple[Tensor, Tensor]:
        masks = torch.einsum("bqc,bchw->bqhw", outputs.masks.embed[-1], outputs.masks.features[-1])
        return outputs.pred_logits, masks


class DFine(Family):
    """D-FINE-S."""

    multiple, title = 32, "D-FINE-S"

    def build(self, size: int, num_classes: int) -> nn.Module:
        backbone = HGNetV2Config(
            stem_channels=[3, 16, 16], stage_in_channels=[16, 64, 256, 512], stage_mid_channels=[16, 32, 64, 128],
            stage_out_channels=[64, 256, 512, 1024], stage_num_blocks=[1, 1, 2, 1], stage_numb_of_layers=[3] * 4,
            hidden_sizes=[64, 256, 512, 1024], depths=[1, 1, 2, 1], embedding_size=16,
            use_learnable_affine_block=True, out_indices=[2, 3, 4],
        )  # fmt: skip
        config = DFineConfig(
            backbone_config=backbone, encoder_in_channels=[256, 512, 1024], decoder_layers=3,
            decoder_n_points=[3, 6, 3], depth_mult=0.34, hidden_expansion=0.5, num_labels=num_classes,
            tie_word_embeddings=False,  # its layers would share their predictors
        )  # fmt: skip
        model = DFineForObjectDetection(config)
        model.class_embed, model.bbox_embed = model.model.decoder.class_embed, model.model.decoder.bbox_embed
        return model

    def predicted(self, outputs: Any) -> tuple[Tensor, Tensor]:
        return outputs.logits, outputs.pred_boxes

    def predicted_by_ours(self, outputs: Any) -> tuple[Tensor, Tensor]:
        return outputs.pred_logits, outputs.pred_boxes


class EoMT(Family):
    """EoMT-S, with DINOv2."""

    multiple, title = 16, "EoMT-S"

    def build(self, size: int, num_classes: int) -> nn.Module:
        config = EomtConfig(
            hidden_size=384, num_hidden_layers=12, num_attention_heads=6, num_blocks=3, image_size=size,
            num_labels=num_classes,
        )  # fmt: skip
        return EomtForUniversalSegmentation(config)

    def labels(self, batch: Batch) -> dict[str, Any]:
        return {
            "mask_labels": [target["masks"].as_subclass(Tensor).float() for target in batch.targets],
            "class_labels": [target["labels"].as_subclass(Tensor) for target in batch.targets],
        }

    def keep_loss_eager(self, model: Any) -> None:
        model.get_loss_dict = torch.compiler.disable(model.get_loss_dict)

    def predicted(self, outputs: Any) -> tuple[Tensor, Tensor]:
        return outputs.class_queries_logits, outputs.masks_queries_logits

    def predicted_by_ours(self, outputs: Any) -> tuple[Tensor, Tensor]:
        return outputs.pred_logits, outputs.last.pred_masks

    def finish_annealing(self, ours: VisionModel, theirs: Any) -> None:
        theirs.attn_mask_probs.zero_()
        ours.head.set_progress(1, 1)


FAMILIES: dict[str, Family] = {"rf_detr_seg": RFDETRSeg(), "d_fine": DFine(), "eomt": EoMT()}


class Theirs:
    """transformers' model."""

    def __init__(self, family: Family, size: int, num_classes: int = NUM_CLASSES) -> None:
        torch.manual_seed(0)
        self.family = family
        self.model: Any = family.build(size, num_classes).eval()
        family.spread(self.model)
        self.optimizer = adamw(self.model)

    def compile(self) -> None:
        self.family.keep_loss_eager(self.model)
        self.model.compile()

    def loss(self, pixels: Tensor, batch: Batch) -> Tensor:
        loss: Tensor = self.model(pixels, **self.family.labels(batch)).loss
        return loss

    def train_step(self, pixels: Tensor, batch: Batch) -> float:
        return take_step(self.loss(pixels, batch), self.optimizer)

    def outputs(self, pixels: Tensor) -> Any:
        return self.model(pixels)

    def predict(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits, and mask logits or boxes."""
        return self.family.predicted(self.outputs(pixels))


class Ours:
    """vision_stack's model, loaded from the directory that transformers writes."""

    def __init__(self, theirs: Theirs) -> None:
        self.family = theirs.family
        with tempfile.TemporaryDirectory() as directory:
            theirs.model.save_pretrained(directory)
            self.model = VisionModel.from_pretrained(directory)
        self.optimizer = adamw(self.model)

    def compile(self) -> None:
        self.model.compile()

    def loss(self, pixels: Tensor, batch: Batch) -> Tensor:
        outputs = self.model(pixels, targets=batch.targets)
        return torch.stack(list(self.model.head.compute_loss(outputs, batch.targets).values())).sum()

    def train_step(self, pixels: Tensor, batch: Batch) -> float:
        return take_step(self.loss(pixels, batch), self.optimizer)

    def outputs(self, pixels: Tensor) -> Any:
        return self.model(pixels)

    def predict(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits, and mask logits or boxes."""
        return self.family.predicted_by_ours(self.outputs(pixels))


Sides = dict[str, Ours | Theirs]


def new_sides(family: Family, size: int, *, compiled: bool, annealed: bool) -> Sides:
    """Both models, with the same weights, in eval mode."""
    theirs = Theirs(family, size)
    ours = Ours(theirs)
    if annealed:
        family.finish_annealing(ours.model, theirs.model)
    sides: Sides = {"vision_stack": ours, "transformers": theirs}
    if compiled:
        torch.compiler.reset()  # sizes seen before would make the next ones dynamic, of whichever side is hurt by it
        for side in sides.values():
            side.compile()
    return sides
