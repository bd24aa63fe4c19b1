"""The registry and the decoder: every mistake gives one line with the full path and a suggestion."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import pytest

import vision_stack.heads  # noqa: F401  registers them
from vision_stack.commands.option_docs import known_options
from vision_stack.config import (
    RENAMED,
    Config,
    ConfigError,
    Count,
    Fraction,
    Range,
    from_dict,
    register,
    registered,
    to_dict,
)


@dataclass(frozen=True, kw_only=True)
class Part(Config):
    kind: ClassVar[str] = "test_part"


@dataclass(frozen=True, kw_only=True)
class Inner(Config):
    weight: float = 1.0


@register("test_part", "wheel")
@dataclass(frozen=True, kw_only=True)
class Wheel(Part):
    channels: Count = 64
    rate: Fraction = 0.1
    norm: Literal["batch", "group"] = "group"
    sizes: tuple[int, ...] | None = None
    pair: tuple[int, int] = (1, 2)
    switch: bool = False
    source: bool | str = False
    inner: Inner = Inner()


@register("test_part", "axle")
@dataclass(frozen=True, kw_only=True)
class Axle(Part):
    length: Annotated[float, Range(0.5, 2.0)]


@dataclass(frozen=True, kw_only=True)
class Car(Config):
    part: Part
    parts: tuple[Part, ...] = ()


def test_from_dict_valid_round_trips() -> None:
    config = Car(part=Wheel(sizes=(3, 4), source="x"), parts=(Axle(length=1), Wheel()))
    plain = to_dict(config)
    assert plain["part"]["type"] == "wheel"
    assert plain["parts"][0] == {"type": "axle", "length": 1.0}
    assert from_dict(plain, cls=Car) == config


def test_from_dict_lists_and_ints_become_what_the_field_says() -> None:
    wheel = from_dict({"type": "wheel", "sizes": [1, 2], "inner": {"weight": 3}}, "test_part")
    assert wheel.sizes == (1, 2)
    assert isinstance(wheel.inner.weight, float)


def test_number_outside_a_range_is_not_told_of_mappings() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Limits(Config):
        threshold: Annotated[float, Range(0, 1)] | dict[str, float] | None = None

    with pytest.raises(ConfigError) as error:
        Limits(threshold=2)
    assert str(error.value) == "threshold: 2 is outside the allowed range 0 to 1"


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({}, "test_part.type: missing; choose one of: axle, wheel"),
        ({"type": "weel"}, "test_part.type: unknown test_part 'weel'; did you mean 'wheel'?"),
        ({"type": 3}, "test_part.type: expected a name, got 3; choose one of: axle, wheel"),
        ({"type": "wheel", "chanels": 3}, "test_part.chanels: unknown option; did you mean 'channels'?"),
        ({"type": "wheel", "channels": 0}, "test_part.channels: 0 is outside the allowed range 1 to 100000"),
        ({"type": "wheel", "channels": True}, "test_part.channels: expected a whole number, got True"),
        ({"type": "wheel", "channels": 2.5}, "test_part.channels: expected a whole number, got 2.5"),
        ({"type": "wheel", "rate": 1.5}, "test_part.rate: 1.5 is outside the allowed range 0 to 1"),
        ({"type": "wheel", "rate": float("nan")}, "test_part.rate: expected a number, got nan"),
        ({"type": "wheel", "norm": "grop"}, "test_part.norm: 'grop' is not a choice; did you mean 'group'?"),
        ({"type": "wheel", "sizes": [1, "a"]}, "test_part.sizes[1]: expected a whole number, got 'a'"),
        ({"type": "wheel", "sizes": 4}, "test_part.sizes: expected a list, got 4"),
        ({"type": "wheel", "pair": [1]}, "test_part.pair: expected a list of 2 values, got [1]"),
        ({"type": "wheel", "switch": 1}, "test_part.switch: expected true or false, got 1"),
        (
            {"type": "wheel", "source": 1},
            "test_part.source: expected true or false, got 1; or test_part.source: expected a string, got 1",
        ),
        ({"type": "wheel", "inner": {"wight": 1}}, "test_part.inner.wight: unknown option; did you mean 'weight'?"),
        ({"type": "wheel", "inner": 1}, "test_part.inner: expected a mapping of options, got 1"),
        ({"type": "wheel", "_target_": "os.system"}, "test_part._target_: unknown option; choose one of: channels"),
        ({"type": "axle"}, "test_part.length: missing; it has no default"),
        ("wheel", "test_part: expected a mapping of options, got 'wheel'"),
        (None, "test_part: expected a mapping of options, got None"),
    ],
)
def test_from_dict_bad_value_gives_one_line_with_path(data: object, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(data, "test_part")
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_from_dict_nested_error_has_full_path() -> None:
    with pytest.raises(ConfigError, match=r"^model\.parts\[1\]\.channels: expected a whole number"):
        from_dict(
            {"part": {"type": "wheel"}, "parts": [{"type": "wheel"}, {"type": "wheel", "channels": "x"}]},
            cls=Car,
            path="model",
        )


def test_python_construction_is_checked_too() -> None:
    with pytest.raises(ConfigError, match="channels: expected a whole number, got 'many'"):
        Wheel(channels="many")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="part: expected a Part, got a Inner"):
        Car(part=Inner())  # type: ignore[arg-type]


def test_configs_are_frozen_and_keyword_only() -> None:
    with pytest.raises(AttributeError):
        Wheel().channels = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Wheel(3)  # type: ignore[misc]


def test_register_refuses_a_second_class_of_the_same_name() -> None:
    with pytest.raises(ValueError, match="registered already"):

        @register("test_part", "wheel")
        @dataclass(frozen=True, kw_only=True)
        class Other(Part):
            pass

    with pytest.raises(ValueError, match="needs a dataclass"):
        register("test_part", "thing")(object)
    assert list(registered("test_part")) == ["axle", "wheel"]


def test_options_by_their_old_names_are_decoded_and_both_names_refused() -> None:
    head = from_dict({"type": "mask2former", "mask_positions": True, "loss": {"semantic_weight": 4.0}}, kind="head")
    assert head.mask_feature_pos_embed is True
    assert head.loss.pixel_ce_weight == 4.0
    assert "mask_positions" not in to_dict(head)
    both = {"type": "maskformer", "mask_positions": True, "mask_feature_pos_embed": False}
    with pytest.raises(
        ConfigError, match=r"^head\.mask_positions: is now called mask_feature_pos_embed, .* leave out one"
    ):
        from_dict(both, kind="head")
    with pytest.raises(ConfigError, match=r"^head\.mask_positions: unknown option"):
        from_dict({"type": "mask_rcnn", "mask_positions": True}, kind="head")


def test_every_old_name_stands_for_an_option_of_today() -> None:
    known = known_options("train")
    assert all(new in known and old not in known for old, new in RENAMED.items())
