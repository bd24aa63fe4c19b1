"""Plain dicts in, checked dataclasses out: one registry, one decoder.

A module is described by a frozen, keyword-only dataclass that derives from `Config` and is registered under a kind
and a name. Hydra yaml, `config.json` and checkpoints all hold the same plain dicts, with the name under `type`;
`from_dict` turns them into dataclasses and `to_dict` back. Nothing here imports, evaluates or runs what a dict says.

    @register("neck", "fpn")
    @dataclass(frozen=True, kw_only=True)
    class FPNConfig(NeckConfig):
        channels: Count = 256
        def build(self, in_specs): ...

    from_dict({"type": "fpn", "channels": 128}, kind="neck")   # FPNConfig(channels=128)
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union

C = TypeVar("C", bound=type[Any])
MANY_NAMES = 24
MAX_ENTRIES = 100_000  # of a list, such as the classes of a model


def config_dir() -> Path:
    """The folder of the yaml files: inside an installed package (`vision_stack.configs`), at the top of a checkout."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


RENAMED = {  # options by what they were once called, which commands, checkpoints and config.json may still say
    "head.loss.semantic_weight": "head.loss.pixel_ce_weight",
    "head.mask_positions": "head.mask_feature_pos_embed",
}


class ConfigError(ValueError):
    """One line for the user: the full path of the option, what is wrong, what would be right."""


@dataclass(frozen=True)
class Range:
    """Closed interval for a number, used as `Annotated[int, Range(1, 100)]`."""

    low: float = -math.inf
    high: float = math.inf


Count = Annotated[int, Range(1, 100_000)]
Depth = Annotated[int, Range(0, 200)]
Layers = Annotated[int, Range(1, 200)]
Fraction = Annotated[float, Range(0.0, 1.0)]
NonNegative = Annotated[float, Range(0.0, math.inf)]
Positive = Annotated[float, Range(1e-6)]


class Config:
    """Base of every config: its fields are checked against their annotations, in Python as from a dict.

    No dataclass itself, since Python lets nothing but frozen dataclasses derive from a frozen one.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    kind: ClassVar[str] = ""  # "backbone", "neck", "head", ... for configs that are chosen by a `type`
    type: ClassVar[str] = ""  # set by `register`

    def __post_init__(self) -> None:
        for name, hint in _field_hints(type(self)).items():
            value = getattr(self, name)
            decoded = _decode(value, hint, name)
            if decoded is not value:
                object.__setattr__(self, name, decoded)
        self.check()

    def check(self) -> None:
        """For subclasses: raise `ConfigError("field: what is wrong; what would be right")` where fields disagree."""


_REPR = reprlib.Repr()  # bounded: lists within lists that are all the same one take no memory until they are written
_REPR.maxlevel = 4
_REPR.maxtuple = _REPR.maxlist = _REPR.maxdict = 12
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 200

_REGISTRY: dict[str, dict[str, type[Config]]] = {}
_HINTS: dict[type[Config], dict[str, Any]] = {}  # annotations of each config's fields, resolved once


def register(kind: str, name: str) -> Callable[[C], C]:
    """Class decorator: make a `Config` dataclass available as `type: name` among the configs of `kind`.

    Raises:
        ValueError: the class is no `Config` dataclass, or another class has that name already.
    """

    def decorate(cls: C) -> C:
        if not (dataclasses.is_dataclass(cls) and issubclass(cls, Config)):
            raise ValueError(f"register({kind!r}, {name!r}) needs a dataclass that derives from Config, got {cls!r}")
        known = _REGISTRY.setdefault(kind, {})
        other = known.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"{kind} {name!r} is registered already, by {other.__module__}.{other.__qualname__}")
        known[name] = cls
        cls.type = name
        return cls

    return decorate


def registered(kind: str) -> dict[str, type[Config]]:
    """The configs of a kind by name, sorted."""
    return dict(sorted(_REGISTRY.get(kind, {}).items()))


def from_dict(data: Any, kind: str = "", *, cls: type[Config] | None = None, path: str = "") -> Any:
    """Decode a plain dict into the `Config` that its `type` names, or into `cls` where the class is known.

    Args:
        data: mapping of plain values. With `kind`, its key `type` chooses among the registered configs.
        kind: "backbone", "neck", "head", ...
        cls: a `Config` class, for configs that have no `type`.
        path: where the dict is in the whole, for error messages; defaults to `kind`.

    Raises:
        ConfigError: unknown option, wrong type, value out of range or not among the choices, missing or unknown `type`.
    """
    path = path or kind
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path or 'config'}: expected a mapping of options, got {_show(data)}")
    data = dict(data)
    if cls is None:
        cls = _class_of(data, kind, path)
    elif cls.type and "type" in data and data.pop("type") != cls.type:  # a known class may be named
        raise ConfigError(f"{_join(path, 'type')}: expected {cls.type!r}")
    hints = _field_hints(cls)
    for old, new in ((old.rpartition(".")[2], new.rpartition(".")[2]) for old, new in RENAMED.items()):
        if old in data and old not in hints and new in hints:
            if new in data:
                raise ConfigError(
                    f"{_join(path, old)}: is now called {new}, which is given, too; leave out one of them"
                )
            data[new] = data.pop(old)
    for key in data:
        if key not in hints:
            name = _text(key)[:60]
            raise ConfigError(f"{_join(path, name)}: unknown option; {suggest(name, hints)}")
    values = {key: _decode(value, hints[key], _join(path, key)) for key, value in data.items()}
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            raise ConfigError(f"{_join(path, field.name)}: missing; it has no default")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(_join(path, str(error))) from None


def to_dict(value: Any) -> Any:
    """Plain dicts, lists, numbers and strings: what `from_dict`, json and yaml take. Inverse of `from_dict`."""
    if isinstance(value, Config):
        plain = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": value.type, **plain} if value.type else plain
    if isinstance(value, Mapping):
        return {str(key): to_dict(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_dict(item) for item in value]
    return value


def _class_of(data: dict[str, Any], kind: str, path: str) -> type[Config]:
    known = registered(kind)
    name = data.pop("type", None)
    choices = ", ".join(known) or "none registered"
    if name is None:
        raise ConfigError(f"{_join(path, 'type')}: missing; choose one of: {choices}")
    if not isinstance(name, str):
        raise ConfigError(f"{_join(path, 'type')}: expected a name, got {_show(name)}; choose one of: {choices}")
    if name not in known:
        own = f"a {kind} of your own needs plugins=[ITS.MODULE] on the command line"
        raise ConfigError(f"{_join(path, 'type')}: unknown {kind} {_show(name)}; {suggest(name, known)}; {own}")
    return known[name]


def _field_hints(cls: type[Config]) -> dict[str, Any]:
    if cls not in _HINTS:
        hints = typing.get_type_hints(cls, include_extras=True)
        _HINTS[cls] = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    return _HINTS[cls]


def _decode(value: Any, hint: Any, path: str) -> Any:
    """`value` as its annotation wants it (lists become tuples, ints floats), or ConfigError with the path."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        decoded = _decode(value, args[0], path)
        for limit in args[1:]:
            if isinstance(limit, Range) and decoded is not None and not limit.low <= decoded <= limit.high:
                raise ConfigError(f"{path}: {_show(value)} is outside {_interval(limit)}")
        return decoded
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in args):
            known = [str(a) for a in args]
            raise ConfigError(f"{path}: {_show(value)} is not a choice; {suggest(_text(value), known)}")
        return value
    if origin in (Union, types.UnionType):
        return _decode_union(value, args, path)
    if origin is tuple:
        return _decode_tuple(value, args, path)
    if origin is list:
        _expect_list(value, path)
        return [_decode(item, args[0], f"{path}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        _expect(isinstance(value, Mapping), path, "a mapping", value)
        return {_decode(k, args[0], path): _decode(v, args[1], _join(path, str(k))) for k, v in value.items()}
    if isinstance(hint, type) and issubclass(hint, Config):
        if isinstance(value, hint):
            return value
        if isinstance(value, Config):
            raise ConfigError(f"{path}: expected a {hint.__name__}, got a {value.__class__.__name__}")
        return from_dict(value, hint.kind, path=path) if hint.kind else from_dict(value, cls=hint, path=path)
    return _decode_scalar(value, hint, path)


def _decode_scalar(value: Any, hint: Any, path: str) -> Any:
    if hint in (None, type(None)):
        _expect(value is None, path, "null", value)
    elif hint is bool:
        _expect(isinstance(value, bool), path, "true or false", value)
    elif hint is int:
        _expect(isinstance(value, int) and not isinstance(value, bool), path, "a whole number", value)
    elif hint is float:
        try:
            number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        except OverflowError:  # of a whole number with more than 308 digits
            number = math.nan
        _expect(not math.isnan(number), path, "a number", value)
        return number
    elif hint is str:
        _expect(isinstance(value, str), path, "a string", value)
    else:
        raise TypeError(f"{path}: annotation {hint!r} is not supported in a config")
    return value


def _decode_union(value: Any, choices: tuple[Any, ...], path: str) -> Any:
    if value is None and type(None) in choices:
        return None
    problems = []
    for choice in choices:
        if choice is type(None):
            continue
        try:
            return _decode(value, choice, path)
        except ConfigError as error:
            problems.append(str(error))
    if isinstance(value, int | float):  # a mapping is not what was meant
        problems = [problem for problem in problems if "expected a mapping" not in problem] or problems
    raise ConfigError("; or ".join(problems))


def _decode_tuple(value: Any, args: tuple[Any, ...], path: str) -> tuple[Any, ...]:
    _expect_list(value, path)
    if len(args) == 2 and args[1] is Ellipsis:
        decoded = tuple(_decode(item, args[0], f"{path}[{i}]") for i, item in enumerate(value))
    else:
        _expect(len(value) == len(args), path, f"a list of {len(args)} values", value)
        decoded = tuple(_decode(v, a, f"{path}[{i}]") for i, (v, a) in enumerate(zip(value, args, strict=True)))
    same = isinstance(value, tuple) and all(a is b for a, b in zip(value, decoded, strict=True))
    return value if same else decoded


def _expect(ok: bool, path: str, wanted: str, value: Any) -> None:
    if not ok:
        raise ConfigError(f"{path}: expected {wanted}, got {_show(value)}")


def _expect_list(value: Any, path: str) -> None:
    _expect(isinstance(value, tuple | list), path, "a list", value)
    if len(value) > MAX_ENTRIES:
        raise ConfigError(f"{path}: {len(value):,} entries; at most {MAX_ENTRIES:,} are possible")


def _show(value: Any) -> str:
    text = _REPR.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _show(value)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _interval(limit: Range) -> str:
    if limit.high == math.inf:
        return f"the allowed range: at least {limit.low:g}"
    return f"the allowed range {limit.low:g} to {limit.high:g}"


def suggest(name: str, known: Iterable[str]) -> str:
    """What to choose instead of an unknown name: the one that was probably meant, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(names[:MANY_NAMES]) + (f" ... ({len(names)} in all)" if len(names) > MANY_NAMES else "")
    return f"choose one of: {shown}" if names else "there are no options here"
