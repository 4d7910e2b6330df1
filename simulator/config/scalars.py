"""Text to numbers and truth values, as the field that a value is for demands; the shape of a form, walked by path."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, PlainValidator, WrapValidator
from pydantic.fields import FieldInfo

from simulator.cluster.figures import Figure
from simulator.config.tree import Node, Path_

_NUMBER = re.compile(r"\s*([+-]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?)\s*(\S.*)?", re.DOTALL)
_MAX_EXPONENT = 60
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


@dataclass(frozen=True, slots=True)
class Unread:
    """Text that is not of the type that its field demands; no pydantic type accepts it."""

    text: str


@dataclass(frozen=True, slots=True)
class Leaf:
    """One type that a field accepts."""

    type: Any
    """The type, without `Annotated`, `Optional` and unions."""
    reads_text: bool = False
    """Whether a validator of its own reads the text (quantities with a unit)."""


Shape = tuple[Leaf, ...]
"""All types that a field accepts."""


def shape_of(annotation: Any, metadata: tuple[Any, ...] = (), *, reads_text: bool = False) -> Shape:
    """Returns the types that a field with this annotation accepts."""
    annotation = getattr(annotation, "__value__", annotation)
    reads_text = reads_text or any(
        isinstance(each, BeforeValidator | PlainValidator | WrapValidator) for each in metadata
    )
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return shape_of(inner, tuple(more), reads_text=reads_text)
    if origin in (Union, UnionType):
        return tuple(leaf for each in get_args(annotation) for leaf in shape_of(each, reads_text=reads_text))
    return (Leaf(annotation, reads_text),)


def forms_of(shape: Shape) -> Iterator[type[BaseModel]]:
    """Yields the pydantic models among the types."""
    for leaf in shape:
        if isinstance(leaf.type, type) and issubclass(leaf.type, BaseModel):
            yield leaf.type


def fields_of(shape: Shape) -> dict[str, FieldInfo]:
    """Returns the keys that a mapping of this shape may have."""
    return {field.alias or name: field for form in forms_of(shape) for name, field in form.model_fields.items()}


def field_at(shape: Shape, path: Path_) -> FieldInfo | None:
    """Returns the field at a path, None if it is not the key of a form."""
    if not path:
        return None
    return fields_of(shape_at(shape, path[:-1])).get(str(path[-1]))


def key_paths(shape: Shape, above: str = "") -> list[str]:
    """Returns the dotted paths of all keys of all forms in a shape; lists are not entered."""
    found = []
    for name, field in fields_of(shape).items():
        found.append(f"{above}{name}")
        found += key_paths(shape_of(field.annotation, tuple(field.metadata)), f"{above}{name}.")
    return found


def shape_at(shape: Shape, path: Path_) -> Shape:
    """Returns the types accepted at a path; nothing if the path is not of this shape."""
    for part in path:
        shape = _inside(shape, part)
    return shape


def _inside(shape: Shape, part: str | int) -> Shape:
    leaves: list[Leaf] = []
    for leaf in shape:
        origin, arguments = get_origin(leaf.type), get_args(leaf.type)
        if origin is dict:
            leaves += shape_of(arguments[1])
        elif origin is tuple and arguments[1:] != (...,) and isinstance(part, int):
            leaves += shape_of(arguments[part]) if part < len(arguments) else ()
        elif origin in (list, tuple, set, frozenset) or (arguments and isinstance(part, int)):
            leaves += shape_of(arguments[0])
    for form in forms_of(shape):
        for name, field in form.model_fields.items():
            if part in (name, field.alias):
                leaves += shape_of(field.annotation, tuple(field.metadata), reads_text=_has_reader(form, name))
    return tuple(leaves)


def _has_reader(form: type[BaseModel], name: str) -> bool:
    decorators = form.__pydantic_decorators__.field_validators.values()
    return any(each.info.mode != "after" and {name, "*"} & set(each.info.fields) for each in decorators)


def typed(node: Node, shape: Shape, path: Path_ = ()) -> tuple[Any, list[Path_]]:
    """Returns the plain value of a tree with numbers and truth values read, and the paths of absurdly large numbers.

    A number is absurd beyond 10^60, where reading it could take for ever; it comes back as `Unread`.
    """
    if isinstance(node.value, Mapping):
        pairs = {key: typed(entry.node, _inside(shape, key), (*path, key)) for key, entry in node.value.items()}
        return {key: value for key, (value, _) in pairs.items()}, [
            each for _, found in pairs.values() for each in found
        ]
    if isinstance(node.value, tuple):
        items = [typed(item, _inside(shape, index), (*path, index)) for index, item in enumerate(node.value)]
        return [value for value, _ in items], [each for _, found in items for each in found]
    if node.value is None:
        return None, []
    shape = _figure_values(shape) or shape
    if _takes_numbers(shape) and _is_absurd(node.value):
        return Unread(node.value), [path]
    return _scalar(node.value, shape), []


def _figure_values(shape: Shape) -> Shape:
    """Returns the types of the number of a figure, which may be written without the mapping around it."""
    figures = (form for form in forms_of(shape) if issubclass(form, Figure))
    return tuple(leaf for figure in figures for leaf in _inside((Leaf(figure),), "value"))


def _scalar(text: str, shape: Shape) -> Any:
    types = [leaf.type for leaf in shape if not leaf.reads_text]
    if bool in types and text in _TRUTH:
        return _TRUTH[text]
    number = _number(text) if int in types or float in types else None
    if number is not None and int in types and number == number.to_integral_value():
        return int(number)
    if number is not None and float in types:
        return float(number)
    known = [leaf for leaf in shape if leaf.type is not NoneType]
    return (
        Unread(text)
        if known and all(leaf.type in (int, float, bool) and not leaf.reads_text for leaf in known)
        else text
    )


def _number(text: str) -> Decimal | None:
    match = _NUMBER.fullmatch(text)
    if match is None or match[2]:
        return None
    try:
        return Decimal(match[1].replace("_", ""))
    except InvalidOperation:
        return None


def _is_absurd(text: str) -> bool:
    match = _NUMBER.fullmatch(text)
    if match is None:
        return False
    try:
        number = Decimal(match[1].replace("_", ""))
    except InvalidOperation:
        return True
    return bool(number) and abs(number.adjusted()) > _MAX_EXPONENT


def _takes_numbers(shape: Shape) -> bool:
    return any(leaf.reads_text or leaf.type in (int, float) for leaf in shape)
