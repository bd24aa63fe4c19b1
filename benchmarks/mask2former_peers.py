"""The two Mask2Formers that are compared: transformers' with random weights, and vision_stack's loaded from it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from maskformer_peers import adamw, take_step
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig, SwinConfig

from vision_stack.model import VisionModel
from vision_stack.outputs import MaskOutputs
from vision_stack.structures import Batch

sys.path.append(str(Path(__file__).parents[1] / "tests/parity"))
from mask2former_oracle import STAGES, perturb

BACKBONES = {
    "resnet50": lambda: ResNetConfig(out_features=STAGES),
    "swin_tiny": lambda: SwinConfig(
        embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, out_features=STAGES
    ),
}


class Theirs:
    """transformers' model, with weights that are random but spread as after training."""

    def __init__(self, backbone: str, num_classes: int, device: str = "cpu") -> None:
        torch.manual_seed(0)
        config = Mask2FormerConfig(backbone_config=BACKBONES[backbone](), num_labels=num_classes)
        self.model = Mask2FormerForUniversalSegmentation(config).eval()
        perturb(self.model)
        self.model.to(device)
        self.optimizer = adamw(self.model)

    def compile(self, backend: str = "inductor") -> None:
        """The network; its loss stays as it is, since it solves assignment problems on the host."""
        self.model.model.compile(backend=backend)

    def loss(self, pixels: Tensor, batch: Batch) -> Tensor:
        masks = [target["masks"].as_subclass(torch.Tensor).float() for target in batch.targets]
        labels = [target["labels"].as_subclass(torch.Tensor) for target in batch.targets]
        return self.model(pixels, masks, labels, (~batch.padding_mask).long()).loss

    def train_step(self, pixels: Tensor, batch: Batch) -> float:
        return take_step(self.loss(pixels, batch), self.optimizer)

    def predict(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Class and mask logits of the last layer."""
        outputs = self.model(pixels)
        return outputs.class_queries_logits, outputs.masks_queries_logits


class Ours:
    """vision_stack's model, loaded from the directory that transformers writes, on the same device."""

    def __init__(self, theirs: Theirs) -> None:
        with tempfile.TemporaryDirectory() as directory:
            theirs.model.save_pretrained(directory)
            self.model = VisionModel.from_pretrained(directory).to(theirs.model.device)
        self.optimizer = adamw(self.model)

    def compile(self, backend: str = "inductor") -> None:
        self.model.compile(backend=backend)

    def outputs(self, pixels: Tensor) -> MaskOutputs:
        return self.model(pixels)

    def loss(self, pixels: Tensor, batch: Batch) -> Tensor:
        outputs = self.model(pixels, batch.padding_mask)
        return torch.stack(list(self.model.head.compute_loss(outputs, batch.targets).values())).sum()

    def train_step(self, pixels: Tensor, batch: Batch) -> float:
        return take_step(self.loss(pixels, batch), self.optimizer)

    def predict(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Class and mask logits of the last layer."""
        outputs = self.model(pixels)
        return outputs.pred_logits, outputs.pred_masks
