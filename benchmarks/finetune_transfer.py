"""Mask AP by step budget: fine-tuned from a published directory, and trained from scratch.

    python benchmarks/finetune_transfer.py                                  # minutes on two cores
    python benchmarks/finetune_transfer.py --budgets 50 150 --pretraining-steps 300 --images 100 --seed 3
    python benchmarks/finetune_transfer.py --keep DIR                       # leaves data, runs and weights there

A small Mask2Former is trained on generated scenes whose classes have other names, and written as transformers writes
its models. For each budget, two models of that architecture are trained on scenes of another seed, with the same
options: one starts from that directory (weights=), the other at random. Since no class is known by its name, the class
head starts at random in both. AP is that of the last step.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import runs

from vision_stack.data.configs import ShapesDataConfig

OTHER_NAMES = {"ellipse": "blob", "rectangle": "tile", "triangle": "wedge", "ring": "hoop"}
ARCHITECTURE = (
    "backbone=tiny",
    "backbone.out_strides=[4,8,16,32]",
    "neck=ms_deform",
    "neck.mask_channels=64",
    "neck.num_encoder_layers=2",
    "neck.num_heads=4",  # as the head's, which transformers has one number for
    "neck.ffn_dim=128",
    "head.mask_feature_pos_embed=false",  # which transformers does not have
)


def main() -> None:
    options = _parse()
    if options.keep:
        compare(options, options.keep)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", nargs="+", type=int, default=[100, 200, 400], help="steps")
    parser.add_argument("--pretraining-steps", type=int, default=600)
    parser.add_argument("--pretraining-images", type=int, default=1200)
    parser.add_argument("--images", type=int, default=200, help="to train on, for each budget")
    parser.add_argument("--val-images", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of scenes and runs; the pretraining's is one higher")
    parser.add_argument("--keep", type=Path, metavar="DIR")
    return parser.parse_args()


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Train all models below `folder`, print the table."""
    folder = folder.resolve()
    published = publish(options, folder)
    data = data_options(folder, options.seed, options.images, options.val_images)
    print(f"\n{'steps':>8} {'from scratch':>14} {'fine-tuned':>12} {'difference':>12}")
    better = 0
    for steps in options.budgets:
        scratch = train(folder / f"scratch_{steps}", steps, options.seed, *data, *ARCHITECTURE)
        tuned = train(folder / f"tuned_{steps}", steps, options.seed, *data, f"weights={published}")
        better += tuned > scratch
        print(f"{steps:8d} {scratch:14.3f} {tuned:12.3f} {tuned - scratch:+12.3f}", flush=True)
    of_all = f"{better} of {len(options.budgets)} budgets"
    print(f"\nmask AP on {options.val_images} scenes; fine-tuning is better at {of_all}")


def publish(options: argparse.Namespace, folder: Path) -> Path:
    """Train on scenes with other class names; the directory for transformers."""
    seed, steps = options.seed + 1, options.pretraining_steps
    sizes = {"num_train": options.pretraining_images, "num_val": options.val_images}
    rename_classes(ShapesDataConfig(root=str(folder / "shapes"), seed=seed, **sizes).folder())
    data = data_options(folder, seed, *sizes.values())
    start = time.perf_counter()
    ap = train(folder / "pretraining", steps, seed, *data, *ARCHITECTURE)
    published = folder / "published"
    runs.run("-m", "vision_stack", "to-transformers", folder / "pretraining" / "checkpoints" / "best.ckpt", published)
    names = json.loads((published / "config.json").read_text())["id2label"]
    print(
        f"pretraining: {steps} steps on {options.pretraining_images} scenes of {', '.join(names.values())}; "
        f"mask AP {ap:.3f} there; {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    return published


def rename_classes(folder: Path) -> None:
    """Give the generated data set other class names, in the files that are read for instances."""
    for file in (folder / "annotations").glob("instances_*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        for category in content["categories"]:
            category["name"] = OTHER_NAMES.get(category["name"], category["name"])
        file.write_text(json.dumps(content), encoding="utf-8")


def data_options(folder: Path, seed: int, num_train: int, num_val: int) -> tuple[str, ...]:
    sizes = f"data.num_train={num_train}", f"data.num_val={num_val}"
    return "data=shapes", f"data.root={folder / 'shapes'}", f"data.seed={seed}", *sizes


def train(run_dir: Path, steps: int, seed: int, *options: str) -> float:
    """One run of train.py; its mask AP."""
    return runs.train(run_dir, steps, f"seed={seed}", *options)["segm"]["AP"]


if __name__ == "__main__":
    main()
