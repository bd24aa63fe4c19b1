"""Defaults that depend on other fields follow them: what somebody gives is never refused for what nobody gave."""

import dataclasses
import typing

import pytest
import transformers

from vision_stack.backbones.config_json import transformers_families
from vision_stack.backbones.meta import on_meta
from vision_stack.config import ConfigError, from_dict, to_dict

FAMILIES = pytest.mark.parametrize("family", transformers_families())
NUMBERS = (1, 2, 3, 4, 7, 8, 12, 14, 16, 32, 40, 64, 96, 100, 128, 192, 256, 320, 384, 1024)
SELECTION = ("out_features", "out_indices", "out_strides", "image_mean", "image_std")


def values(hint):
    """Some values that the annotation of a field allows."""
    text = str(hint)
    if text.startswith("tuple[bool"):
        return [(False,) * n for n in range(1, 7)]
    if text.startswith("tuple"):
        return (
            [(3,) * n for n in range(1, 7)]
            + [(8,) * n for n in range(1, 7)]
            + [(16, 32, 64), (1, 2, 4), (2, 2, 18, 2), (4, 8, 16, 32)]
        )
    if hint is bool:
        return [False, True]
    low_high = typing.get_args(hint)
    if low_high and low_high[0] is float:
        return [0.1, 0.5, 1.0]
    return [n for n in NUMBERS if low_high and low_high[1].low <= n <= low_high[1].high]


@FAMILIES
def test_family_field_given_alone_is_not_refused_for_the_default_of_another(family):
    cls = transformers_families()[family]
    hints = typing.get_type_hints(cls, include_extras=True)
    refused = []
    for name in {field.name for field in dataclasses.fields(cls)} - {*SELECTION, "layer_type"}:
        errors = [refusal(cls, {name: value}) for value in values(hints[name])]
        assert None in errors, name
        refused += [error for error in errors if error is not None and name not in error]
    assert refused == []


def refusal(cls, options):
    try:
        cls(**options)
    except ConfigError as error:
        return str(error)
    return None


@FAMILIES
def test_family_defaults_are_those_of_transformers(family):
    cls = transformers_families()[family]
    theirs = transformers.AutoConfig.for_model(family).to_dict()
    ours = {**to_dict(cls()), **cls.required}
    shared = (ours.keys() & theirs.keys()) - set(SELECTION)
    plain = {name: list(theirs[name]) if isinstance(theirs[name], tuple) else theirs[name] for name in shared}
    assert {name: ours[name] for name in shared} == plain


# fmt: off
FOLLOWING = [
    ("swinv2", {"depths": (1, 2, 1), "num_heads": (2, 2, 4), "embed_dim": 16}, {"pretrained_window_sizes": (0, 0, 0)}),
    ("swinv2", {"depths": (1, 1)}, {"num_heads": (3, 6), "pretrained_window_sizes": (0, 0)}),
    ("swinv2", {"pretrained_window_sizes": (8, 8, 8, 4)}, {"depths": (2, 2, 6, 2)}),
    ("swin", {"depths": (1,) * 5}, {"num_heads": (3, 6, 12, 24, 48)}),
    ("swin", {"num_heads": (1, 2, 4)}, {"depths": (2, 2, 6)}),
    ("swin", {"embed_dim": 128}, {"num_heads": (4, 8, 16, 32)}),  # Swin-B
    ("swin", {"embed_dim": 192}, {"num_heads": (3, 6, 12, 24)}),  # transformers' default, which divides
    ("resnet", {"depths": (2, 2)}, {"hidden_sizes": (256, 512)}),
    ("resnet", {"hidden_sizes": (16, 32, 64)}, {"depths": (3, 4, 6)}),
    ("vit", {"hidden_size": 1024}, {"num_attention_heads": 16}),  # ViT-L
    ("vit", {"hidden_size": 192}, {"num_attention_heads": 12}),
    ("dinov2", {"patch_size": 256}, {"image_size": 256}),
    ("dinov3_vit", {"hidden_size": 1024}, {"num_attention_heads": 16}),
    ("dinov3_vit", {"hidden_size": 60}, {"num_attention_heads": 1}),  # six heads: 10 channels, no multiple of 4
]
# fmt: on


@pytest.mark.parametrize(("family", "given", "followed"), FOLLOWING)
def test_family_defaults_follow_what_is_given_from_python_yaml_and_json(family, given, followed):
    cls = transformers_families()[family]
    config = cls(**given)
    assert {name: getattr(config, name) for name in followed} == followed
    from_yaml = {**to_dict(cls()), **given, **dict.fromkeys(SELECTION[:3])}  # a file lists every default
    assert from_dict(from_yaml, "backbone") == config
    theirs = {**transformers.AutoConfig.for_model(family).to_dict(), **dict.fromkeys(SELECTION[:3]), **given}
    assert cls.from_transformers(theirs) == config
    assert from_dict(to_dict(config), "backbone") == config
    with on_meta():
        config.build()


def test_family_lists_of_other_lengths_that_were_both_given_are_refused():
    with pytest.raises(ConfigError, match=r"num_heads: \[1, 2, 4\] and depths \[1, 1\] must have one entry per stage"):
        transformers_families()["swin"](depths=(1, 1), num_heads=(1, 2, 4))
    with pytest.raises(ConfigError, match=r"pretrained_window_sizes: \[8, 8, 8\] and depths \[1, 1\] must have one"):
        transformers_families()["swinv2"](depths=(1, 1), pretrained_window_sizes=(8, 8, 8))
