"""What training in several processes needs, whichever of Lightning's strategies was chosen."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.layer_sync import LayerSync
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vision_stack.training.finetune import FinetuneConfig


class SyncBatchNorm(LayerSync):
    """Batch norms with the statistics of all processes. PyTorch's converter, Lightning's choice, drops the activation
    that is part of timm's `BatchNormAct2d` (EfficientNet, RegNet, DenseNet, ...); timm's keeps it."""

    def apply(self, model: nn.Module) -> nn.Module:
        return convert_sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        return model  # in a single process they are as any other


def prepare_strategy(trainer: pl.Trainer, model: nn.Module, finetune: FinetuneConfig) -> list[str]:
    """Set up a trainer that has not been used yet for training `model` in several processes.

    Returns:
        warnings.

    Raises:
        ValueError: checkpoints or fine-tuning would not work with the strategy; one line.
    """
    strategy: Any = trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
        name = type(strategy).__name__
        raise ValueError(f"trainer.strategy: {name} splits the model, which checkpoints here cannot hold; use ddp")
    if not isinstance(strategy, DDPStrategy):
        return []
    # Maps that the head does not read, and stages that are frozen, get no gradient.
    find_unused = strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
    if finetune.unfreeze_epochs and not find_unused:
        raise ValueError(
            "trainer.strategy: stages that are frozen until finetune.unfreeze_epochs need "
            "ddp_find_unused_parameters_true, which ddp is here"
        )
    if strategy._layer_sync is None:
        return []
    if strategy.root_device.type != "cpu":
        strategy._layer_sync = SyncBatchNorm()
        return []
    strategy._layer_sync = None  # PyTorch has none for CPUs
    if not any(isinstance(module, _BatchNorm) and module.training for module in model.modules()):
        return []
    return ["batch norm is not synchronized between processes on CPUs: each uses the statistics of its own images"]
