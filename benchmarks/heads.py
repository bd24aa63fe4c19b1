"""Box and mask AP of every head on the generated scenes, from scratch, in equal time: the README's table.

    python benchmarks/heads.py                                  # six minutes a head
    python benchmarks/heads.py --heads fcos mask_rcnn --minutes 2 --options optim.lr=1e-3
    python benchmarks/heads.py --keep DIR                       # leaves the runs there

Two short runs say how long a step and the start take, and so how many steps the time is enough for; the schedule of the
rate ends with them. All else is `python train.py head=...`. AP is that of the last step.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import runs

HEADS = {  # name -> its options
    "mask2former": ("task=instance",),
    "maskformer": ("task=instance",),
    "mask_rcnn": ("task=instance",),
    "faster_rcnn": ("task=detection",),
    "retinanet": ("task=detection", "head.version=v2"),  # with norms, without which training from scratch is slow
    "fcos": ("task=detection",),
    "deformable_detr": ("task=detection", "neck=deformable_encoder"),
    "rt_detr": ("task=detection", "neck=hybrid_encoder"),
    "d_fine": ("task=detection", "neck=hybrid_encoder", "neck.fusion=elan"),
    "rf_detr": ("task=detection", "neck=scale_projector"),
}
AP = ("AP", "AP50")
SHORT = (40, 120)  # steps of the runs that measure
ROOM = 10  # seconds that are left over, should the machine become slower


def main() -> None:
    options = _parse()
    if options.keep:
        compare(options, options.keep)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--minutes", type=float, default=6.0, help="of each run, from start to end")
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE", help="of every run")
    parser.add_argument("--keep", type=Path, metavar="DIR")
    return parser.parse_args()


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Train all heads below `folder`, print the table."""
    print("| head | box AP | AP50 | mask AP | AP50 | steps | time |\n|---|---:|---:|---:|---:|---:|---:|", flush=True)
    train(folder / "first", 1, [])  # draws the scenes, which would count for the first head
    for head in options.heads:
        more = [f"head={head}", *HEADS[head], *options.options]
        fewer, longer = (train(folder / f"{head}_{steps}", steps, more)[1] for steps in SHORT)
        step = (longer - fewer) / (SHORT[1] - SHORT[0])
        steps = int((60 * options.minutes - ROOM - (fewer - SHORT[0] * step)) / step)
        if steps < 1:
            raise SystemExit(f"{head}: the start alone takes longer than {options.minutes:g} minutes; give --minutes")
        metrics, seconds = train(folder / head, steps, more)
        figures = [f"{metrics[kind][ap]:.3f}" if kind in metrics else "" for kind in ("bbox", "segm") for ap in AP]
        print(f"| `{' '.join(more)}` | {' | '.join(figures)} | {steps} | {seconds / 60:.1f} min |", flush=True)


def train(run_dir: Path, steps: int, options: list[str]) -> tuple[dict[str, Any], float]:
    """One run of train.py: its metrics, its seconds."""
    start = time.perf_counter()
    metrics = runs.train(run_dir, steps, *options)
    return metrics, time.perf_counter() - start


if __name__ == "__main__":
    main()
