"""List the backbones: `python -m vision_stack.backbones [FILTER] [--timm]`."""

from __future__ import annotations

import argparse
import sys
import warnings

from vision_stack.backbones.listing import print_backbones


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m vision_stack.backbones", description="List the backbones.")
    parser.add_argument("filter", nargs="?", default="", help="a part of the name, or a pattern such as 'swin*'")
    parser.add_argument("--timm", action="store_true", help="models of timm that have no yaml as well")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    return 0 if print_backbones(options.filter, timm_models=options.timm) else 1


if __name__ == "__main__":
    sys.exit(main())
