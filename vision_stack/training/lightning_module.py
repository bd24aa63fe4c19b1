"""What one step of training and of validation is."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from vision_stack.metrics import Evaluator
from vision_stack.model import VisionModel
from vision_stack.structures import Batch, ImageInfo
from vision_stack.training.finetune import FinetuneConfig
from vision_stack.training.optim import OptimConfig, build_optimizer, lr_factor
from vision_stack.training.results import Results
from vision_stack.training.tasks import predictions_for


class NonFiniteLoss(ValueError):
    """A loss became NaN or infinite; one line with the batch's files and the likely cause."""


class LateLoss:
    """A loss on its way from the accelerator to the host."""

    def __init__(self, loss: Tensor, infos: Sequence[ImageInfo]) -> None:
        self.infos = infos
        self._event = torch.cuda.Event() if loss.is_cuda else None
        self._value = torch.empty((), dtype=loss.dtype, pin_memory=True) if loss.is_cuda else loss
        if self._event is not None:
            self._value.copy_(loss, non_blocking=True)
            self._event.record()

    def item(self) -> float:
        """Its value, once what was queued before it is done."""
        if self._event is not None:
            self._event.synchronize()
        return self._value.item()


class SegmentationModule(pl.LightningModule):
    """Trains and validates a `VisionModel`.

    Args:
        model: the model.
        optim: optimizer and schedule.
        finetune: which stages of the backbone are frozen in which epoch.
        evaluator: of the validation set.
        seed: of everything random within a step.
        run_config: plain dicts that checkpoints carry along, so that evaluation can rebuild the data.
    """

    def __init__(
        self,
        model: VisionModel,
        optim: OptimConfig,
        evaluator: Evaluator,
        *,
        finetune: FinetuneConfig = FinetuneConfig(),  # noqa: B008  frozen
        seed: int = 0,
        run_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.optim = optim
        self.finetune = finetune
        self.evaluator = evaluator
        self.seed = seed
        self.run_config = run_config or {}
        self.losses: dict[str, Tensor] = {}  # of the last step, by part and decoder layer
        self._total_steps: int | None = None  # of the run, where it is known
        self.results: Results | None = None  # of the last validation, on rank 0
        self._unchecked: deque[LateLoss] = deque()

    # Training

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.finetune.unfreeze_for_setup(self.model.backbone)

    def on_train_start(self) -> None:
        steps = self.trainer.estimated_stepping_batches
        if 0 < steps < math.inf:  # else a short run would have no curves
            every = max(1, int(steps) // 50)
            self.trainer.log_every_n_steps = min(self.trainer.log_every_n_steps, every)  # type: ignore[attr-defined]
            self._total_steps = int(steps)
        self.on_train_epoch_start()  # which Lightning leaves out where a resumed run begins in mid-epoch

    def on_train_epoch_start(self) -> None:
        self.finetune.apply(self.model.backbone, self.current_epoch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout, sampled points: the same for the same step, whatever came before it in this process.
        torch.manual_seed(step_seed(self.seed, self.current_epoch, batch_idx, self.global_rank))
        self.model.head.set_progress(self.global_step, self._total_steps)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Total loss of a batch, a scalar."""
        losses = training_losses(self.model, batch)
        total = torch.stack(list(losses.values())).sum()
        self.losses = {name: value.detach() for name, value in losses.items()}
        self._watch(total.detach(), batch.infos)
        if self._is_logged():
            shown = {"loss": total.detach(), **summed_over_layers(self.losses)}
            self.log_dict({f"train/{name}": value for name, value in shown.items()}, batch_size=1)
        return total

    def _watch(self, loss: Tensor, infos: Sequence[ImageInfo]) -> None:
        """Look at the loss: at once on a CPU, elsewhere one step late, so that the next step is queued meanwhile."""
        self._unchecked.append(LateLoss(loss, infos))
        self.check_losses(wait_for=0 if loss.device.type == "cpu" else 1)

    def check_losses(self, wait_for: int = 0) -> None:
        """Raises NonFiniteLoss if a loss is NaN or infinite; the last `wait_for` are left for later."""
        while len(self._unchecked) > wait_for:
            late = self._unchecked.popleft()
            value = late.item()
            if not math.isfinite(value):
                files = ", ".join(info.file_name for info in late.infos)
                raise NonFiniteLoss(
                    f"the loss became {value} near step {self.global_step} (epoch {self.current_epoch}), with {files}; "
                    + likely_cause(str(self.trainer.precision), self.optim)
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
        values = {"train/lr": optimizer.param_groups[-1]["lr"]}
        if self.optim.clip_norm:
            values["train/grad_norm"] = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.clip_norm)
        if self._is_logged():
            self.log_dict(values, batch_size=1)

    def _is_logged(self) -> bool:
        """Whether Lightning writes this step down. It takes a while for each value, also for those that it drops."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a helper of the trainer
        return bool(every) and (self.global_step + 1) % every == 0

    # Validation

    def on_validation_epoch_start(self) -> None:
        self.evaluator.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """What the model finds in a batch, kept by the evaluator."""
        images = self.model.normalize(batch.images, batch.padding_mask)
        outputs = self.model(images, image_sizes=batch.image_sizes)
        found = predictions_for(self.evaluator, self.model, outputs, batch.infos)
        for info, prediction in zip(batch.infos, found, strict=True):
            self.evaluator.update(info.image_id, prediction)

    def on_validation_epoch_end(self) -> None:
        self.results = None
        if self.trainer.sanity_checking:
            return
        self.evaluator.merge(gather_on_rank_zero(self.evaluator.state()))
        if self.trainer.is_global_zero:
            limit = self.trainer.limit_val_batches  # a float is a share of the images, an int a number of batches
            all_images = isinstance(limit, float) and limit == 1.0
            self.results = Results.of(self.evaluator, only_updated=not all_images)
        scalars = self.trainer.strategy.broadcast(self.results.scalars() if self.results else {})
        self.log_dict({f"val/{name}": value for name, value in scalars.items()})
        score = self.trainer.strategy.broadcast(self.results.score if self.results else 0.0)
        self.log("val/score", float(score), logger=False)  # for callbacks that watch it, whatever the task


def training_losses(model: VisionModel, batch: Batch) -> dict[str, Tensor]:
    """The weighted losses of a batch, whose sum is the total."""
    images = model.normalize(batch.images, batch.padding_mask)
    outputs = model(images, image_sizes=batch.image_sizes, targets=batch.targets)
    losses: dict[str, Tensor] = model.head.compute_loss(outputs, batch.targets)
    return losses


def summed_over_layers(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`loss_mask`, `loss_mask_0`, `loss_mask_1`, ... of a head's decoder layers as one `loss_mask`. These parts add up
    to the total."""
    layers: dict[str, list[Tensor]] = {}
    for name, value in losses.items():
        layers.setdefault(re.sub(r"_\d+$", "", name), []).append(value.float())
    return {name: torch.stack(values).sum() for name, values in layers.items()}


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


def gather_on_rank_zero(item: Any) -> list[Any]:
    """The items of all ranks on rank 0, nothing on the others; of a process of its own, its own."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [item]
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    gathered: list[Any] | None = [None] * world_size if rank == 0 else None
    torch.distributed.gather_object(item, gathered)
    return gathered or []
