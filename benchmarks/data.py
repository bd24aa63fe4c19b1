"""Images per second from disk to a batch, ours beside torchvision's `CocoDetection` with its v2 transforms.

    python benchmarks/data.py [--coco ../shared/data/coco_mini] [--workers 0 2] [--rounds 7]

Large-scale jitter at 1024 px of the same photographs in one process, taking turns, each giving batches of two with
masks at full resolution, masks at stride 4 (torchvision has none: it is compared with full ones), or only boxes. Both
sides read the files again in every round, resize with antialiasing, crop, mirror, pad and collate. Ours gives bytes,
which `VisionModel` makes floats of where the model is; torchvision is measured both ways, its transforms on tensors,
which are faster than on Pillow's images. Also prints how far masks at stride 4 are from full ones, and what checking
JPEGs for early ends costs. One thread per process.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timing import alternate
from torch.utils.data import DataLoader
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from vision_stack.data.augment.transforms import TrainTransformConfig
from vision_stack.data.configs import CocoDataConfig
from vision_stack.data.datamodule import build_datamodule
from vision_stack.data.images import read_image
from vision_stack.ops.masks import coarser, placed

SIZE, BATCH, STRIDE = 1024, 2, 4
REQUIRED = {"full masks": 2.5, "masks at stride 4": 4.0, "boxes": 2.0}
IOU = 0.99
JITTER = TrainTransformConfig(mode="large_scale_jitter", crop_size=SIZE)


def torchvision_loader(root: Path, *, masks: bool, as_float: bool, workers: int) -> Callable[[], int]:
    """One epoch; gives the number of images."""
    steps = [
        v2.ToImage(),
        v2.ScaleJitter((SIZE, SIZE), (0.1, 2.0), antialias=True),
        v2.RandomCrop((SIZE, SIZE), pad_if_needed=True),
        v2.RandomHorizontalFlip(),
        v2.SanitizeBoundingBoxes(),
        *([v2.ToDtype(torch.float32, scale=True)] if as_float else []),
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        plain = CocoDetection(
            str(root / "train2017"),
            str(root / "annotations" / "instances_train2017.json"),
            transforms=v2.Compose(steps),
        )
    keys = ("boxes", "labels", "masks") if masks else ("boxes", "labels")
    loader = DataLoader(
        wrap_dataset_for_transforms_v2(plain, target_keys=keys),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=_stacked,
    )
    return lambda: sum(len(images) for images, _ in loader)


def _stacked(samples: list[Any]) -> tuple[torch.Tensor, list[Any]]:
    return torch.stack([image for image, _ in samples]), [target for _, target in samples]


def our_loader(root: Path, *, masks: bool, stride: int = 1, workers: int = 0) -> Callable[[], int]:
    """One epoch; gives the number of images."""
    config = CocoDataConfig(
        root=str(root),
        batch_size=BATCH,
        num_workers=workers,
        train_transform=JITTER,
        mask_stride=stride,
        filter_empty=False,
    )
    loader = build_datamodule(config, task="instance" if masks else "detection", masks=masks).train_dataloader()
    return lambda: sum(len(batch.infos) for batch in loader)


def compare(root: Path, workers: int, rounds: int) -> None:
    """Print images per second and ratios of both."""
    ours = {
        "full masks": our_loader(root, masks=True, workers=workers),
        "masks at stride 4": our_loader(root, masks=True, stride=STRIDE, workers=workers),
        "boxes": our_loader(root, masks=False, workers=workers),
    }
    theirs = {
        f"torchvision, {name}{', floats' if as_float else ''}": torchvision_loader(
            root, masks=name == "masks", as_float=as_float, workers=workers
        )
        for name in ("masks", "boxes")
        for as_float in (False, True)
    }
    images = len(list((root / "train2017").glob("*.jpg")))
    times = alternate({**ours, **theirs}, rounds)
    print(f"\n{workers or 'no'} workers, {SIZE} px, {images} images, medians of {rounds} epochs")
    for name in theirs:
        print(f"  {name:32s} {images / times[name].median:7.1f} images/s")
    for name in ours:
        peer = f"torchvision, {'boxes' if name == 'boxes' else 'masks'}"
        ratio = times[peer].median / times[name].median
        floats = times[f"{peer}, floats"].median / times[name].median
        print(
            f"  {name:32s} {images / times[name].median:7.1f} images/s; {ratio:.2f} x torchvision "
            f"(required: {REQUIRED[name]}), {floats:.2f} x with floats",
            flush=True,
        )


def mask_overlap(root: Path, epochs: int = 3) -> None:
    """IoU of masks at stride 4 with full ones of which each cell is True where at least half of its pixels are."""
    fine, coarse = (
        build_datamodule(
            CocoDataConfig(root=str(root), num_workers=0, train_transform=JITTER, mask_stride=stride)
        ).train_dataloader()
        for stride in (1, STRIDE)
    )
    common = union = 0
    ious: list[float] = []
    for _ in range(epochs):
        for one, other in zip(fine, coarse, strict=True):
            for a, b in zip(one.targets, other.targets, strict=True):
                # An object of less than a pixel may be in one and not in the other; the rest comes in the same order.
                if len(a["labels"]) != len(b["labels"]):
                    continue
                for full, mask in zip(a["masks"].numpy(), b["masks"].numpy(), strict=True):
                    cell = coarser(placed(full), STRIDE)
                    expected = np.zeros_like(mask)
                    expected[cell.top : cell.top + cell.cells.shape[0], cell.left : cell.left + cell.cells.shape[1]] = (
                        cell.cells
                    )
                    both, either = np.count_nonzero(mask & expected), np.count_nonzero(mask | expected)
                    common, union = common + both, union + either
                    ious.append(both / max(either, 1))
    print(
        f"\nmasks at stride {STRIDE} and the cells that full ones cover by half: IoU {common / union:.4f} "
        f"(required: {IOU}); mean over {len(ious):,} objects {np.mean(ious):.4f}"
    )


def early_ends(root: Path) -> None:
    """What it costs to find JPEGs whose data stop early."""

    def plainly(path: Path) -> Any:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))

    files = sorted((root / "train2017").glob("*.jpg"))

    def all_by(read: Callable[[Path], Any]) -> Callable[[], None]:
        return lambda: [read(path) for path in files] and None

    times = alternate({"read_image": all_by(read_image), "Pillow": all_by(plainly)}, 5)
    mine, theirs = (1e3 * times[name].median / len(files) for name in ("read_image", "Pillow"))
    print(f"\nreading a file: {mine:.2f} ms with all checks, {theirs:.2f} ms without")


@contextlib.contextmanager
def _announced(text: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    print(f"  ({text}: {time.perf_counter() - began:.0f} s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coco", type=Path, default=Path("../shared/data/coco_mini"))
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.coco.is_dir():
        parser.error(f"--coco: {args.coco} is not there")
    for workers in args.workers:
        with _announced(f"{workers} workers"):
            compare(args.coco, workers, args.rounds)
    mask_overlap(args.coco)
    early_ends(args.coco)


if __name__ == "__main__":
    main()
