"""The installed trainer's arguments as its source declares them: parsed, never imported.

What a field becomes on the command line follows transformers' HfArgumentParser.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import util
from pathlib import Path
from typing import Any, Literal

from factory.errors import InputError
from launch.config import Frozen

_FIX = "pip install 'FlagEmbedding[finetune]'"


class ArgumentSpec(Frozen):
    """One argument as HfArgumentParser declares it.

    `word` is what one word is read as, `kind` what they amount to: several numbers are a `list` of
    `int`; JSON text, or the path of a JSON file, is `json` read as `str`; `other` is a class of its
    own (parallelism_config), whose values are not checked. `default` is the value, or its source
    text in angle brackets where only running the code would tell.
    """

    name: str
    kind: Literal["bool", "int", "float", "str", "choice", "list", "json", "other"]
    word: Literal["bool", "int", "float", "str", "choice", "dict", "other"]
    default: Any = None
    choices: tuple[Any, ...] | None = None
    required: bool = False
    nargs: Literal["?", "*", "+"] | int | None = None
    help: str = ""
    where: str

    @property
    def options(self) -> tuple[str, ...]:
        """How it is written: with underscores, and with dashes."""
        return tuple(dict.fromkeys((f"--{self.name}", f"--{self.name.replace('_', '-')}")))

    @property
    def negations(self) -> tuple[str, ...]:
        """How it is switched off, where it is on by default."""
        on = self.word == "bool" and self.default is True
        return (f"--no_{self.name}", f"--no-{self.name.replace('_', '-')}") if on else ()


@dataclass(frozen=True)
class Module:
    """A parsed file and the statements that bind each name in it; `package` is what `.` means there."""

    name: str
    package: str
    file: Path
    tree: ast.Module
    names: dict[str, list[ast.AST]]


Found = tuple[ast.AST, Module]  # a statement, and the module that it is in; for a module its whole tree


class Sources:
    """Installed packages as text."""

    def __init__(self, site: Path | None) -> None:
        self.site = site
        self.modules: dict[str, Module | None] = {}

    def module(self, name: str) -> Module | None:
        """A module, or a package's __init__; None if there is no such file."""
        if name not in self.modules:
            file = self._file(name)
            try:
                tree = ast.parse(file.read_bytes()) if file else None
            except (SyntaxError, ValueError) as e:
                raise InputError(f"not valid Python: {e}", where=file, fix=_FIX) from e
            package = name if file and file.stem == "__init__" else name.rpartition(".")[0]
            self.modules[name] = Module(name, package, file, tree, _bindings(tree)) if file and tree else None
        return self.modules[name]

    def _file(self, name: str) -> Path | None:
        top, *rest = name.split(".")
        folders = [self.site / top] if self.site else []
        if top == __package__:  # our own entries, in a checkout or a wheel
            folders = [Path(__file__).parent]
        elif self.site is None and (spec := util.find_spec(top)):  # never of `a.b`: that would import a
            folders = [Path(f) for f in spec.submodule_search_locations or []]
        files = [f for p in folders for f in (p.joinpath(*rest, "__init__.py"), p.joinpath(*rest).with_suffix(".py"))]
        return next((f for f in files if f.is_file()), None)

    def find(self, node: ast.AST, module: Module) -> Found | None:
        """Where a name, dotted or not, is first bound, through any imports. None if nowhere."""
        if isinstance(node, ast.Attribute):
            owner = self.find(node.value, module)
            return self._bound(node.attr, owner[1]) if owner and isinstance(owner[0], ast.Module) else None
        return self._bound(node.id, module) if isinstance(node, ast.Name) else None

    def _bound(self, name: str, module: Module) -> Found | None:
        statement = next(iter(module.names.get(name, [])), None)
        if not isinstance(statement, ast.ImportFrom):
            return (statement, module) if statement else None
        original = next(a.name for a in statement.names if (a.asname or a.name) == name)
        source = util.resolve_name("." * statement.level + (statement.module or ""), module.package)
        owner = self.module(source)
        found = self._bound(original, owner) if owner and owner.name != module.name else None
        submodule = None if found else self.module(f"{source}.{original}")
        return (submodule.tree, submodule) if submodule else found

    def find_class(self, node: ast.expr, module: Module) -> tuple[ast.ClassDef, Module]:
        """The class that a name stands for. InputError if there is none."""
        found = self.find(node, module)
        if found and isinstance(found[0], ast.ClassDef):
            return found[0], found[1]
        reason = f"the class {ast.unparse(node)}, used here, cannot be found; is its package installed?"
        raise InputError(reason, where=f"{module.file}:{node.lineno}", fix=_FIX)

    def parsed_by(self, name: str) -> list[tuple[ast.ClassDef, Module]]:
        """The classes that a module gives to HfArgumentParser. InputError if it cannot be told."""
        module = self.module(name)
        if module is None:
            raise InputError(f"the module {name} cannot be found", where=self.site, fix=_FIX)
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and _name(node) == "HfArgumentParser" and node.args:
                return [self.find_class(c, module) for c in _elements(node.args[0])]
        raise InputError("expected a call of HfArgumentParser, found none", where=module.file, fix=_FIX)

    def fields(self, node: ast.ClassDef, module: Module) -> dict[str, ArgumentSpec | None]:
        """A dataclass's fields, its bases' first; None for one that is no argument."""
        found: dict[str, ArgumentSpec | None] = {}
        for base in reversed(node.bases):
            if _name(base) not in ("object", "ABC"):
                found |= self.fields(*self.find_class(base, module))
        if any(_name(d) == "dataclass" for d in node.decorator_list):
            scope = replace(module, names=module.names | _bindings(node))
            for s in (s for s in _statements(node) if isinstance(s, ast.AnnAssign)):
                if not re.search("ClassVar|InitVar|KW_ONLY", ast.unparse(s.annotation)):
                    found[_name(s.target)] = self.argument(s, scope)
        return found

    def argument(self, node: ast.AnnAssign, scope: Module) -> ArgumentSpec | None:
        """A field as HfArgumentParser declares it; None if it is not for the user to give."""
        if isinstance(node.value, ast.Call) and _name(node.value) == "field":
            given = {str(k.arg): self.value(k.value, scope) for k in node.value.keywords}
        else:
            given = {"default": self.value(node.value, scope)} if node.value else {}
        if given.get("init") is False:
            return None
        about = given["metadata"] if isinstance(given.get("metadata"), dict) else {}
        members = _union(node.annotation)
        whole = _chosen(members)
        item = whole.slice if isinstance(whole, ast.Subscript) and _name(whole) in ("list", "List") else None
        word, choices = self.word(item or whole, scope)
        if choices is None and isinstance(about.get("choices"), list | dict):
            choices = tuple(about["choices"])
        flag = word == "bool" and item is None
        default = given.get("default", False if flag else None)
        if item or "default_factory" in given:
            default = given.get("default_factory")  # a list's plain default is not passed on
        nargs = "+" if item else about.get("nargs")
        if flag and (default is not None or "None" not in map(ast.unparse, members)):
            nargs = "?"
        kind = word if choices is None else "choice"
        if nargs not in (None, "?"):
            kind = "list"
        elif any(_name(m) in ("dict", "Dict") for m in members):
            kind = "json"
        return ArgumentSpec(
            name=_name(node.target),
            kind=kind,
            word=word,
            default=default,
            choices=choices,
            required=not flag and given.keys().isdisjoint({"default", "default_factory"}),
            nargs=nargs,
            help=str(about.get("help", "")),
            where=f"{scope.file}:{node.lineno}",
        )

    def word(self, node: ast.expr, scope: Module) -> tuple[Any, tuple[Any, ...] | None]:
        """What a word is read as for a type, and the choices where there are only some."""
        name = _name(node)
        if name == "Literal" and isinstance(node, ast.Subscript):
            return "choice", tuple(self.value(e, scope) for e in _elements(node.slice))
        if name in ("bool", "int", "float", "str", "dict", "Dict"):
            return name.lower(), None
        statement, module = self.find(node, scope) or (None, scope)
        if isinstance(statement, ast.ClassDef) and any(_name(base).endswith("Enum") for base in statement.bases):
            values = [self.value(s.value, module) for s in statement.body if isinstance(s, ast.Assign)]
            return "choice", tuple(dict.fromkeys(values))
        return "other", None

    def value(self, node: ast.expr, scope: Module) -> Any:
        """What an expression gives; its text in angle brackets where only running it would tell."""
        with suppress(ValueError, TypeError):
            return ast.literal_eval(node)
        if isinstance(node, ast.Lambda):
            return self.value(node.body, scope)
        if isinstance(node, ast.Dict):
            pairs = [(k, v) for k, v in zip(node.keys, node.values, strict=True) if k]
            return {self.value(k, scope): self.value(v, scope) for k, v in pairs}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("keys", "copy"):
            return self.value(node.func.value, scope)
        if isinstance(node, ast.Call) and _name(node) == "dict" and not node.args:
            parts = [(k.arg, self.value(k.value, scope)) for k in node.keywords]
            dicts = [{arg: value} if arg else value for arg, value in parts]
            if all(isinstance(d, dict) for d in dicts):
                return {key: value for d in dicts for key, value in d.items()}
        if isinstance(node, ast.Name) and node.id in ("list", "dict"):
            return [] if node.id == "list" else {}  # a default_factory
        statement, module = self.find(node.func if isinstance(node, ast.Call) else node, scope) or (None, scope)
        if isinstance(statement, ast.FunctionDef) and isinstance(end := statement.body[-1], ast.Return) and end.value:
            return self.value(end.value, module)
        if isinstance(statement, ast.Assign) and len(module.names[_name(statement.targets[0])]) == 1:
            return self.value(statement.value, module)
        return f"<{ast.unparse(node)}>"


def _bindings(node: ast.AST) -> dict[str, list[ast.AST]]:
    """The statements of a module or class that bind each name, under `if` and `try` as well."""
    found: dict[str, list[ast.AST]] = {}
    for s in _statements(node):
        names: list[str] = []
        if isinstance(s, ast.ClassDef | ast.FunctionDef):
            names = [s.name]
        elif isinstance(s, ast.ImportFrom):
            names = [alias.asname or alias.name for alias in s.names]
        elif isinstance(s, ast.Assign):
            names = [_name(target) for target in s.targets]
        for name in names:
            found.setdefault(name, []).append(s)
    return found


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    for s in [s for part in ("body", "handlers", "orelse", "finalbody") for s in getattr(node, part, [])]:
        yield s
        if not isinstance(s, ast.ClassDef | ast.FunctionDef):
            yield from _statements(s)


def _name(node: ast.AST) -> str:
    """The last name: `field` of `dataclasses.field(…)`, `List` of `typing.List[int]`."""
    node = node.func if isinstance(node, ast.Call) else node.value if isinstance(node, ast.Subscript) else node
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _elements(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple | ast.List) else [node]


def _union(node: ast.expr) -> list[ast.expr]:
    """The members of `A | B`, Union[A, B] or Optional[A], flat; of anything else, itself."""
    if isinstance(node, ast.BinOp):
        parts = [node.left, node.right]
    elif _name(node) in ("Union", "Optional") and isinstance(node, ast.Subscript):
        parts = _elements(node.slice) + [ast.Constant(None)] * (_name(node) == "Optional")
    else:
        return [node]
    return list({ast.dump(m): m for part in parts for m in _union(part)}.values())


def _chosen(members: list[ast.expr]) -> ast.expr:
    """The one type that HfArgumentParser makes of a union's: the first, or after None or str the second."""
    skipped = "None" if "None" in map(ast.unparse, members) else "str"
    return members[0] if len(members) == 1 or ast.unparse(members[1]) == skipped else members[1]
