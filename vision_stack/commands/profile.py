"""Profile: `vision-stack profile [DIR] [images=64] [TRAIN OPTIONS]` says whether the model waits for data."""

from __future__ import annotations

from collections.abc import Sequence

from vision_stack.commands.errors import OneLineErrors
from vision_stack.commands.like_train import compose_like_train, take_own

HELP = """\
Measure what training would wait for, data or model, without training.

  vision-stack profile DIR                        a data set
  vision-stack profile DIR head=mask2former data.num_workers=4

Options:
  images=64  how many images are timed in detail: decoding, affine, masks, collating
All others are those of `vision-stack train`."""


def main(argv: Sequence[str]) -> int:
    """Exit code 0, or 2 after one line that says what is wrong."""
    if {"-h", "--help"} & set(argv):
        print(HELP)
        return 0
    errors = OneLineErrors()
    with errors:
        own = {"images": "64"}
        words, images = take_own(argv, own), own["images"]
        if not images.isdecimal() or not int(images):
            raise ValueError(f"images={images}: expected a number of images, at least 1")
        config, overrides = compose_like_train(words)
        from vision_stack.training.data_profile import profile

        print("\n".join(profile(config, int(images), overrides)))
    return errors.exit_code
