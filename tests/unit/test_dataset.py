"""From COCO files to batches: what is in them, and that they are the same wherever and whenever they are made."""

import json
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torchvision.tv_tensors import BoundingBoxes, Mask

from vision_stack.data.augment.transforms import EvalTransformConfig, TrainTransformConfig
from vision_stack.data.checks.issues import DataError
from vision_stack.data.configs import CocoDataConfig, ShapesDataConfig, cache_folder
from vision_stack.data.datamodule import build_datamodule
from vision_stack.data.dataset import SegmentationDataset, collate
from vision_stack.structures import Category

SIZES = [(40, 60), (60, 40), (50, 50), (40, 60), (30, 30), (64, 20)]
EMPTY, CROWD_ONLY = 3, 4  # positions of an image without objects, and of one with only a crowd
JITTER = TrainTransformConfig(mode="large_scale_jitter", crop_size=48, scale_range=(0.5, 2.0), color_jitter=True)
EVAL = EvalTransformConfig(short_edge=40, long_edge=60)


def write_split(root, name):
    """Six images: polygons and RLE, sparse ids, a crowd beside objects, none at all, and only a crowd."""
    rng = np.random.default_rng(0)
    (root / name).mkdir(parents=True)
    images, annotations = [], []
    for i, (height, width) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name / f"{i}.png")
        images.append({"id": 10 * i + 7, "file_name": f"{i}.png", "height": height, "width": width})
        if i == EMPTY:
            continue
        crowd = {"size": [height, width], "counts": [0, height * 3, height * (width - 3)]}
        polygon = [[2, 3, 18, 3, 18, 23, 2, 23]]
        run = {"size": [height, width], "counts": [height * 5, height * 9, height * (width - 14)]}
        objects = [(9, crowd, 1), (4, polygon, 0), (9, run, 0)][: 1 if i == CROWD_ONLY else 3]
        for category, segmentation, is_crowd in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 * i + 7,
                    "category_id": category,
                    "segmentation": segmentation,
                    "bbox": [0, 0, 10, 10],
                    "area": 100,
                    "iscrowd": is_crowd,
                }
            )
    categories = [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_split(folder, "train")
    write_split(folder, "val")
    return folder


def config(root, **options):
    defaults = {"batch_size": 2, "num_workers": 0, "train_transform": JITTER, "eval_transform": EVAL}
    return CocoDataConfig(root=str(root), **{**defaults, **options})


def equal(a, b):
    """Whether two batches are the same, down to each pixel."""
    targets = zip(a.targets, b.targets, strict=True)
    return (
        a.infos == b.infos
        and torch.equal(a.images, b.images)
        and torch.equal(a.padding_mask, b.padding_mask)
        and all(torch.equal(x[key], y[key]) for x, y in targets for key in ("labels", "masks", "boxes"))
    )


def train_batches(data, epochs):
    loader = data.train_dataloader()
    return [batch for _ in range(epochs) for batch in loader]


def test_train_item_depends_on_seed_epoch_and_index_alone(root):
    dataset = build_datamodule(config(root), seed=1).train_dataloader().dataset
    first = collate([dataset[2, 1]])
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002  the global generator must not matter
    assert equal(collate([dataset[2, 1]]), first)
    assert not equal(collate([dataset[3, 1]]), first)
    other_seed = build_datamodule(config(root), seed=2).train_dataloader().dataset
    assert not equal(collate([other_seed[2, 1]]), first)


@pytest.mark.parametrize(
    "options",
    [{"cache": "ram"}, {"cache": "disk"}, {"cache": "disk", "cache_gb": 1e-5}, {"cache": "ram", "num_workers": 2}],
    ids=str,
)
def test_cached_images_give_the_same_batches(root, options, tmp_path, monkeypatch):
    monkeypatch.setenv("VISION_STACK_CACHE", str(tmp_path))
    plain, cached = (train_batches(build_datamodule(config(root, **each)), epochs=3) for each in ({}, options))
    assert all(equal(a, b) for a, b in zip(plain, cached, strict=True))


def test_old_name_of_the_cache_in_memory_still_counts(root):
    assert config(root, cache="decoded").cache == "ram"


def test_workers_give_the_same_batches_as_the_training_process(root):
    alone, spread = (train_batches(build_datamodule(config(root, num_workers=workers)), epochs=3) for workers in (0, 2))
    assert len(alone) == 6
    assert all(equal(a, b) for a, b in zip(alone, spread, strict=True))
    assert isinstance(spread[0].targets[0]["masks"], Mask)
    assert isinstance(spread[0].targets[0]["boxes"], BoundingBoxes)


@pytest.mark.parametrize("workers", [0, 2])
def test_restart_in_mid_epoch_gives_the_batches_of_the_uninterrupted_run(root, workers):
    uninterrupted = train_batches(build_datamodule(config(root)), epochs=3)
    interrupted = build_datamodule(config(root, num_workers=workers))
    loader = interrupted.train_dataloader()
    list(loader)
    next(iter(loader))  # one batch of the second epoch was trained; workers have read further ahead

    resumed = build_datamodule(config(root, num_workers=workers))
    resumed.set_position(1, 1)
    rest = train_batches(resumed, epochs=2)
    assert all(equal(a, b) for a, b in zip(rest, uninterrupted[3:], strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_abandoned_pass_counts_as_an_epoch(root, workers):
    expected = train_batches(build_datamodule(config(root)), epochs=3)[::2]
    loader = build_datamodule(config(root, num_workers=workers)).train_dataloader()
    assert all(equal(next(iter(loader)), batch) for batch in expected)


def test_iterating_takes_nothing_from_the_global_generator(root):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    train_batches(build_datamodule(config(root)), epochs=2)
    assert torch.equal(torch.get_rng_state(), state)


class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, index):
        self.seen.append([info.image_id for info in batch.infos])
        return self.layer(batch.images.float().mean().reshape(1, 1)).sum()

    def validation_step(self, batch, index):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data, workers_dir, **options):
    module = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=workers_dir,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few workers, few batches
        trainer.fit(module, datamodule=data)
    return module.seen


def targets_of_validation(data):
    """Of the images that the model is validated on, in batches, which come without."""
    dataset = SegmentationDataset(data.val_records, data.config.eval_transform)
    size = data.config.eval_batch_size
    batches = [range(first, min(first + size, len(dataset))) for first in range(0, len(dataset), size)]
    return [collate([dataset[n] for n in batch], data.config.size_divisor).targets for batch in batches]


@pytest.mark.parametrize("limit", [1.0, 0.5])
def test_lightning_iterates_the_train_loader_once_an_epoch(root, tmp_path, limit):
    seen = fit(build_datamodule(config(root), seed=4), tmp_path, max_epochs=3, limit_train_batches=limit)
    loader = build_datamodule(config(root), seed=4).train_dataloader()
    expected = [[[info.image_id for info in batch.infos] for batch in loader] for _ in range(3)]
    assert seen == [batch for batches in expected for batch in (batches if limit == 1.0 else batches[:1])]


def test_eval_batch_holds_objects_in_pixels_of_the_resized_image(root):
    data = build_datamodule(config(root, eval_batch_size=2))
    batches = list(data.val_dataloader())
    assert [info.image_id for batch in batches for info in batch.infos] == [7, 17, 27, 37, 47, 57]
    batch = batches[0]
    assert [info.size for info in batch.infos] == [(40, 60), (60, 40)]
    assert [info.input_size for info in batch.infos] == [(40, 60), (60, 40)]
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.padding_mask[0, :40, :60].logical_not().all()
    assert batch.padding_mask.sum() == 2 * (64 * 64 - 40 * 60)
    pixels = np.asarray(Image.open(root / "val" / "0.png"))
    assert torch.equal(batch.images[0, :, :40, :60], torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    assert [len(target["labels"]) for target in batch.targets] == [0, 0], "nobody reads them"
    targets = targets_of_validation(data)
    target = targets[0][0]
    assert target["labels"].tolist() == [0, 1]  # ids 4 and 9; the crowd is not a target
    assert target["boxes"].tolist() == [[2, 3, 18, 23], [5, 0, 14, 40]]
    assert target["masks"].shape == (2, 64, 64)
    assert target["masks"].sum((1, 2)).tolist() == [16 * 20, 9 * 40]
    assert targets[1][1]["masks"].shape == (0, 64, 64)  # without objects
    assert targets[2][0]["labels"].tolist() == []  # only a crowd


def test_fixed_size_pads_every_batch_to_the_crop(root):
    batches = train_batches(build_datamodule(config(root, size_divisor=1)), epochs=2)
    assert {tuple(batch.images.shape[-2:]) for batch in batches} == {(48, 48)}
    assert {tuple(target["masks"].shape[-2:]) for batch in batches for target in batch.targets} == {(48, 48)}
    assert all(batch.images.permute(0, 2, 3, 1)[batch.padding_mask].eq(0).all() for batch in batches)


def test_images_without_objects_are_left_out_of_training_only(root):
    data = build_datamodule(config(root))
    assert [record.image_id for record in data.train_records] == [7, 17, 27, 57]
    assert len(data.val_records) == 6
    assert len(build_datamodule(config(root, filter_empty=False)).train_records) == 6


def test_limits_take_the_first_images_and_their_ground_truth(root):
    data = build_datamodule(config(root, max_train_images=2, max_val_images=1))
    assert [record.image_id for record in data.train_records] == [7, 17]
    truth = data.val_ground_truth()
    assert [image["id"] for image in truth["images"]] == [7]
    assert {annotation["image_id"] for annotation in truth["annotations"]} == {7}
    assert len(truth["annotations"]) == 3
    assert data.num_train_images_with_more_objects_than(1) == 2
    assert data.num_train_images_with_more_objects_than(2) == 0


def test_given_categories_decide_the_labels_without_the_training_split(root, tmp_path):
    (tmp_path / "val").symlink_to(root / "val")
    data = build_datamodule(
        config(
            tmp_path,
            val_annotations=str(root / "val.json"),
            val_images=str(root / "val"),
        ),
        categories=[Category(id=1, name="dog"), Category(id=2, name="cat")],
    )
    assert [category.name for category in data.categories] == ["dog", "cat"]
    assert targets_of_validation(data)[0][0]["labels"].tolist() == [1, 0]


@pytest.mark.parametrize("workers", [0, 1])
def test_image_broken_during_training_is_one_line_that_names_the_file(tmp_path, workers):
    write_split(tmp_path, "train")
    data = build_datamodule(config(tmp_path, num_workers=workers))
    loader = data.train_dataloader()
    broken = tmp_path / "train" / "1.png"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(DataError) as error:
        list(loader)
    assert str(error.value).startswith(str(broken))
    assert "\n" not in str(error.value)


def test_image_of_another_size_during_training_is_refused(tmp_path):
    write_split(tmp_path, "train")
    loader = build_datamodule(config(tmp_path)).train_dataloader()
    Image.new("RGB", (33, 44)).save(tmp_path / "train" / "2.png")
    with pytest.raises(DataError, match=r"2\.png: pixels: is 33 x 44 now, was 50 x 50"):
        list(loader)


def test_training_split_of_crowds_alone_is_refused(tmp_path):
    write_split(tmp_path, "train")
    content = json.loads((tmp_path / "train.json").read_text())
    content["annotations"] = [a for a in content["annotations"] if a["iscrowd"]]
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="no training image has an object"):
        build_datamodule(config(tmp_path)).train_dataloader()


def test_shapes_are_generated_into_the_chosen_cache_and_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("VISION_STACK_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "vision_stack"
    monkeypatch.setenv("VISION_STACK_CACHE", str(tmp_path / "chosen"))
    size = EvalTransformConfig(short_edge=32, long_edge=32)
    shapes = ShapesDataConfig(image_size=32, num_train=3, num_val=2, batch_size=2, eval_transform=size)
    data = build_datamodule(shapes)
    assert len(data.categories) == 4
    assert next(iter(data.val_dataloader())).images.shape == (2, 3, 32, 32)
    assert list((tmp_path / "chosen").rglob("instances_val.json"))


def test_reduced_decoding_changes_small_images_by_roundings_only(tmp_path):
    for split in ("train", "val"):
        write_split(tmp_path, split)
    y, x = np.mgrid[0:40, 0:60]
    smooth = np.stack([3 * x, 5 * y, x + y], axis=-1).astype(np.uint8)
    document = json.loads((tmp_path / "train.json").read_text())
    document["images"][0] |= {"file_name": "0.jpg", "width": 60, "height": 40}
    (tmp_path / "train.json").write_text(json.dumps(document))
    Image.fromarray(smooth).save(tmp_path / "train" / "0.jpg", quality=95)
    small = TrainTransformConfig(short_edges=(10,), long_edge=15, flip=0.0)
    plain, reduced = (
        build_datamodule(config(tmp_path, reduced_decoding=each, train_transform=small)).train_dataset()[0]
        for each in (False, True)
    )
    assert plain.image.shape == reduced.image.shape == (3, 10, 15)
    difference = (plain.image.float() - reduced.image.float()).abs().mean()
    assert 0 < difference < 2
