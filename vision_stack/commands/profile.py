"""Profile: `vision-stack profile [DIR] [images=64] [TRAIN OPTIONS]` says whether the model waits for data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vision_stack.commands.arguments import quote_paths, recipe_for_weights
from vision_stack.commands.composing import Composition, compose_options
from vision_stack.commands.errors import OneLineErrors
from vision_stack.commands.plugins import import_plugins, offer_plugins
from vision_stack.commands.words import understand

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
        images, words = "64", []
        for word in argv:
            name, equals, value = word.lstrip("-").partition("=")
            if equals and name == "images":
                images = value
            elif Path(word).expanduser().exists() and not equals:
                words.append(f"data={word}")
            else:
                words.append(word)
        if not images.isdecimal() or not int(images):
            raise ValueError(f"images={images}: expected a number of images, at least 1")
        options = understand("train", words).options
        offer_plugins(options)
        overrides = recipe_for_weights(options)
        config, _ = compose_options(Composition("train", ["run_dir=outputs", *quote_paths(overrides)]))
        import_plugins(config["plugins"])
        from vision_stack.training.data_profile import profile

        print("\n".join(profile(config, int(images), overrides)))
    return errors.exit_code
