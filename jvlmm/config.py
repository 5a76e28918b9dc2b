"""Strict options: dotted overrides of nested frozen dataclasses, and their JSON form.

    config = apply_overrides(recipe, ["sft.steps=100", "model.text.rope_theta=1e6", "lora=none"])

A value is parsed by the type of its field, never evaluated. A path segment may select an element of a tuple by the
element's `name`, and the tuple's own field may be left out: `sft.steps` and `stages.sft.steps` are the same option.
An element without a name is selected by its number: `sft.sources.0.path`.
"""

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from jvlmm.errors import ConfigError

T = TypeVar("T")

_NOT_FINITE = ("Infinity", "-Infinity", "NaN")
_TYPE_KEY = "_type"  # names the class of a value whose field admits several dataclasses


def apply_overrides(config: T, overrides: Sequence[str]) -> T:
    """A copy of the dataclass `config` with every `path=value` applied at once, so that checks see the final values.

    Raises ConfigError for an unknown path, a value of another type, or values the dataclass itself refuses.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        path, separator, text = override.partition("=")
        path = path.strip()
        if not separator or not path:
            raise ConfigError(f"override {override!r} is not of the form path=value; write for example seed=1")
        segments, annotation = _resolve(config, path)
        _insert(tree, segments, _Leaf(_parse_text(text, annotation, path)), path)
    return _rebuild(config, tree, "")


def to_dict(config: Any) -> Any:
    """Plain dicts, lists and scalars of a nested dataclass, in the order of its fields."""
    return _to_plain(config, type(config))


def to_json(config: Any) -> str:
    """Indented JSON of a nested dataclass; `from_json` reads it back to an equal object.

    Numbers that are not finite, which JSON cannot hold, stand as the texts "Infinity", "-Infinity" and "NaN".
    """
    return json.dumps(_spelt(to_dict(config)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_dict(cls: type[T], value: Mapping[str, Any]) -> T:
    """`cls` built from plain values. A missing key takes its default; an unknown key or type is a ConfigError."""
    return _from_plain(value, cls, "")


def check_types(config: Any, path: str) -> None:
    """Raise ConfigError for an option whose value is not of its type, as named below `path`."""
    _from_plain(to_dict(config), type(config), path)


def from_json(cls: type[T], text: str) -> T:
    """`from_dict` of JSON text; text that is not JSON is a ConfigError."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"the configuration is not valid JSON ({error}); write it with to_json") from None
    return from_dict(cls, value)


def config_diff(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (old value, new value) wherever two configurations differ; None stands for an absent option.

    Either side may be a dataclass or the dict read from its JSON.
    """
    flat_old, flat_new = dict(_flatten(_plain(old))), dict(_flatten(_plain(new)))
    paths = list(dict.fromkeys([*flat_old, *flat_new]))
    pairs = {path: (flat_old.get(path), flat_new.get(path)) for path in paths}
    return {path: (a, b) for path, (a, b) in pairs.items() if a != b or type(a) is not type(b)}


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """A parsed value in the tree of overrides, told apart from a branch even where it is a dict."""

    value: Any


# --- Paths ---------------------------------------------------------------------------------------------------------


def _resolve(config: Any, path: str) -> tuple[list[str], Any]:
    """The full segments of `path` (with the tuple fields it left out) and the annotation of the option it names."""
    node, annotation, resolved = config, type(config), []
    segments = path.split(".")
    for position, segment in enumerate(segments):
        node = _default_of(annotation) if node is None else node
        if dataclasses.is_dataclass(node):
            hints = typing.get_type_hints(type(node))
            if segment not in hints:
                holder = _holder_of(node, segment)
                if holder is None:
                    raise _unknown(config, ".".join(segments[: position + 1]), path, node, segment)
                resolved.append(holder)
                node = getattr(node, holder)
            else:
                annotation, node = hints[segment], getattr(node, segment)
                resolved.append(segment)
                continue
        if isinstance(node, tuple):
            element = next((e for key, e in _keyed(node) if key == segment), None)
            if element is None:
                raise _unknown(config, ".".join(segments[: position + 1]), path, node, segment)
            annotation, node = type(element), element
        elif isinstance(node, Mapping):
            annotation, node = (typing.get_args(annotation) or (str, Any))[1], node.get(segment)
        else:
            raise ConfigError(f"option {path!r}: {'.'.join(segments[:position])!r} is a single value, it has no fields")
        resolved.append(segment)
    return resolved, annotation


def _keyed(elements: tuple[Any, ...]) -> list[tuple[str, Any]]:
    """The groups of options in a tuple with what selects each in a path: its name, or its number where it has none."""
    groups = [(number, e) for number, e in enumerate(elements) if dataclasses.is_dataclass(e)]
    return [(getattr(e, "name", "") or str(number), e) for number, e in groups]


def _holder_of(node: Any, name: str) -> str | None:
    """The tuple field of dataclass `node` that has an element of this name."""
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if isinstance(value, tuple) and any(getattr(element, "name", None) == name for element in value):
            return field.name
    return None


def _default_of(annotation: Any) -> Any:
    """A default instance for an optional group of options that is None so far."""
    for member in _members(annotation):
        if dataclasses.is_dataclass(member):
            try:
                return member()
            except TypeError:
                return None
    return None


def _unknown(config: Any, prefix: str, path: str, node: Any, segment: str) -> ConfigError:
    if isinstance(node, tuple):
        valid = [key for key, _ in _keyed(node)]
        where = "no element of that name"
    else:
        valid = [f.name for f in dataclasses.fields(node)]
        where = f"{type(node).__name__} has no field {segment!r}"
    parent = prefix.rpartition(".")[0]
    near = [f"{parent}.{n}" if parent else n for n in difflib.get_close_matches(segment, valid, n=3, cutoff=0.6)]
    if not near:
        everywhere = [key for key, _ in _flatten(_plain(config))]
        tail = path.rpartition(".")[2]
        near = [k for k in everywhere if k.rpartition(".")[2] == tail][:3]
        near = near or difflib.get_close_matches(path, everywhere, n=3, cutoff=0.7)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "correct the name."
    return ConfigError(f"unknown option {path!r}: {where}; {hint} Valid here: {', '.join(valid) or 'nothing'}")


def _insert(tree: dict[str, Any], segments: list[str], leaf: _Leaf, path: str) -> None:
    for segment in segments[:-1]:
        tree = tree.setdefault(segment, {})
        if isinstance(tree, _Leaf):
            raise ConfigError(f"option {path!r} lies inside another override; give either the whole or its parts")
    if isinstance(tree.get(segments[-1]), dict):
        raise ConfigError(f"option {path!r} holds another override; give either the whole or its parts")
    tree[segments[-1]] = leaf


def _rebuild(node: Any, tree: Any, path: str, annotation: Any = None) -> Any:
    """`node` with the branch `tree` of overrides applied, rebuilding only what changes."""
    if isinstance(tree, _Leaf):
        return tree.value
    node = _default_of(annotation) if node is None else node
    if isinstance(node, tuple):
        keys = {id(element): key for key, element in _keyed(node) if key in tree}
        within = "" if "." not in path and not any(key.isdigit() for key in tree) else f"{path}."  # stages.sft is sft
        return tuple(_rebuild(e, tree[keys[id(e)]], f"{within}{keys[id(e)]}") if id(e) in keys else e for e in node)
    if isinstance(node, Mapping):
        return {**node, **{key: _rebuild(node.get(key), branch, f"{path}.{key}") for key, branch in tree.items()}}
    hints = typing.get_type_hints(type(node))
    changes = {k: _rebuild(getattr(node, k), b, f"{path}.{k}".lstrip("."), hints[k]) for k, b in tree.items()}
    if not changes:
        return node
    return _construct(lambda: dataclasses.replace(node, **changes), path, node)


def _construct(build: typing.Callable[[], T], path: str, group: Any) -> T:
    """Runs a constructor; what its own checks refuse becomes a ConfigError that names each option by its full path."""
    try:
        with naming_options(group, path):
            return build()
    except (TypeError, ValueError) as error:
        kind = group if isinstance(group, type) else type(group)
        raise ConfigError(f"{path or kind.__name__}: {error}") from None


# --- Names in messages ----------------------------------------------------------------------------------------------

# An option as a message names it: dotted, or a single name that stands before an equals sign.
_NAMED = re.compile(r"(?<![\w.'/-])(?:[a-z_]\w*(?:\.[a-z_]\w*)+(?![\w(/])|[a-z_]\w*(?= ?=(?!=)))")


@contextmanager
def naming_options(config: Any, path: str = "") -> Iterator[None]:
    """Completes the options that a ConfigError raised inside names, so that each can be typed as it stands.

    A group of options knows its fields and not where it stands: its check says `frames.fps=0`, or `warmup_steps = 500`.
    Below `path`, the place of the dataclass `config`, that becomes `sft.vision.frames.fps=0`. Of several options that
    end so the one with the shortest path is meant; names that fit no option, or several equally, stay as they are.
    """
    try:
        yield
    except ConfigError as error:
        paths = [f"{path}.{option}".lstrip(".") for option in _option_paths(config)]
        own = {field.name for field in dataclasses.fields(config)}
        text = _NAMED.sub(lambda match: _completed(match[0], paths, path, own), str(error))
        if text == str(error):
            raise
        raise type(error)(text) from error


def _completed(name: str, paths: Sequence[str], place: str, own: set[str]) -> str:
    """The full path of the option that a message calls `name`."""
    first, _, rest = name.partition(".")
    for tail in (name, rest if rest in own or first == place else ""):
        if not tail or tail in paths:
            return tail or name
        fitting = sorted((path for path in paths if path.endswith(f".{tail}")), key=lambda path: path.count("."))
        if fitting and (len(fitting) == 1 or fitting[0].count(".") < fitting[1].count(".")):
            return fitting[0]
    return name


def _option_paths(config: Any) -> Iterator[str]:
    """Dotted paths of all options below a dataclass or its class, those of groups that are none so far included."""
    hints = typing.get_type_hints(config if isinstance(config, type) else type(config))
    for field in dataclasses.fields(config):
        yield field.name
        value = None if isinstance(config, type) else getattr(config, field.name)
        value = _default_of(hints[field.name]) if value is None else value
        groups = [(field.name, value)]
        if isinstance(value, tuple):
            groups = [(f"{field.name}.{key}", element) for key, element in _keyed(value)]
        for name, group in groups:
            if dataclasses.is_dataclass(group):
                yield from (f"{name}.{path}" for path in _option_paths(group))


# --- Values --------------------------------------------------------------------------------------------------------


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the annotation alone."""
    is_union = typing.get_origin(annotation) in (Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _describe(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(annotation)))
    members = _members(annotation)
    if len(members) > 1:
        return " or ".join(_describe(member) for member in members)
    if annotation is type(None):
        return "none"
    if typing.get_origin(annotation) is tuple:
        inner = [a for a in typing.get_args(annotation) if a is not Ellipsis]
        count = "comma-separated values, each" if Ellipsis in typing.get_args(annotation) else f"{len(inner)} values,"
        return f"{count} {' / '.join(dict.fromkeys(map(_describe, inner)))}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", Any: "any JSON value"}
    return names.get(annotation) or getattr(annotation, "__name__", str(annotation))


def _mismatch(path: str, value: Any, annotation: Any) -> ConfigError:
    return ConfigError(f"option {path!r}: {value!r} is not {_describe(annotation)}")


def _parse_text(text: str, annotation: Any, path: str) -> Any:
    """The value of command-line `text` for a field of this type."""
    origin = typing.get_origin(annotation)
    members = _members(annotation)
    if len(members) > 1:
        if type(None) in members and text.strip().lower() in ("none", "null"):
            return None
        for member in sorted((m for m in members if m is not type(None)), key=lambda m: m is str):
            try:
                return _parse_text(text, member, path)
            except ConfigError:
                continue
        raise _mismatch(path, text, annotation)
    if origin is Literal:
        choices = {str(choice): choice for choice in typing.get_args(annotation)}
        return _lookup(choices, text, path, annotation)
    if annotation is bool:
        return _lookup({"true": True, "false": False}, text.lower(), path, annotation)
    if annotation in (int, float):
        try:
            return annotation(text)
        except ValueError:
            raise _mismatch(path, text, annotation) from None
    if annotation in (str, Path):
        return annotation(text)
    if annotation is tuple or origin is tuple:
        return _parse_tuple(text, annotation, path)
    return _parse_json(text, annotation, path)


def _lookup(choices: Mapping[str, Any], text: str, path: str, annotation: Any) -> Any:
    if text not in choices:
        raise _mismatch(path, text, annotation)
    return choices[text]


def _parse_tuple(text: str, annotation: Any, path: str) -> tuple[Any, ...]:
    """`1,2,3`, `(1,2,3)` or JSON; empty text is the empty tuple."""
    text = text.strip()
    try:
        return _from_plain(json.loads(text), annotation, path)
    except (json.JSONDecodeError, ConfigError):
        inner = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
    groups = [cls for kind in typing.get_args(annotation) for cls in _members(kind) if dataclasses.is_dataclass(cls)]
    if groups and inner.strip():
        raise _list_of_groups(text, groups[0], path)
    parts = [part.strip() for part in inner.split(",")] if inner.strip() else []
    if parts and parts[-1] == "":
        parts.pop()
    kinds = _element_types(annotation, len(parts))
    if kinds is None:
        raise _mismatch(path, text, annotation)
    return tuple(_parse_text(part, kind, path) for part, kind in zip(parts, kinds, strict=True))


def _list_of_groups(text: str, group: type, path: str) -> ConfigError:
    """How a tuple of groups of options is written on a command line, where `text` is no such thing."""
    needed = [f.name for f in dataclasses.fields(group) if _is_needed(f)] or [dataclasses.fields(group)[0].name]
    example = json.dumps([dict.fromkeys(needed, "…")], ensure_ascii=False)
    try:
        _from_plain(json.loads(text), tuple[group, ...], path)
        reason = ""
    except json.JSONDecodeError:
        reason = f"{text!r} is no JSON; "
    except ConfigError as error:
        reason = f"{error}; "
    return ConfigError(
        f"option {path!r} is a list of groups of options ({group.__name__}): {reason}write it as JSON, "
        f"{path}='{example}', or set a field of one that is there by its name or number, {path}.0.{needed[0]}=…"
    )


def _is_needed(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _parse_json(text: str, annotation: Any, path: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        if annotation is Any:
            return text
        if dataclasses.is_dataclass(annotation):
            fields = ", ".join(f"{path}.{field.name}" for field in dataclasses.fields(annotation))
            raise ConfigError(f"option {path!r} is a group of options; set one of {fields}") from None
        raise _mismatch(path, text, annotation) from None
    return _from_plain(value, annotation, path)


def _element_types(annotation: Any, count: int) -> tuple[Any, ...] | None:
    """The type of each of `count` tuple elements; None where the tuple has another length."""
    inner = typing.get_args(annotation) or (Any, ...)
    if len(inner) == 2 and inner[1] is Ellipsis:
        return (inner[0],) * count
    return inner if len(inner) == count else None


# --- Plain values --------------------------------------------------------------------------------------------------


def _plain(config: Any) -> Any:
    return _spelt(to_dict(config) if dataclasses.is_dataclass(config) else config)


def _to_plain(value: Any, annotation: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = typing.get_type_hints(type(value))
        plain = {f.name: _to_plain(getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(value) if f.init}
        tagged = [m for m in _members(annotation) if m is not type(None)] != [type(value)]
        return {_TYPE_KEY: type(value).__name__, **plain} if tagged else plain
    if isinstance(value, (tuple, list)):
        kinds = _element_types(annotation, len(value)) or (Any,) * len(value)
        return [_to_plain(element, kind) for element, kind in zip(value, kinds, strict=True)]
    if isinstance(value, Mapping):
        kind = (typing.get_args(annotation) or (str, Any))[-1]
        return {str(key): _to_plain(element, kind) for key, element in value.items()}
    return str(value) if isinstance(value, Path) else value


def _spelt(plain: Any) -> Any:
    """Plain values with numbers that are not finite as texts."""
    if isinstance(plain, dict):
        return {key: _spelt(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [_spelt(value) for value in plain]
    if isinstance(plain, float) and not math.isfinite(plain):
        return "NaN" if math.isnan(plain) else "Infinity" if plain > 0 else "-Infinity"
    return plain


def _from_plain(value: Any, annotation: Any, path: str) -> Any:
    origin = typing.get_origin(annotation)
    members = _members(annotation)
    classes = [cls for member in members if dataclasses.is_dataclass(member) for cls in _family(member)]
    if isinstance(value, Mapping) and classes:
        return _dataclass_from_plain(value, classes, path)
    if len(members) > 1:
        for member in members:
            try:
                return _from_plain(value, member, path)
            except ConfigError:
                continue
        raise _mismatch(path, value, annotation)
    if annotation is Any or (annotation in (type(None), None) and value is None):
        return value
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in typing.get_args(annotation)):
            raise _mismatch(path, value, annotation)
        return value
    if annotation is float and type(value) in (int, float):
        return float(value)
    if annotation is float and value in _NOT_FINITE:
        return float(value)
    if annotation in (int, bool, str) and type(value) is annotation:
        return value
    if annotation is Path and isinstance(value, str):
        return Path(value)
    if (annotation is tuple or origin is tuple) and isinstance(value, (list, tuple)):
        kinds = _element_types(annotation, len(value))
        if kinds is not None:
            return tuple(_from_plain(v, k, f"{path}.{i}") for i, (v, k) in enumerate(zip(value, kinds, strict=True)))
    if (
        isinstance(value, Mapping)
        and isinstance(origin or annotation, type)
        and issubclass(origin or annotation, Mapping)
    ):
        kind = (typing.get_args(annotation) or (str, Any))[1]
        return {key: _from_plain(element, kind, f"{path}.{key}") for key, element in value.items()}
    raise _mismatch(path, value, annotation)


def _family(cls: type) -> Iterator[type]:
    """A dataclass and its subclasses, which a field annotated with it may hold."""
    yield cls
    for subclass in cls.__subclasses__():
        yield from _family(subclass)


def _dataclass_from_plain(value: Mapping[str, Any], classes: Sequence[type], path: str) -> Any:
    by_name = {cls.__name__: cls for cls in classes}
    name = value.get(_TYPE_KEY, classes[0].__name__)
    if name not in by_name:
        raise ConfigError(f"option {path!r}: unknown {_TYPE_KEY} {name!r}; allowed: {', '.join(by_name)}")
    cls = by_name[name]
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in value:
        if key not in fields and key != _TYPE_KEY:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "remove it."
            full = f"{path}.{key}".lstrip(".")
            raise ConfigError(
                f"unknown option {full!r}: {name} has no field {key!r}; {hint} Valid here: {', '.join(fields)}"
            )
    given = {k: _from_plain(v, hints[k], f"{path}.{k}".lstrip(".")) for k, v in value.items() if k in fields}
    return _construct(lambda: cls(**given), path, cls)


def _flatten(plain: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, leaf) pairs; a list of groups of different names is addressed by name, any other list is a leaf."""
    if isinstance(plain, list) and plain and all(isinstance(e, dict) and "name" in e for e in plain):
        named = {element["name"]: element for element in plain}
        plain = named if len(named) == len(plain) else plain
    if isinstance(plain, dict):
        for key, value in plain.items():
            yield from _flatten(value, f"{path}.{key}" if path else key)
    else:
        yield path, plain
