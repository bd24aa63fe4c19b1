"""Composed training images of real data sets: the same wherever and whenever they are made, and true to their masks."""

import dataclasses

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from vision_stack.config import ConfigError
from vision_stack.data.augment.transforms import TrainTransformConfig
from vision_stack.data.configs import ShapesDataConfig
from vision_stack.data.datamodule import build_datamodule, planned_epochs
from vision_stack.data.dataset import collate
from vision_stack.ops.masks import masks_to_boxes
from vision_stack.structures import Category

STRONG = TrainTransformConfig(
    short_edges=(48, 64),
    long_edge=64,
    scale_range=(0.5, 1.5),
    keep_objects=True,
    vertical_flip=0.5,
    warp=0.5,
    iou_crop=0.5,
    zoom_out=0.3,
    mosaic=0.5,
    copy_paste=0.7,
    color_jitter=True,
    photometric=({"name": "GaussianBlur", "kernel_size": 3, "probability": 0.5},),
)
TASKS = ["detection", "instance", "panoptic", "semantic"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("shapes"))


def module(root, task="instance", masks=True, seed=0, transform=STRONG, **options):
    config = ShapesDataConfig(
        root=root, image_size=64, num_train=16, num_val=4, batch_size=4, train_transform=transform, **options
    )
    return build_datamodule(config, seed, task=task, masks=masks)


def transform_for(task):
    return dataclasses.replace(STRONG, copy_paste=0.0) if task == "semantic" else STRONG


def equal(a, b):
    targets = zip(a.targets, b.targets, strict=True)
    return (
        a.infos == b.infos
        and torch.equal(a.images, b.images)
        and all(x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x) for x, y in targets)
    )


def fed(dataset, epoch, index):
    """The target of one image, masks of pixels included."""
    batch = collate([dataset[epoch, index]], mask_stride=dataset.mask_stride or 1)
    return batch.targets[0]


def batches(data, epochs=2):
    loader = data.train_dataloader()
    return [batch for _ in range(epochs) for batch in loader]


@pytest.mark.parametrize("task", TASKS)
def test_any_number_of_workers_gives_the_same_batches(root, task):
    options = {"transform": transform_for(task), "sampling": {"max_objects": 5} if task != "semantic" else {}}
    alone, *others = (batches(module(root, task, num_workers=workers, **options)) for workers in (0, 2, 4))
    assert len(alone) == 8
    for other in others:
        assert all(equal(a, b) for a, b in zip(alone, other, strict=True))
    assert not any(equal(a, b) for a, b in zip(alone[:4], alone[4:], strict=True))  # epochs differ


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_run_is_fed_what_the_uninterrupted_one_is(root, workers):
    options = {"sampling": {"repeat_threshold": 0.9, "max_objects": 6}}
    uninterrupted = batches(module(root, **options), epochs=3)
    resumed = module(root, num_workers=workers, **options)
    resumed.set_position(1, 2)
    rest = batches(resumed)
    assert len(rest) < len(uninterrupted)
    assert all(equal(a, b) for a, b in zip(rest, uninterrupted[-len(rest) :], strict=True))


def test_items_depend_on_seed_epoch_and_index_alone(root):
    dataset = module(root).train_dataset()
    item, target = dataset[1, 5], fed(dataset, 1, 5)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002  the global generator must not matter
    state = torch.get_rng_state()
    other = module(root, cache="none").train_dataset()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(item.image, other[1, 5].image)
    assert torch.equal(target["masks"], fed(other, 1, 5)["masks"])
    assert not torch.equal(item.image, module(root, seed=1).train_dataset()[1, 5].image[:, : item.image.shape[1]])


@pytest.mark.parametrize("task", TASKS)
def test_boxes_are_those_of_masks_and_segments_share_no_pixel(root, task):
    dataset = module(root, task, transform=transform_for(task)).train_dataset()
    count = 0
    for epoch in range(3):
        for index in range(len(dataset)):
            sample = dataset[epoch, index]
            masks = fed(dataset, epoch, index)["masks"]
            assert sample.image.shape[1:] == masks.shape[1:] == sample.info.input_size
            assert torch.equal(sample.target["boxes"], masks_to_boxes(masks))
            assert masks.any(dim=(1, 2)).all()
            count += len(masks)
            if task in ("semantic", "panoptic"):
                assert masks.sum(0).max() <= 1
            if task == "semantic":
                assert len(set(sample.target["labels"].tolist())) == len(masks)
    assert count > 48


def test_coarse_masks_of_composed_images_cover_what_fine_ones_do(root):
    """At stride 4; cells at the border of an object are in if half of them is."""
    fine, coarse = (module(root, mask_stride=stride).train_dataset() for stride in (1, 4))
    for index in range(8):
        a, b = fed(fine, 0, index), fed(coarse, 0, index)
        assert torch.equal(a["labels"], b["labels"])
        height, width = a["masks"].shape[1:]
        assert b["masks"].shape[1:] == (-(-height // 4), -(-width // 4))
        large = a["masks"].sum((1, 2)) > 200
        share = 16 * b["masks"].sum((1, 2))[large] / a["masks"].sum((1, 2))[large]
        assert ((share > 0.8) & (share < 1.25)).all()


def test_panoptic_stuff_has_one_segment_a_class_and_is_not_pasted(root):
    data = module(root, "panoptic", transform=dataclasses.replace(STRONG, mosaic=1.0, zoom_out=0.0))
    stuff = [n for n, category in enumerate(data.categories) if not category.is_thing]
    dataset = data.train_dataset()
    several = 0
    for index in range(16):
        labels = dataset[0, index].target["labels"].tolist()
        assert all(labels.count(n) <= 1 for n in stuff)
        several += any(n in labels for n in stuff)
    assert several > 8


def test_boxes_alone_are_those_of_the_masks_too(root):
    with_masks, without = (module(root, "detection", masks=masks).train_dataset() for masks in (True, False))
    compared = 0
    for index in range(8):
        a, b = with_masks[0, index], without[0, index]
        assert torch.equal(a.image, b.image)
        assert b.masks is None
        if len(a.target["labels"]) == len(b.target["labels"]):  # not where a sliver of an object is left
            assert (a.target["boxes"] - b.target["boxes"]).abs().max() <= 1.0  # masks are of whole pixels
            compared += 1
    assert compared > 4


def test_at_most_so_many_objects_drawn_anew_each_epoch(root):
    plain = TrainTransformConfig(short_edges=(64,), long_edge=64, flip=0.0)
    dataset = module(root, transform=plain, sampling={"max_objects": 2}).train_dataset()
    every = module(root, transform=plain).train_dataset()
    index = max(range(16), key=lambda n: len(every[0, n].target["labels"]))
    masks = fed(every, 0, index)["masks"]
    assert len(masks) > 3
    seen = set()
    for epoch in range(30):
        kept = fed(dataset, epoch, index)["masks"]
        assert len(kept) == 2
        seen |= {n for n, mask in enumerate(masks) for each in kept if torch.equal(mask, each)}
    assert seen == set(range(len(masks)))


def test_last_part_of_the_run_has_only_scale_and_flips(root):
    transform = dataclasses.replace(STRONG, stop_fraction=0.25, flip=0.0, vertical_flip=0.0, short_edges=(64,))
    dataset = module(root, transform=transform).train_dataset(planned_epochs=8)
    plain = TrainTransformConfig(short_edges=(64,), long_edge=64, flip=0.0)
    before = module(root, transform=plain).train_dataset()
    same = [all(torch.equal(dataset[e, n].image, before[e, n].image) for n in range(4)) for e in (0, 5, 6, 7, 20)]
    assert same == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("fraction", "epochs", "first"), [(0.2, 10, 8), (0.1, 10, 9), (0.3, 10, 7), (0.5, 3, 2), (1.0, 4, 0), (0.2, 1, 1)]
)
def test_augmentation_stops_with_the_epoch(fraction, epochs, first):
    stages = dict(TrainTransformConfig(mosaic=0.5, stop_fraction=fraction).stages(epochs))
    assert stages.pop(first).mosaic == 0.0
    assert all(transform.mosaic == 0.5 for epoch, transform in stages.items() if epoch < first)


def test_augmentation_without_stages_or_length_never_changes():
    always = TrainTransformConfig(mosaic=0.5)
    assert always.stages(10) == [(0, always)]
    staged = TrainTransformConfig(mosaic=0.5, start_fraction=0.1, mosaic_until=0.5, stop_fraction=0.5)
    assert staged.stages(None) == [(0, staged)]


def test_mosaic_and_mixup_come_after_the_start_and_end_before_the_rest():
    """DEIM's stages: epochs 4 to 29 of 58 with mosaic and mixup, to 50 with all else."""
    transform = TrainTransformConfig(
        mosaic=0.5, mixup=0.5, zoom_out=0.5, start_fraction=0.069, mosaic_until=0.5, stop_fraction=0.138
    )
    stages = transform.stages(58)
    assert [epoch for epoch, _ in stages] == [0, 4, 29, 50]
    assert [(each.mosaic, each.mixup, each.zoom_out) for _, each in stages] == [
        (0.0, 0.0, 0.0),
        (0.5, 0.5, 0.5),
        (0.0, 0.0, 0.5),
        (0.0, 0.0, 0.0),
    ]


def test_blended_objects_come_with_their_boxes_and_mixtures_leave_the_image_visible(root):
    options = {"short_edges": (64,), "long_edge": 64, "flip": 0.0}
    plain = module(root, "detection", False, transform=TrainTransformConfig(**options)).train_dataset()
    blended = module(
        root, "detection", False, transform=TrainTransformConfig(**options, copy_blend=1.0)
    ).train_dataset()
    added = 0
    for index in range(8):
        before, after = plain[0, index], blended[0, index]
        own, count = before.target["boxes"], len(before.target["boxes"])
        assert torch.equal(after.target["boxes"][:count], own), "of objects that are only blended over nothing changes"
        new = after.target["boxes"][count:]
        assert len(new) <= 3
        added += len(new)
        changed = (before.image != after.image).any(0)
        outside = torch.ones(64, 64, dtype=torch.bool)
        for x0, y0, x1, y1 in new.tolist():
            w, h = 0.25 * (x1 - x0) + 2, 0.25 * (y1 - y0) + 2  # the margin, and rounding to pixels
            outside[max(0, int(y0 - h)) : int(y1 + h) + 1, max(0, int(x0 - w)) : int(x1 + w) + 1] = False
        assert not changed[outside].any()
    assert added > 8


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_epochs": 12}, 12),
        ({"max_steps": 30}, 3),
        ({"max_steps": 30, "max_epochs": 2}, 2),
        ({"max_steps": 30, "accumulate_grad_batches": 3}, 7.5),
        ({"max_steps": 30, "limit_train_batches": 5}, 6),
        ({"max_steps": 30, "limit_train_batches": 0.5}, 6),
        ({"max_epochs": -1, "max_time": "00:00:01:00"}, None),
    ],
)
def test_planned_epochs_are_those_of_the_trainer(options, expected):
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    assert planned_epochs(pl.Trainer(accelerator="cpu", **silent, **options), 10) == expected


@pytest.mark.parametrize(
    ("task", "transform", "sampling", "expected"),
    [
        (
            "semantic",
            {"copy_paste": 0.5},
            {},
            r"data\.train_transform\.copy_paste: task=semantic has no single",
        ),
        ("semantic", {"mixup": 0.5}, {}, r"data\.train_transform\.mixup: .*; give augment\.mixup=0"),
        ("panoptic", {"mixup": 0.5}, {}, r"data\.train_transform\.mixup: a pixel has one label with task=panoptic"),
        ("semantic", {}, {"max_objects": 9}, r"data\.sampling\.max_objects: .*; give null"),
        ("semantic", {}, {"repeat_threshold": 0.1}, r"data\.sampling\.repeat_threshold: .*; give 0"),
        (
            "instance",
            {},
            {"class_weights": {"cirle": 2.0}},
            r"data\.sampling\.class_weights: there is no class 'cir",
        ),
    ],
)
def test_what_the_annotations_cannot_serve_is_one_line(root, task, transform, sampling, expected):
    data = module(root, task, transform=TrainTransformConfig(**transform), sampling=sampling)
    with pytest.raises(ConfigError, match=expected) as error:
        data.check_augmentation()
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError):
        data.train_dataloader()


def test_images_of_rare_classes_come_more_often_and_the_notes_say_so(root):
    data = module(root, sampling={"class_weights": {"ring": 3.0}})
    assert data.epoch_size > 16
    ring = [category.name for category in data.categories].index("ring")
    seen = [(ring in record.object_labels()) for record in data.train_records]
    indices = [index for batch in data.train_dataloader().batch_sampler for _, index in batch]
    counts = np.bincount(indices, minlength=16)
    assert counts[seen].mean() > 2
    assert counts[~np.array(seen)].max() <= 1
    assert any(line.startswith("note: data.sampling: an epoch has") for line in data.notes())
    assert isinstance(data.categories[0], Category)
