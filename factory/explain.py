"""Every key of a configuration as text, from the models themselves."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

LIMITS = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}


def explain(model: type[BaseModel], head: str) -> str:
    """One block a section: `key: default   # reason (type, limits)`; the keys of a list's rows are indented below it.

    Args:
        head: the first line, a comment.
    """
    lines, before = [head], True
    for name, field in model.model_fields.items():
        part = _model_in(field.annotation)
        whole = part is field.annotation
        if part and whole:
            lines += ["", f"{name}:   {_about(part)}".rstrip(), *_keys(part, "  ")]
        else:
            lines += [*([""] if before else []), *_lines(name, field)]
        before = bool(part and whole)
    return "\n".join(lines)


def _about(part: type[BaseModel]) -> str:
    return f"# {part.__doc__.strip().splitlines()[0]}" if part.__doc__ else ""


def _keys(part: type[BaseModel], indent: str) -> list[str]:
    return [indent + line for key, field in part.model_fields.items() for line in _lines(key, field)]


def _lines(key: str, field: FieldInfo) -> list[str]:
    """A key with its default, reason and type; where its value is, or lists, a part of its own, that part's keys as comments."""
    told = f"{field.description} ({_type(field)})" if field.description else f"({_type(field)})"
    part = _model_in(field.annotation)
    inner = [f"  {_about(part)}", *_keys(part, "  #   ")] if part else []
    return [f"{key}: {_default(field)}   # {told}", *inner]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return "…"
    if isinstance(value, Path):
        value = str(value)
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False) if value != "" else '""'


def _type(field: FieldInfo) -> str:
    return _name(field.annotation, list(field.metadata))


def _name(annotation: Any, metadata: list[Any]) -> str:
    """A type in words: `whole number, from 1`, `one of auto, on, off`, `list of text`."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _name(inner, [*more, *metadata])
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(_name(a, metadata) for a in args if a is not type(None))
    limits = [
        f"{word} {getattr(found, name):g}"
        for name, word in LIMITS.items()
        for found in _constraints(metadata)
        if isinstance(getattr(found, name, None), int | float)
    ]
    if origin in (list, tuple) and args:
        inner = [a for a in args if a is not Ellipsis]
        if origin is tuple and Ellipsis not in args:
            return f"list of {len(inner)}: {_name(inner[0], [])}"
        return f"list of {_name(inner[0], [])}"
    if origin is dict:
        return f"mapping of {_name(args[0], [])} to {_name(args[1], [])}"
    names: dict[Any, str] = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        Path: "path",
        Any: "anything",
    }
    name = names.get(annotation, getattr(annotation, "__name__", str(annotation)))
    return ", ".join([name, " ".join(limits)] if limits else [name])


def _constraints(metadata: list[Any]) -> list[Any]:
    return [c for found in metadata for c in (found, *getattr(found, "metadata", ()))]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model`, `Model | None`, `list[Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for a in get_args(annotation) if (found := _model_in(a))), None)
