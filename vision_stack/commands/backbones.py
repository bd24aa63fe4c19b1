"""List the backbones: `vision-stack backbones [FILTER] [--timm]`."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Exit code 0, or 1 if no backbone matches."""
    parser = argparse.ArgumentParser(prog="vision-stack backbones", description="List the backbones.")
    parser.add_argument("filter", nargs="?", default="", help="a part of the name, or a pattern such as 'swin*'")
    parser.add_argument("--timm", action="store_true", help="also list timm models that have no yaml here")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    from vision_stack.backbones.listing import print_backbones

    return 0 if print_backbones(options.filter, timm_models=options.timm) else 1
