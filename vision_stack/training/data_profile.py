"""Whether a run's model waits for its data or the data for the model, and what the data's time goes to."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from numpy.typing import NDArray
from torch import Tensor

from vision_stack.config import from_dict
from vision_stack.data.augment.geometry import GeometricTransform
from vision_stack.data.augment.targets import Objects
from vision_stack.data.datamodule import DataModule
from vision_stack.data.dataset import SegmentationDataset, collate
from vision_stack.model import VisionModel
from vision_stack.training.allocator import keep_freed_memory
from vision_stack.training.auto import data_for, describe_settled, fitting, task_of_data, without_autos
from vision_stack.training.facts import find_device
from vision_stack.training.finetune import FinetuneConfig
from vision_stack.training.optim import OptimConfig
from vision_stack.training.options import TrainOptions, decode_options
from vision_stack.training.probe import PRECISIONS, Probe, unchanged
from vision_stack.training.quiet import quiet_lightning
from vision_stack.training.settling import decode_parts, model_config, settle_options
from vision_stack.training.start import read_start

T = TypeVar("T")
STEPS = 3  # of the model, after one that is not counted
LEAST_SECONDS = 3.0  # of the loader, after its first batches


class DataTimes(NamedTuple):
    """Seconds of one image in one process, on average."""

    decode: float  # reading the file included
    affine: float
    masks: float
    collate: float
    other: float  # plan, colours, target

    @property
    def total(self) -> float:
        return sum(self)


class Clock:
    """Adds up seconds by name. What is measured within something else counts only there."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._inner.append(0.0)
        began = time.perf_counter()
        yield
        took = time.perf_counter() - began
        self.seconds[name] = self.seconds.get(name, 0.0) + took - self._inner.pop()
        if self._inner:
            self._inner[-1] += took


class _TimedRecord:
    """A record whose objects are timed."""

    def __init__(self, record: Any, clock: Clock) -> None:
        self._record, self._clock = record, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._record, name)

    def objects(self, *arguments: Any, **options: Any) -> Objects:
        with self._clock("masks"):
            found: Objects = self._record.objects(*arguments, **options)
            return found


class _TimedDataset(SegmentationDataset):
    """A data set that is timed; takes the place of another."""

    def __init__(self, dataset: SegmentationDataset, clock: Clock) -> None:
        vars(self).update(vars(dataset))
        self.records: Any = [_TimedRecord(record, clock) for record in dataset.records]
        self.clock = clock

    def _moved(self, index: int, transform: GeometricTransform) -> Tensor:
        with self.clock("affine"):
            return super()._moved(index, transform)

    def _read(self, index: int, reduction: int = 1) -> NDArray[Any]:
        with self.clock("decode"):
            return super()._read(index, reduction)


def time_data(data: DataModule, images: int) -> DataTimes:
    """Times of so many training images, the first of an epoch, as the run reads them."""
    clock = Clock()
    loader = data.train_dataloader()
    dataset = _TimedDataset(loader.dataset, clock)  # type: ignore[arg-type]
    done = 0
    for keys in loader.batch_sampler:
        with clock("other"):
            samples = [dataset[key] for key in keys]
        with clock("collate"):
            collate(samples, data.config.size_divisor, dataset.transform.crop_size, dataset.mask_stride or 1)
        done += len(keys)
        if done >= images:
            break
    names = DataTimes._fields
    return DataTimes(*(clock.seconds.get(name, 0.0) / max(done, 1) for name in names))


def loader_rate(data: DataModule) -> float:
    """Images per second of the loader with its workers, once they run."""
    loader = data.train_dataloader()
    ahead = 2 * max(1, data.config.num_workers)  # what was prepared while nobody looked
    began, images = 0.0, 0
    for number, batch in enumerate(_repeated(loader)):
        if number == ahead:
            began = time.perf_counter()
        elif number > ahead:
            images += len(batch.infos)
            if time.perf_counter() - began > LEAST_SECONDS:
                break
    return images / (time.perf_counter() - began)


def _repeated(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def step_seconds(probe: Probe, batch_size: int) -> float:
    """Of one optimizer step on a typical batch."""
    shape = probe.typical(batch_size)
    with unchanged(probe.model):
        probe.step(shape)
        return statistics.median(probe.step(shape) for _ in range(STEPS))


def profile(config: Mapping[str, Any], images: int, overrides: Sequence[str]) -> list[str]:
    """Measure data and model of options; the lines to print.

    Args:
        config: the plain options of configs/train.yaml.
        images: how many are timed step by step.
        overrides: what was typed.

    Raises:
        ValueError: options or data that the user has to fix; one line.
    """
    quiet_lightning()
    keep_freed_memory()
    config, notes = task_of_data(fitting(config, overrides), overrides)
    early = without_autos(config)
    options = decode_options(early, TrainOptions)
    start = read_start(options.weights, early, overrides) if options.weights else None
    parts: Mapping[str, Any] = start.parts if start else decode_parts(early)
    data = data_for(parts["head"], early)
    config, settled = settle_options(config, data, start, None, overrides)
    data.config = from_dict(config["data"], kind="data")
    times = time_data(data, images)
    rate = loader_rate(data)
    device = find_device(config["trainer"]).device
    precision = str(config["trainer"]["precision"])
    model = VisionModel(model_config(config, data.config, data, start)).to(device)
    finetune = from_dict(config["finetune"], cls=FinetuneConfig, path="finetune")
    finetune.apply(model.backbone, epoch=0)
    optim = from_dict(config["optim"], cls=OptimConfig, path="optim")
    probe = Probe(model, data, optim, finetune, device, precision if precision in PRECISIONS else "32-true")
    seconds = step_seconds(probe, data.config.batch_size)
    lines = describe_settled({path: value for path, value in settled.items() if path.startswith("data.")})
    return [*lines, *notes, *describe(times, rate, seconds, data, str(device))]


def describe(times: DataTimes, rate: float, seconds: float, data: DataModule, device: str) -> list[str]:
    """The lines: times of data and model, and which of the two waits."""
    parts = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in zip(times._fields, times, strict=True))
    config = data.config
    wanted = config.batch_size / seconds
    workers = config.num_workers
    how = f"{workers} worker{'s' * (workers != 1)}" if workers else "no workers"
    rows = [
        f"{'data':<11} {1e3 * times.total:.1f} ms an image in one process: {parts}",
        f"{'loader':<11} {rate:.1f} images/s with {how}",
        f"{'model':<11} {1e3 * seconds:.1f} ms a step of {config.batch_size} on {device}, {wanted:.1f} images/s",
    ]
    if not workers:  # one after the other
        share = config.batch_size / rate / (config.batch_size / rate + seconds)
        verdict = f"without workers {100 * share:.0f}% of the time goes to data"
        return [*rows, f"{'result':<11} {verdict}" + (f"; try {_advice(times, data)}" if share > 0.1 else "")]
    if rate < wanted:
        waits = 100 * (1 - rate / wanted)
        return [*rows, f"{'result':<11} the model waits for data {waits:.0f}% of the time; try {_advice(times, data)}"]
    return [*rows, f"{'result':<11} data wait for the model: they come {rate / wanted:.1f} times as fast as it trains"]


def _advice(times: DataTimes, data: DataModule) -> str:
    config = data.config
    found = [f"data.num_workers={max(1, 2 * config.num_workers)}"]
    if config.cache == "none" and times.decode > times.total / 4:
        found.append("data.cache=ram or disk")
    if data.masks and config.mask_stride == 1 and times.masks + times.collate > times.total / 4:
        found.append("data.mask_stride=4")
    return ", ".join(found)
