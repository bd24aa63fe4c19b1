"""Verbs that take the options of `vision-stack train` and a few of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vision_stack.commands.arguments import quote_paths, recipe_for_weights
from vision_stack.commands.composing import Composition, compose_options
from vision_stack.commands.plugins import import_plugins, offer_plugins
from vision_stack.commands.words import understand


def take_own(argv: Sequence[str], own: dict[str, str]) -> list[str]:
    """Put the values of a verb's own options into `own`; the other words, a folder or file as `data=`."""
    words = []
    for word in argv:
        name, equals, value = word.lstrip("-").partition("=")
        if equals and name in own:
            own[name] = value
        elif Path(word).expanduser().exists() and not equals:
            words.append(f"data={word}")
        else:
            words.append(word)
    return words


def compose_like_train(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The plain options of `train` for these words, with plugins imported, and what was typed.

    Raises:
        ValueError: a word that `train` does not understand; one line.
    """
    options = understand("train", words).options
    offer_plugins(options)
    overrides = recipe_for_weights(options)
    config, _ = compose_options(Composition("train", ["run_dir=outputs", *quote_paths(overrides)]))
    import_plugins(config["plugins"])
    return config, overrides
