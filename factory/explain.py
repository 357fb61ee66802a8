"""Every key of a configuration as text, from the models themselves."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined


def explain(model: type[BaseModel]) -> str:
    """One block a section: `key: default   # reason (type)`."""
    lines = ["# factory.yaml; paths are relative to the file's own folder, ~ and $VARIABLE are expanded"]
    for name, field in model.model_fields.items():
        part = field.annotation
        if isinstance(part, type) and issubclass(part, BaseModel):
            lines += ["", f"{name}:" + (f"   # {(part.__doc__ or '').strip().splitlines()[0]}" if part.__doc__ else "")]
            lines += [_line(key, f) for key, f in part.model_fields.items()]
        else:
            lines += ["", _line(name, field).strip()]
    return "\n".join(lines)


def _line(key: str, field: Any) -> str:
    if field.default_factory is not None:
        shown = field.default_factory()
    else:
        shown = "(required)" if field.default is PydanticUndefined else field.default
    shown = list(shown) if isinstance(shown, tuple) else shown
    shown = (
        "null" if shown is None else str(shown).lower() if isinstance(shown, bool) else '""' if shown == "" else shown
    )

    return f"  {key}: {shown}" + (f"   # {field.description}" if field.description else "")
