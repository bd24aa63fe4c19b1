"""The step that is taken before the first: it leaves no trace, and what does not fit is said in one line."""

import dataclasses
import random
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vision_stack.config import from_dict
from vision_stack.data.configs import DataConfig
from vision_stack.data.datamodule import DataModule, build_datamodule
from vision_stack.model import VisionModel
from vision_stack.training import memory
from vision_stack.training.estimate import describe, duration, length
from vision_stack.training.finetune import FinetuneConfig
from vision_stack.training.optim import OptimConfig
from vision_stack.training.probe import GIB, Measured, OutOfMemory, Probe, composed_counts, make_batch, search_largest
from vision_stack.training.settling import model_config
from vision_stack.training.tasks import build_evaluator

CPU = torch.device("cpu")
PARTS = {
    "backbone": {"type": "timm", "model_name": "test_efficientnet", "out_strides": [4, 8, 16]},
    "neck": {"type": "fpn", "channels": 16},
    "head": {"type": "mask2former", "hidden_dim": 16, "num_heads": 2, "ffn_dim": 16, "num_queries": 5, "dropout": 0.1}
    | {"num_decoder_layers": 1, "loss": {"num_points": 32}},
}


@pytest.fixture(scope="module")
def data() -> DataModule:
    transform = {"short_edges": [64, 96], "long_edge": 128}
    options = {"type": "shapes", "image_size": 64, "num_train": 8, "num_val": 2, "train_transform": transform}
    config: DataConfig = from_dict(options, kind="data")
    return build_datamodule(config)


def build(data: DataModule) -> VisionModel:
    torch.manual_seed(0)
    config = {**PARTS, "task": "instance", "panoptic": {}}
    return VisionModel(model_config(config, data.config, data, None))


def probe_of(model: VisionModel, data: DataModule, **finetune: Any) -> Probe:
    config = FinetuneConfig(**finetune)
    config.apply(model.backbone, epoch=0)
    return Probe(model, data, OptimConfig(), config, torch.device("cpu"), "32-true")


def state(model: VisionModel) -> dict[str, Any]:
    tensors = {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    modes = [module.training for module in model.modules()]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    drawn = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002
    return {"tensors": tensors, "modes": modes, "trained": trained, "drawn": drawn}


@pytest.mark.parametrize(
    "finetune", [{}, {"freeze_stages": 2}, {"freeze_stages": "all", "unfreeze_epochs": [1]}], ids=str
)
def test_measuring_changes_nothing(finetune: dict[str, Any], data: DataModule) -> None:
    model = build(data)
    probe = probe_of(model, data, **finetune)
    before = state(model)
    measured = probe.measure(2, build_evaluator(data, top_k=10))
    after = state(model)
    tensors, others = before.pop("tensors"), after.pop("tensors")
    assert before == after
    assert all(torch.equal(value, others[name]) for name, value in tensors.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert measured.memory > 0
    assert measured.seconds > 0
    assert measured.seconds_of_validation > 0


def test_a_step_does_change_the_model_meanwhile(data: DataModule) -> None:
    model = build(data)
    before = state(model)["tensors"]
    probe = probe_of(model, data)
    with warnings.catch_warnings(action="ignore"):  # the head has few queries
        probe.step(probe.largest(2))
    changed = [name for name, value in state(model)["tensors"].items() if not torch.equal(value, before[name])]
    assert any("running_mean" in name for name in changed)
    assert any("head" in name for name in changed)


def test_largest_batch_has_the_largest_images_and_the_most_objects(data: DataModule) -> None:
    probe = probe_of(build(data), data)
    counts = sorted((record.num_objects for record in data.train_records), reverse=True)
    assert probe.largest(3) == (96, 96, tuple(counts[:3]))
    assert len(probe.largest(20).objects) == 20
    typical = probe.typical(3)
    assert 64 <= typical.height <= 96
    batch = make_batch(probe.largest(3), 4, torch.device("cpu"))
    assert batch.images.shape == (3, 3, 96, 96)
    assert [len(target["labels"]) for target in batch.targets] == counts[:3]
    assert all(target["masks"].flatten(1).any(1).all() for target in batch.targets)


def test_out_of_memory_is_one_line_that_says_what_to_lower(data: DataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(data)
    probe = probe_of(model, data)

    honest = model.head.compute_loss

    def fail(outputs: Any, targets: Any) -> Any:
        if len(targets) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return honest(outputs, targets)

    monkeypatch.setattr(model.head, "compute_loss", fail)
    with pytest.raises(OutOfMemory, match=r"2 images of 96 x 96 .*lower data.batch_size \(now 2\)") as error:
        probe.measure(2, build_evaluator(data, top_k=10))
    assert "\n" not in str(error.value)


def test_other_errors_of_a_step_are_not_taken_for_it(data: DataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(data)

    def fail(*_: Any) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(model.head, "compute_loss", fail)
    with pytest.raises(RuntimeError, match="multiplied"):
        probe_of(model, data).measure(2, build_evaluator(data, top_k=10))


@pytest.mark.parametrize("most", [1, 2, 3, 5, 7, 8, 13, 31, 64, 100])
@pytest.mark.parametrize("limit", [1, 6, 64])
def test_search_finds_the_largest_that_fits_to_an_eighth(most: int, limit: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= most

    found = search_largest(fits, limit)
    assert found <= min(most, limit)
    assert found >= min(most, limit) * 8 / 9 - 1e-9 or min(most, limit) - found < 1
    assert max(tried) <= limit
    assert len(tried) == len(set(tried))


@pytest.mark.parametrize(("available", "expected"), [(2 * GIB, 6), (100 * GIB, 8), (int(1.2 * GIB), 1)])
def test_cpu_batch_goes_by_what_one_and_two_images_take(
    available: int, expected: int, data: DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = probe_of(build(data), data)
    peaks = iter([GIB, GIB + GIB // 7])
    monkeypatch.setattr(probe, "peak", lambda action: next(peaks))
    monkeypatch.setattr(probe, "available", lambda: available)
    batch, how = probe.largest_fitting(limit=8)
    assert batch == expected
    assert "0.14 an image" in how


def test_batch_that_would_have_the_process_killed_is_refused_by_smaller_ones(
    data: DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = probe_of(build(data), data)
    evaluator = build_evaluator(data, top_k=10)
    monkeypatch.setattr(probe, "available", lambda: 4 * GIB)
    for each, fits in ((GIB // 4, True), (GIB, False)):
        peaks = iter([GIB, 2 * GIB, 2 * GIB + each, 3 * GIB])
        monkeypatch.setattr(probe, "peak", lambda action, peaks=peaks: next(peaks))
        if fits:
            assert probe.measure(4, evaluator).memory == 3 * GIB
        else:
            with pytest.raises(OutOfMemory, match=r"out of memory of 4.0 GB on cpu: a step of 4 images"):
                probe.measure(4, evaluator)


def trainer(**options: Any) -> Any:
    defaults = {"world_size": 1, "limit_train_batches": 1.0, "accumulate_grad_batches": 1, "max_epochs": -1}
    defaults |= {"max_steps": -1, "val_check_interval": 1.0, "check_val_every_n_epoch": 1}
    return SimpleNamespace(**{**defaults, **options})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_epochs": 3}, (12, 3)),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, (6, 3)),
        ({"max_epochs": 3, "world_size": 2}, (6, 3)),
        ({"max_epochs": 3, "max_steps": 5}, (5, 1)),
        ({"max_epochs": 10, "check_val_every_n_epoch": 5}, (40, 2)),
        ({"max_steps": 20, "check_val_every_n_epoch": None, "val_check_interval": 7}, (20, 3)),
        ({"max_epochs": 2, "val_check_interval": 0.5}, (8, 4)),
        ({"max_epochs": 3, "limit_train_batches": 2}, (6, 3)),
        ({}, (0, 0)),
    ],
    ids=str,
)
def test_length_of_a_run(options: dict[str, Any], expected: tuple[int, int], data: DataModule) -> None:
    monkeypatched = SimpleNamespace(config=SimpleNamespace(batch_size=2), epoch_size=data.epoch_size)
    assert length(trainer(**options), monkeypatched) == expected  # type: ignore[arg-type]


def test_rows_say_memory_and_time() -> None:
    measured = Measured(3 * GIB, 16 * GIB, 1.2, 0.1)
    memory_row, time_row = describe(measured, left=1000, validations=12, num_val=30)
    assert memory_row == "memory      3.0 of 16.0 GB, measured in a step on the largest batch"
    assert time_row == "time        about 21 min for 1,000 steps of 1.20 s and 12 validations"
    assert "trainer.max_time ends it in 30 s" in describe(measured, 1000, 12, 30, seconds_left=30.0)[1]
    assert len(describe(measured, 0, 0, 30)) == 1


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (89.6, "90 s"), (720, "12 min"), (12_000, "3 h 20 min")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_available_memory_is_that_of_the_container_where_it_is_less(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 99000000 kB\nMemAvailable: 50000000 kB\n")
    assert memory.available_memory(tmp_path) >= 50_000_000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert memory.available_memory(tmp_path) >= 50_000_000 * 1024
    (group / "memory.max").write_text(f"{8 * GIB}\n")
    (group / "memory.current").write_text(f"{7 * GIB}\n")
    (group / "memory.stat").write_text(f"anon 1\nfile {4 * GIB}\n")
    assert 5 * GIB <= memory.available_memory(tmp_path) < 30 * GIB


def test_peak_memory_forgets_earlier_peaks() -> None:
    large = torch.ones(64 * 2**20)
    del large
    memory.reset_peak_memory()
    before = memory.peak_memory()
    large = torch.ones(32 * 2**20)
    assert memory.peak_memory() >= before
    assert memory.peak_memory() < before + 200 * 2**20
    del large


@pytest.mark.parametrize(
    ("transform", "sampling", "expected"),
    [
        ({}, {}, [9, 5, 3, 2, 1]),
        ({"mosaic": 0.1}, {}, [19, 1]),
        ({"copy_paste": 0.1, "mixup": 0.1}, {}, [17, 3]),
        ({"mosaic": 0.1}, {"max_objects": 12}, [12, 1]),
    ],
)
def test_composed_images_have_the_objects_of_those_in_them(
    transform: dict[str, Any], sampling: dict[str, Any], expected: list[int], data: DataModule
) -> None:
    config: DataConfig = from_dict({"type": "shapes", "train_transform": transform, "sampling": sampling}, kind="data")
    other = SimpleNamespace(config=config, train_split=data.train_split, categories=data.categories)
    assert composed_counts([3, 9, 1, 5, 2], other) == expected  # type: ignore[arg-type]


def test_largest_batch_with_crops_of_any_aspect_is_as_wide_as_high(data: DataModule) -> None:
    model = build(data)
    plain, cropped = (
        Probe(model, build_datamodule(replace_transform(data, **more)), OptimConfig(), FinetuneConfig(), CPU, "32-true")
        for more in ({}, {"iou_crop": 0.5})
    )
    assert plain.largest(1)[:2] == (96, 96)
    assert cropped.largest(1)[:2] == (128, 128)  # at most long_edge


def replace_transform(data: DataModule, **options: Any) -> DataConfig:
    transform = dataclasses.replace(data.config.train_transform, **options)
    return dataclasses.replace(data.config, train_transform=transform)
