"""Write a detector as a state dict for torchvision: `vision-stack to-torchvision SOURCE FILE`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vision_stack.commands.errors import OneLineErrors


def main(argv: Sequence[str]) -> int:
    """Exit code 0, or 2 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(
        prog="vision-stack to-torchvision", description="Write a detector for torchvision."
    )
    parser.add_argument("source", help="a training checkpoint, or a directory that save_pretrained wrote")
    parser.add_argument("file", type=Path, help="where the state dict goes")
    options = parser.parse_args(argv)
    errors = OneLineErrors()
    with errors:
        from vision_stack.model import VisionModel

        built = VisionModel.from_pretrained(options.source).export_torchvision(options.file)
        print(f"wrote {options.file}; load_state_dict takes it in\n{built}")
    return errors.exit_code
