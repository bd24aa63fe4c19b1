"""What one step of training and of validation is."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from vision_stack.model import VisionModel
from vision_stack.postprocess import encode_instances
from vision_stack.structures import Batch, EncodedInstances, ImageInfo
from vision_stack.training.optim import OptimConfig, build_optimizer, lr_factor
from vision_stack.training.results import Evaluator, Results


class NonFiniteLoss(ValueError):
    """A loss became NaN or infinite; one line with the batch's files and the likely cause."""


class SegmentationModule(pl.LightningModule):
    """Trains and validates a `VisionModel`.

    Args:
        model: the model.
        optim: optimizer and schedule.
        evaluator: makes mask and box AP from the detections of the whole validation set.
        seed: of everything random within a step.
        run_config: plain dicts that checkpoints carry along, so that evaluation can rebuild the data.
        top_k: at most so many detections an image in validation.
    """

    def __init__(
        self,
        model: VisionModel,
        optim: OptimConfig,
        evaluator: Evaluator,
        *,
        seed: int = 0,
        run_config: dict[str, Any] | None = None,
        top_k: int = 100,
    ) -> None:
        super().__init__()
        self.model = model
        self.optim = optim
        self.evaluator = evaluator
        self.seed = seed
        self.run_config = run_config or {}
        self.top_k = top_k
        self.losses: dict[str, Tensor] = {}  # of the last step, for display
        self.results: Results | None = None  # of the last validation, on rank 0
        self._found: list[tuple[ImageInfo, EncodedInstances]] = []
        self._unchecked: deque[tuple[Tensor, Sequence[ImageInfo]]] = deque()

    # Training

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout, sampled points: the same for the same step, whatever came before it in this process.
        torch.manual_seed(step_seed(self.seed, self.current_epoch, batch_idx, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Total loss of a batch, a scalar."""
        outputs = self.model(self.model.normalize(batch.images, batch.padding_mask))
        losses = self.model.head.compute_loss(outputs, batch.targets)
        total = torch.stack(list(losses.values())).sum()
        self.losses = {"loss": total.detach(), **{name: value.detach() for name, value in losses.items()}}
        self._watch(total.detach(), batch.infos)
        self.log_dict({f"train/{name}": value for name, value in self.losses.items()}, batch_size=len(batch.infos))
        return total

    def _watch(self, loss: Tensor, infos: Sequence[ImageInfo]) -> None:
        """Look at a loss without waiting for it: on an accelerator when the next step has been queued."""
        self._unchecked.append((loss.to("cpu", non_blocking=True) if loss.is_cuda else loss, infos))
        if not loss.is_cuda:
            self.check_losses()
        elif len(self._unchecked) > 1:
            self._check(*self._unchecked.popleft())

    def check_losses(self) -> None:
        """Raises NonFiniteLoss if a loss not looked at yet is NaN or infinite."""
        while self._unchecked:
            self._check(*self._unchecked.popleft())

    def _check(self, loss: Tensor, infos: Sequence[ImageInfo]) -> None:
        value = loss.item()
        if not math.isfinite(value):
            files = ", ".join(info.file_name for info in infos)
            raise NonFiniteLoss(
                f"the loss became {value} in step {self.global_step} (epoch {self.current_epoch}), with {files}; "
                + likely_cause(self.trainer.precision, self.optim)
            )

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.model, self.optim)
        steps = self.trainer.estimated_stepping_batches if self.optim.needs_total_steps else math.inf
        factor = lr_factor(self.optim, int(steps) if math.isfinite(steps) and steps > 0 else None)
        for group in optimizer.param_groups:  # a resumed run's scheduler starts from these
            group["initial_lr"] = group["lr"]
        # Lightning restores no counters here: `LambdaLR` counts from the step that the run stands at.
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor, last_epoch=self.trainer.global_step - 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip the norm of the whole model's gradient (both recipes' "full model" clipping)."""
        if self.optim.clip_norm:
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.clip_norm)
            self.log("train/grad_norm", norm)
        self.log("train/lr", optimizer.param_groups[-1]["lr"])

    # Validation

    def on_validation_epoch_start(self) -> None:
        self._found = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        outputs = self.model(self.model.normalize(batch.images, batch.padding_mask))
        self._found.extend(zip(batch.infos, encode_instances(outputs, batch.infos, top_k=self.top_k), strict=True))

    def on_validation_epoch_end(self) -> None:
        found = gather_on_rank_zero(self._found)
        self._found = []
        if self.trainer.sanity_checking:
            return
        self.results = self.evaluator.evaluate(found) if self.trainer.is_global_zero else None
        scalars = self.trainer.strategy.broadcast(self.results.scalars() if self.results else {})
        self.log_dict({f"val/{name}": value for name, value in scalars.items()}, rank_zero_only=False)


def step_seed(seed: int, epoch: int, batch_idx: int, rank: int) -> int:
    """A different number for each step of each rank, the same in every run of a seed."""
    value = 0
    for part in (seed, epoch, batch_idx, rank):
        value = (value * 0x9E3779B97F4A7C15 + part + 0x7F4A7C15) % 2**64
        value ^= value >> 29
    return value % 2**63


def likely_cause(precision: str, optim: OptimConfig) -> str:
    """What to try first against a NaN loss."""
    if precision.startswith("16"):
        return "half precision overflows at 65504: try trainer.precision=bf16-mixed, or 32-true"
    hints = [f"try a smaller optim.lr (now {optim.lr:g}) or more optim.warmup_steps (now {optim.warmup_steps})"]
    if not optim.clip_norm:
        hints.append("optim.clip_norm=0.1")
    if precision.startswith("bf16"):
        hints.append("trainer.precision=32-true")
    return ", ".join(hints) + ", and look at the labels of these files"


def gather_on_rank_zero(items: list[Any]) -> list[Any]:
    """The items of all ranks on rank 0; a rank of its own keeps its list."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return items
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    gathered: list[Any] | None = [None] * world_size if rank == 0 else None
    torch.distributed.gather_object(items, gathered)
    return [item for part in gathered for item in part] if gathered else []
