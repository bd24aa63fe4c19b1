"""One step of training on the largest batch, before the first: what memory it takes, and how long steps take.

Whatever it changes is put back, so that a run is the same to the bit with and without it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from vision_stack.data.augment.targets import wrap_target
from vision_stack.data.augment.transforms import TransformConfig
from vision_stack.data.datamodule import DataModule
from vision_stack.data.sampler import sample_rng
from vision_stack.metrics import Evaluator
from vision_stack.model import VisionModel
from vision_stack.structures import Batch, ImageInfo
from vision_stack.training.facts import object_counts
from vision_stack.training.finetune import FinetuneConfig
from vision_stack.training.lightning_module import training_losses
from vision_stack.training.memory import available_memory, peak_memory, reset_peak_memory
from vision_stack.training.optim import OptimConfig, build_optimizer
from vision_stack.training.recipe import round_up
from vision_stack.training.tasks import predictions_for

GIB = 2**30
LOOKED_AT = 2000  # images, at most, whose resized sizes are looked at
MAX_BATCH = 64  # that is looked for
KEPT_FREE = 0.1  # of the memory, for what differs from step to step
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
PRECISIONS = {"32-true", *AUTOCAST}  # those of which a step can be taken without Lightning


class Shape(NamedTuple):
    """Of a batch: padded height and width, and the objects of each image."""

    height: int
    width: int
    objects: tuple[int, ...]


class Measured(NamedTuple):
    """Of a run's steps.

    Attributes:
        memory: bytes at the peak: of tensors on a GPU, of the whole process on a CPU.
        available: bytes that there are in all.
        seconds: of a step on a typical batch.
        seconds_of_validation: of an image, prediction included.
    """

    memory: int
    available: int | None
    seconds: float
    seconds_of_validation: float


class OutOfMemory(ValueError):
    """A step does not fit into memory; one line that says what to lower."""


class Probe:
    """Takes steps of training that leave no trace.

    Args:
        model: on any device; it stays on `device`.
        precision: Lightning's name; see `PRECISIONS`.
    """

    def __init__(
        self,
        model: VisionModel,
        data: DataModule,
        optim: OptimConfig,
        finetune: FinetuneConfig,
        device: torch.device,
        precision: str,
    ) -> None:
        self.model, self.data, self.optim, self.finetune = model.to(device), data, optim, finetune
        self.device, self.precision = device, precision
        self._sizes = self._resized_sizes()
        self._counts = composed_counts(object_counts(data), data)

    def largest(self, batch_size: int) -> Shape:
        """The batch that takes most memory, of those that may come: all edges and all crowds at once."""
        config = self.data.config.train_transform
        sizes = self._sizes
        if config.mode == "resize":
            largest = replace(config, short_edges=(max(config.short_edges),))
            sizes = [_resized(largest, r.height, r.width, 0) for r in self.data.train_records]
        height, width = (max(size[i] for size in sizes) for i in (0, 1))
        if config.mode == "resize" and config.iou_crop:  # crops of any aspect up to 2
            edge = min(config.long_edge, 2 * max(config.short_edges), config.crop_size or config.long_edge)
            height, width = max(height, edge), max(width, edge)
        counts = tuple((self._counts * batch_size)[:batch_size])
        return self._padded(height, width, counts)

    def typical(self, batch_size: int) -> Shape:
        """A batch of average area and number of objects."""
        rng = np.random.default_rng(0)
        drawn = [[self._sizes[i] for i in rng.integers(len(self._sizes), size=batch_size)] for _ in range(50)]
        heights, widths = ([max(size[i] for size in sizes) for sizes in drawn] for i in (0, 1))
        height, width = round(float(np.mean(heights))), round(float(np.mean(widths)))
        return self._padded(height, width, (round(float(np.mean(self._counts))),) * batch_size)

    def step(self, shape: Shape) -> float:
        """One optimizer step on a made-up batch; seconds.

        Raises:
            OutOfMemory: it does not fit.
        """
        model = self.model
        batch = make_batch(shape, len(model.categories), self.device, masks=self.data.masks)
        self.finetune.unfreeze_for_setup(model.backbone)  # what is trained later takes memory later
        optimizer = build_optimizer(model, self.optim)
        start = time.perf_counter()
        try:
            with self._autocast():
                total = torch.stack(list(training_losses(model, batch).values())).sum()
            total.backward()
            optimizer.step()
            self._wait()
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise OutOfMemory(self._advice(shape)) from None
        finally:
            model.zero_grad(set_to_none=True)
            self.finetune.apply(model.backbone, epoch=0)
        return time.perf_counter() - start

    def validation(self, evaluator: Evaluator, size: tuple[int, int]) -> float:
        """Seconds of one image's prediction."""
        shape = self._padded(*size, (0,))
        batch = make_batch(shape, len(self.model.categories), self.device)
        self.model.eval()
        start = time.perf_counter()
        with torch.inference_mode(), self._autocast():
            images = self.model.normalize(batch.images, batch.padding_mask)
            outputs = self.model(images, image_sizes=batch.image_sizes)
        for _ in predictions_for(evaluator, self.model, outputs, batch.infos):
            pass
        self._wait()
        return time.perf_counter() - start

    def measure(self, batch_size: int, evaluator: Evaluator) -> Measured:
        """Memory of the largest batch, seconds of a typical one, and of validation.

        Raises:
            OutOfMemory: the largest batch does not fit.
        """
        config = self.data.config.eval_transform
        typical = [_resized(config, r.height, r.width, 0) for r in self.data.val_records[:LOOKED_AT]]
        with unchanged(self.model), warnings.catch_warnings(action="ignore"):
            if self.device.type == "cpu":
                self._check_host_memory(batch_size)
            memory = self.peak(lambda: self.step(self.largest(batch_size)))
            seconds = self.step(self.typical(batch_size))
            middle = sorted(typical, key=lambda size: size[0] * size[1])[len(typical) // 2]
            validation = self.validation(evaluator, middle)
        return Measured(memory, self.available(), seconds, validation)

    def _check_host_memory(self, batch_size: int) -> None:
        """Raise OutOfMemory for a batch that, by smaller ones, will not fit: the system would kill the process."""
        available = self.available()
        resident = self.peak(lambda: None)
        one = self.peak(lambda: self.step(self.largest(1)))
        if available is None or batch_size == 1 or one + (batch_size - 1) * (one - resident) < available:
            return
        two = self.peak(lambda: self.step(self.largest(2)))
        if one + (batch_size - 1) * (two - one) > available:
            raise OutOfMemory(self._advice(self.largest(batch_size)))

    def largest_fitting(self, limit: int) -> tuple[int, str]:
        """The largest batch of which a step fits, and how that was found.

        On a GPU by trying. On a CPU by what one and two images take: a process that takes too much is killed.

        Raises:
            OutOfMemory: not even one image fits.
        """
        limit = min(limit, MAX_BATCH)
        with unchanged(self.model), warnings.catch_warnings(action="ignore"):
            if self.device.type == "cpu":
                one = self.peak(lambda: self.step(self.largest(1)))
                two = max(self.peak(lambda: self.step(self.largest(2))), one + 2**20) if limit > 1 else one
                available = self.available() or one
                if one > available:
                    raise OutOfMemory(self._advice(self.largest(1)))
                more = int(((1 - KEPT_FREE) * available - one) // max(two - one, 1))
                return max(1, min(limit, 1 + more)), f"{available / GIB:.1f} GB, {(two - one) / GIB:.2f} an image"
            return search_largest(self._fits, limit), f"{(self.available() or 0) / GIB:.0f} GB, by trying"

    def _fits(self, batch_size: int) -> bool:
        try:
            memory = self.peak(lambda: self.step(self.largest(batch_size)))
        except OutOfMemory:
            if batch_size == 1:
                raise
            return False
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        available = self.available()
        return batch_size == 1 or available is None or memory <= (1 - KEPT_FREE) * available

    def peak(self, action: Callable[[], Any]) -> int:
        """Bytes at the peak while something runs."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            action()
            return torch.cuda.max_memory_allocated(self.device)
        reset_peak_memory()
        action()
        return peak_memory()

    def available(self) -> int | None:
        """Bytes that this process could have in all; None where nobody says."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_properties(self.device).total_memory
        return available_memory() if self.device.type == "cpu" else None

    def _autocast(self) -> Any:
        dtype = AUTOCAST.get(self.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _resized_sizes(self) -> list[tuple[int, int]]:
        config, records = self.data.config.train_transform, self.data.train_records
        looked_at = records[:: -(-len(records) // LOOKED_AT)]
        draws = 1 if config.mode == "large_scale_jitter" else 3
        return [
            _resized(config, r.height, r.width, draw * len(looked_at) + i)
            for draw in range(draws)
            for i, r in enumerate(looked_at)
        ]

    def _padded(self, height: int, width: int, objects: tuple[int, ...]) -> Shape:
        config = self.data.config
        edge = config.train_transform.crop_size or 0
        height, width = (round_up(max(length, edge), config.size_divisor) for length in (height, width))
        return Shape(height, width, objects)

    def _advice(self, shape: Shape) -> str:
        images = len(shape.objects)
        available = self.available()
        of = f" of {available / GIB:.1f} GB" if available else ""
        lower = [f"data.batch_size (now {images})"] if images > 1 else []
        lower.append(f"data.train_transform (images of {shape.height} x {shape.width} pixels)")
        also = [] if self.finetune.gradient_checkpointing else ["finetune.gradient_checkpointing=true"]
        if self.device.type == "cuda" and self.precision == "32-true":
            also.append("trainer.precision=bf16-mixed")
        what = (
            f"{images} image{'s' * (images != 1)} of {shape.height} x {shape.width} with {sum(shape.objects)} objects"
        )
        advice = f"lower {' or '.join(lower)}" + (f", or give {' or '.join(also)}" if also else "")
        return f"out of memory{of} on {self.device}: a step of {what} does not fit; {advice}"


def composed_counts(counts: Sequence[int], data: DataModule) -> list[int]:
    """Objects in the training images that may come, the most first: those of as many images as may be in one."""
    together, config = data.config.train_transform.most_images, data.config.sampling
    most = config.max_objects or sum(counts)
    if not data.train_split.lists_objects:  # classes, of which an image has one mask each
        most = len(data.categories)
    ordered = sorted(counts, reverse=True)
    return [min(most, sum(ordered[i : i + together])) for i in range(0, len(ordered), together)]


def search_largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to `limit` that fits, where smaller numbers fit if larger ones do; at least 1."""
    good, bad = 0, limit + 1
    size = 1
    while size < bad and fits(size):
        good, size = size, min(2 * size, limit) if size < limit else bad
    bad = min(bad, size)
    while bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return max(good, 1)


def make_batch(shape: Shape, num_classes: int, device: torch.device, *, masks: bool = True) -> Batch:
    """Grey images with rectangles for objects, with masks or only boxes."""
    height, width, counts = shape
    images = torch.full((len(counts), 3, height, width), 128, dtype=torch.uint8, device=device)
    targets = []
    for count in counts:
        pixels = torch.zeros(count, height, width, dtype=torch.bool, device=device) if masks else None
        boxes = torch.empty(count, 4, device=device)
        for i in range(count):
            top, left = (i * 37) % (height // 2), (i * 53) % (width // 2)
            if pixels is not None:
                pixels[i, top : top + height // 3, left : left + width // 3] = True
            boxes[i] = torch.tensor([left, top, left + width // 3, top + height // 3])
        labels = torch.arange(count, device=device) % num_classes
        targets.append(wrap_target(labels, boxes, (height, width), pixels))
    info = ImageInfo(0, "", (height, width), (height, width))
    padding = torch.zeros(len(counts), height, width, dtype=torch.bool, device=device)
    return Batch(images, padding, tuple(targets), (info,) * len(counts))


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Parameters, statistics, modes and random states are afterwards what they were before."""
    saved = {name: tensor.detach().cpu().clone() for name, tensor in _tensors(model)}
    modes = {module: module.training for module in model.modules()}
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with isolate_rng():
            yield
    finally:
        with torch.no_grad():
            for name, tensor in _tensors(model):
                tensor.copy_(saved[name])
        for module, training in modes.items():
            module.training = training
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _resized(config: TransformConfig, height: int, width: int, draw: int) -> tuple[int, int]:
    return config.geometry(height, width, sample_rng(0, 0, draw)).size


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
