"""The two MaskFormers that are compared, each with its own way to take a training step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import MaskFormerConfig, MaskFormerForInstanceSegmentation, ResNetConfig

from vision_stack.backbones import ResNetConfig as OurResNetConfig
from vision_stack.heads import MaskFormerHeadConfig
from vision_stack.model import VisionModel, VisionModelConfig
from vision_stack.necks import PixelDecoderConfig
from vision_stack.outputs import MaskOutputs
from vision_stack.published import PublishedModel, convert, from_transformers
from vision_stack.structures import Batch, Category

sys.path.append(str(Path(__file__).parents[1] / "tests/parity"))
from maskformer_oracle import perturb


def _transformers_model(num_classes: int) -> MaskFormerForInstanceSegmentation:
    backbone = ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    config = MaskFormerConfig(backbone_config=backbone, num_labels=num_classes)
    config.decoder_config.dropout = 0.0
    return MaskFormerForInstanceSegmentation(config)


def new_state(num_classes: int) -> dict[str, Tensor]:
    """Weights in transformers' layout, random but such that rounding errors stay small and queries differ, as after
    training; else the two sides could match queries and objects differently, and their losses could not be compared.
    """
    torch.manual_seed(0)
    model = _transformers_model(num_classes).eval()
    perturb(model)
    return dict(model.state_dict())


class Ours:
    """vision_stack's model; an empty `state` leaves its own random weights."""

    def __init__(self, state: Mapping[str, Tensor], num_classes: int, all_layers: bool) -> None:
        config = VisionModelConfig(
            backbone=OurResNetConfig(out_strides=[4, 8, 16, 32]),
            neck=PixelDecoderConfig(),
            head=MaskFormerHeadConfig(dropout=0.0, deep_supervision=all_layers),
            categories=tuple(Category(id=i, name=str(i)) for i in range(num_classes)),
        )
        self.model = VisionModel(config).train()
        if state:
            to_ours = partial(from_transformers, "maskformer", state)
            published = PublishedModel("", {}, dict(state), to_ours)
            self.model.load_state_dict(convert(published, self.model.backbone, self.model.state_dict())[0], strict=True)
        self.optimizer = adamw(self.model)

    def outputs(self, batch: Batch) -> MaskOutputs:
        return self.model(self.model.normalize(batch.images, batch.padding_mask), batch.padding_mask)

    def loss(self, batch: Batch) -> Tensor:
        """Total loss."""
        return self._loss(self.outputs(batch), batch)

    def _loss(self, outputs: MaskOutputs, batch: Batch) -> Tensor:
        return torch.stack(list(self.model.head.compute_loss(outputs, batch.targets).values())).sum()

    def train_step(self, batch: Batch) -> float:
        return take_step(self.loss(batch), self.optimizer)

    def loss_step(self, batches: list[Batch]) -> Callable[[Batch], object]:
        """Only loss and matcher, forward and backward, on outputs of the first batch."""
        with torch.no_grad():
            outputs = self.outputs(batches[0])

        def step(batch: Batch) -> None:
            leaves = MaskOutputs(*(tensor.detach().requires_grad_() for tensor in outputs))
            self._loss(leaves, batch).backward()

        return step


class Theirs:
    """transformers' model; its losses of earlier layers come from hooks, as it raises if asked for them."""

    def __init__(
        self, state: Mapping[str, Tensor], num_classes: int, all_layers: bool, channels_last: bool = False
    ) -> None:
        self.model = _transformers_model(num_classes).train()
        if state:
            self.model.load_state_dict(state)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self.format)
        self.optimizer = adamw(self.model)
        self.hidden: list[Tensor] = []
        if all_layers:
            for layer in self.model.model.transformer_module.decoder.layers[:-1]:
                layer.register_forward_hook(lambda _module, _inputs, output: self.hidden.append(output))
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.mean, self.std = mean.view(3, 1, 1), std.view(3, 1, 1)

    def factors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Queries of the supervised layers [L, B, Q, C] and mask features [B, C, h, w]."""
        self.hidden.clear()
        pixels = ((batch.images - self.mean) / self.std).masked_fill(batch.padding_mask[:, None], 0.0)
        outputs = self.model.model(pixels.contiguous(memory_format=self.format), (~batch.padding_mask).long())
        norm = self.model.model.transformer_module.decoder.layernorm
        earlier = [norm(x) for x in self.hidden]
        return torch.stack([*earlier, outputs.transformer_decoder_last_hidden_state]), outputs[1]

    def loss(self, batch: Batch) -> Tensor:
        return self._loss(*self.factors(batch), batch)

    def _loss(self, hidden: Tensor, features: Tensor, batch: Batch) -> Tensor:
        masks = [target["masks"].as_subclass(torch.Tensor).float() for target in batch.targets]
        labels = [target["labels"].as_subclass(torch.Tensor) for target in batch.targets]
        classes, embed = self.model.class_predictor(hidden), self.model.mask_embedder(hidden)
        total = hidden.new_zeros(())
        for layer_classes, layer_embed in zip(classes, embed, strict=True):
            layer_masks = torch.einsum("bqc,bchw->bqhw", layer_embed, features)
            total = total + self.model.get_loss(
                self.model.get_loss_dict(layer_masks, layer_classes, masks, labels, None)
            )
        return total

    def train_step(self, batch: Batch) -> float:
        return take_step(self.loss(batch), self.optimizer)

    def loss_step(self, batches: list[Batch]) -> Callable[[Batch], object]:
        """Only loss and matcher, forward and backward, on outputs of the first batch (and the two small heads)."""
        with torch.no_grad():
            factors = self.factors(batches[0])

        def step(batch: Batch) -> None:
            self._loss(*(tensor.detach().requires_grad_() for tensor in factors), batch).backward()
            self.optimizer.zero_grad()

        return step


def adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)  # as transformers' Trainer has it


def take_step(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
