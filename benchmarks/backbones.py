"""Backbones: every family of timm, and the speed of ResNet-50 and Swin-T against transformers' own.

    python benchmarks/backbones.py                                   # everything; the largest models take minutes each
    python benchmarks/backbones.py --parts coverage --only swin vit  # some of timm's modules
    python benchmarks/backbones.py --parts timing --rounds 9
    python benchmarks/backbones.py --update-list                     # after an update of timm

Coverage: one small model of each timm module (`timm_families.json`), at its native size and at 250 x 333. Timing: see
`backbone_peers.py`. Ratios are transformers / vision_stack; more than 1 means that vision_stack is faster.
"""

from __future__ import annotations

import argparse
import warnings

import torch
from timm_coverage import ODD_SIZE, Family, Outcome, families, measure, native_size, update_list

from vision_stack.training.allocator import keep_freed_memory


def main() -> None:
    options = _parse()
    if options.update_list:
        update_list()
        return
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, freed memory kept: {keep_freed_memory()}")
    if "coverage" in options.parts:
        with warnings.catch_warnings(action="ignore"):
            print_coverage([f for f in families() if not options.only or any(o in f.module for o in options.only)])
    if "timing" in options.parts:
        from backbone_peers import compare  # which needs transformers

        compare(options.rounds, options.size)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["coverage", "timing"], default=["coverage", "timing"])
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="timm modules whose names contain it")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", type=int, default=512, help="pixels of the square images that are timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--update-list", action="store_true", help="bring timm_families.json up to date, and stop")
    return parser.parse_args()


def print_coverage(chosen: list[Family]) -> None:
    """A row per family, the share of those that are as declared, and why the others are not."""
    odd_name = "{} x {}".format(*ODD_SIZE)
    print(f"\n{'timm module':26s}{'model':34s}{'native':>11s}{'M param.':>9s}{'GFLOP':>8s}{'ms':>7s}{odd_name:>16s}")
    rows: list[tuple[Family, Outcome, Outcome]] = []
    for family in chosen:
        height, width = native_size(family.model)
        native, odd = measure(family, (height, width)), measure(family, ODD_SIZE)
        rows.append((family, native, odd))
        line = f"{family.module:26s}{family.model:34s}{f'{height} x {width}':>11s}{native.parameters / 1e6:9.1f}"
        line += f"{native.flops / 1e9:8.2f}{1e3 * native.seconds:7.0f}{1e3 * odd.seconds:13.0f} ms"
        print(line + (f"  img_size {list(family.img_size)}" if family.img_size else ""), flush=True)
    for title, problems in (
        ("native size", [(family, native.problem) for family, native, _ in rows]),
        (odd_name, [(family, odd.problem) for family, _, odd in rows]),
    ):
        good = sum(not problem for _, problem in problems)
        print(f"\n{title}: {good} of {len(rows)} families as declared ({good / max(len(rows), 1):.1%})")
        for family, problem in problems:
            if problem:
                print(f"  {family.module} ({family.model}): {problem}")
    built = sum(not odd.problem and family.img_size is not None for family, _, odd in rows)
    print(f"\n{built} of those at {odd_name} were built with the img_size shown; all others take any size as they are.")


if __name__ == "__main__":
    main()
