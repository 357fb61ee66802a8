"""An existing training command, or a whole script with one, → the launch.yaml that does the same today.

Nothing is executed or imported: the text is read, and what cannot be understood is said, with its line.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from factory.errors import InputError
from factory.records import problem
from launch.config import LaunchConfig, deepspeed_file
from launch.contract import DROPPED, MODULES, OWNED, RENAMED, translate
from launch.migrate_silence import lacking, lengths, missing_paths, precision, untold
from launch.migrate_words import (
    TYPOGRAPHIC,
    Option,
    Script,
    Word,
    assignment,
    options,
    plain,
    read_script,
    read_words,
    shown,
    without_remarks,
)
from launch.migration import Draft, Migration, is_there, scalar

OLD_MODULES = {
    "FlagEmbedding.baai_general_embedding.finetune.run": "base",
    "FlagEmbedding.BGE_M3.run": "m3-unified",
    "FlagEmbedding.reranker.run": "reranker",
}
RERANKER = {"FlagEmbedding.finetune.reranker.encoder_only.base": "reranker"}
RECIPES = {module: recipe for recipe, module in MODULES.items()} | RERANKER | OLD_MODULES
LAUNCHER = re.compile(r"(?:.*[/\\])?(torchrun|python[\d.]*|deepspeed|accelerate)(?:\.exe)?$")
# A launcher's options that count something, and the key of `hardware:` for it.
COUNTS = dict.fromkeys(("nproc_per_node", "num_gpus", "num_processes"), "nproc_per_node")
COUNTS |= dict.fromkeys(("nnodes", "num_nodes", "num_machines"), "nnodes")
ELLIPSIS = re.compile(r"(^|/)(…|\.\.\.)(/|$)")  # what a page made of ../ or ../../
PLACEHOLDER = re.compile(r"\{\w[^{}]*\}")  # a page's word for what the reader has to fill in
VISIBLE = {"include", "gpu_ids"}  # a launcher's options that name GPUs
SILENT = {"echo", "printf", "set", "exit", "wait"}  # commands that nobody misses
LEFT_OUT = {
    "cache_path": "bge-launch keeps the data set's copy in the output folder while it trains",
    "ddp_backend": "bge-launch takes nccl on GPUs and gloo on CPUs",
}
REQUIRED = {"model": "model_name_or_path", "train_data": "train_data", "output": "output_dir"}


def migrate(text: str, *, folder: Path, names: frozenset[str] | None = None) -> Migration:
    """Reads a command or script.

    Args:
        text: as it was found, a web page's typography and remarks included.
        folder: where the command was run; its paths are relative to that.
        names: the arguments that the installed trainer accepts (`launch.contract.installed`); without
            them every argument that is not known to be gone is taken for one that it accepts.

    Raises:
        InputError: no command in it runs a FlagEmbedding trainer that there is a recipe for, or the
            command names no model, training data or output folder.
    """
    script = read_script(text)
    command, at = _training_command(script)
    module = _dotted(command[at].text)
    given, loose = options(command[at + 1 :])
    draft = Draft(RECIPES[module], folder, _as_newest(given) if names is None else names)
    if module in OLD_MODULES:
        draft.change(f"-m {module}", f"recipe: {draft.recipe}", "the module's name in older FlagEmbedding")
    _script(draft, text, script, command)
    _launcher(draft, command[:at])
    _loose(draft, loose)
    for option in given:
        _argument(draft, option)
    missing = [name for key, name in REQUIRED.items() if key not in draft.keys]
    if missing:
        raise lacking(missing, given, command[at].line)
    lengths(draft, module)
    precision(draft)
    untold(draft)
    missing_paths(draft)
    ready = draft.keys | {"recipe": draft.recipe, "hardware": draft.hardware, "arguments": draft.arguments}
    return Migration(
        recipe=draft.recipe,
        config={key: ready[key] for key in LaunchConfig.model_fields if key in ready and ready[key] != {}},
        changes=tuple(draft.changes),
        remarks=tuple(draft.remarks),
        notes=tuple(draft.notes),
        environment=draft.environment,
        not_understood=tuple(sorted(draft.not_understood)),
    )


def _training_command(script: Script) -> tuple[list[Word], int]:
    """The first command that trains, and where in it the module stands; else a variable that holds one."""
    for command in itertools.chain(script.commands, (read_words(v, script) for v in script.variables.values())):
        at = next((i for i, w in enumerate(command) if _dotted(w.text) in RECIPES), None)
        if at is not None and command[0].text not in SILENT:
            return command, at
    others = sorted({w.text for c in script.commands for w in c if w.text.startswith("FlagEmbedding.")})
    got = f"only {', '.join(others)}" if others else f"{len(script.commands)} other commands"
    what = f"found {got}, and no command that runs a FlagEmbedding trainer which bge-launch has a recipe for"
    raise InputError(what, fix=f"expected `torchrun … -m MODULE …` with one of {', '.join(RECIPES)}")


def _dotted(text: str) -> str:
    """`…/FlagEmbedding/reranker/run.py` as a module's name; any other word is not changed in meaning."""
    text = text.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
    return text[max(text.rfind("FlagEmbedding."), 0) :]


def _script(draft: Draft, text: str, script: Script, command: list[Word]) -> None:
    """What stands around the command and between its lines."""
    first, last = min(w.line for w in command), max(w.line for w in command)
    draft.environment |= script.environment
    comments = {(line, comment.strip("# \\")): None for line, comment in script.comments if first <= line <= last}
    draft.remarks += [comment for _, comment in comments]
    characters = TYPOGRAPHIC.findall("\n".join(re.split(r"\r\n?|\n", text)[first - 1 : last]))
    if characters:
        shown_as = " ".join(c if c.isprintable() else f"U+{ord(c):04X}" for c in dict.fromkeys(characters))
        draft.notes.append(f"characters that a web page put there were read as plain ones: {shown_as}")
    joined = [line for line in script.joined if first <= line <= last]
    if joined:
        draft.notes.append(f"{len(joined)} lines of the command do not end with a backslash; they were joined")
    for other in script.commands:
        if other is command or other[0].text in SILENT:
            continue
        trains = any(_dotted(w.text) in RECIPES for w in other)
        why = "another training command; migrate it on its own" if trains else "not the training command, ignored"
        why += "; the paths after it are relative to that folder" if other[0].text == "cd" else ""
        draft.lost(other[0].line, f"{shown([w.text for w in other])} ({why})")


def _launcher(draft: Draft, before: list[Word]) -> None:
    """Everything before the module: environment, torchrun or another launcher, its options."""
    matches = [LAUNCHER.match(w.text.lstrip("!")) for w in before]
    start = next((i for i, m in enumerate(matches) if m), len(before))
    launcher = next((m[1] for m in matches if m), "python")
    for name, _, value in filter(None, map(assignment, before[:start])):
        draft.environment[name] = plain(value)
    given, loose = options(before[start + 1 :])
    _loose(draft, [w for w in loose if w.text != "launch"])
    for option in given:
        if len(option.name) == 1 or option.name == "module":
            continue  # -m, and python's -u
        values = _values(draft, option)
        text, key = (values[0].text if values else ""), COUNTS.get(option.name)
        gpus = re.search(r"(?:^|:)([\d,]+)$", text) if option.name in VISIBLE else None
        if key and (text in ("auto", "gpu") or (text.isdigit() and int(text) > 0)):
            draft.hardware[key] = int(text) if text.isdigit() else "auto"
        elif key:
            draft.lost(option.line, f"{option.given} (expected a number from 1 on, so it is left to bge-launch)")
            draft.hardware[key] = "auto"
        elif gpus:
            draft.environment["CUDA_VISIBLE_DEVICES"] = gpus[1]
            draft.hardware.setdefault("nproc_per_node", len(gpus[1].split(",")))
        elif option.name == "mixed_precision" and text in ("fp16", "bf16"):
            draft.arguments[text] = True
        else:
            draft.change(option.given, "", f"an option of {launcher}; bge-launch starts torchrun with its own")
    if draft.hardware.get("nnodes") in (1, "auto"):
        del draft.hardware["nnodes"]
    processes, nodes = draft.hardware.get("nproc_per_node"), draft.hardware.get("nnodes", 1)
    if launcher == "accelerate" and isinstance(processes, int):
        draft.hardware["nproc_per_node"] = max(processes // nodes, 1)  # it counts those of all nodes
    elif processes is None and launcher not in ("deepspeed", "accelerate"):
        draft.hardware["nproc_per_node"] = 1
        draft.change("no --nproc_per_node", "hardware.nproc_per_node: 1", f"{launcher} starts one; auto: every GPU")


def _loose(draft: Draft, loose: list[Word]) -> None:
    values, remarks = without_remarks(tuple(loose), paths=False, prose=False, folder=draft.folder)
    draft.remarks += remarks
    for word in values:
        draft.lost(word.line, f"{shown([word.text])} (a word that belongs to no option)")


def _argument(draft: Draft, option: Option) -> None:
    """Puts one argument where it belongs: a key, `arguments:`, what is left out, what is not understood."""
    name = option.name if option.name in draft.names else RENAMED.get(option.name, option.name)
    option = option._replace(values=tuple(_values(draft, option)))
    if name in draft.told:
        draft.notes.append(f"{option.given}: given twice; the last one counts, as with the trainer")
    draft.told.add(name)
    key = OWNED.get(name)
    if any(PLACEHOLDER.fullmatch(w.text) for w in option.values):
        draft.lost(option.line, f"{option.given} (a placeholder, yours to fill in)")
    elif name in LEFT_OUT:
        draft.change(option.given, "", LEFT_OUT[name])
    elif name == "use_cpu":
        if _value(option) is True:
            draft.hardware["device"] = "cpu"
    elif name == "deepspeed" and option.values:
        _deepspeed(draft, option)
    elif key in LaunchConfig.model_fields:
        _key(draft, key, option)
    else:
        _extra(draft, option)


def _key(draft: Draft, key: str, option: Option) -> None:
    """Sets a key of launch.yaml, if launch.yaml takes the value."""
    texts = [w.text for w in option.values]
    if key == "train_data":
        texts = [path for w in option.values for path in _expanded(draft, w)]
    if _is_prose(option.name):
        texts = [" ".join(texts)]
    value: Any = texts[0] if len(texts) == 1 else texts
    if not texts or (key in REQUIRED and "" in texts):
        draft.lost(option.line, f"{option.given} (expected a value)")
        return
    try:
        checked = getattr(LaunchConfig.model_validate({**dict.fromkeys(REQUIRED, "x"), key: value}), key)
    except ValidationError as e:
        draft.lost(option.line, f"{option.given} ({problem(e)})")
        return
    number = isinstance(checked, int | float)
    draft.keys[key] = int(checked) if number and checked == int(checked) else checked if number else value


def _extra(draft: Draft, option: Option) -> None:
    """An argument that bge-launch hands on under `arguments:`, in the installed trainer's words."""
    value = _value(option)
    done = translate({option.name: value}, draft.names)
    kept = done.arguments or ({option.name: value} if done.env else {})
    draft.arguments |= kept
    draft.told |= set(kept)
    for note in done.notes:
        why = note.removeprefix(f"arguments.{option.name} ").removeprefix("is left out: ")
        draft.change(option.given, "".join(f"arguments.{name}: {value}" for name in kept), why)
    for found in done.problems:
        why = found.reason.partition(": ")[2] + (f"; {found.fix}" if found.fix else "")
        if found.id == "argument.unknown":
            draft.lost(option.line, f"{option.given} ({why})")
        else:
            draft.change(option.given, "", why)


def _deepspeed(draft: Draft, option: Option) -> None:
    """The user's own file where it is there, else ours of the same stage, by the file's name."""
    path = option.values[0].text
    stage = re.search(r"stage_?(\d)", path)
    ours = f"stage{stage[1]}" if stage else None
    file = deepspeed_file(ours)
    if not is_there(draft, path) and file and file.is_file():
        why = "… hides a part of the path" if ELLIPSIS.search(path) else "no such file here"
        draft.change(option.given, f"deepspeed: {ours}", f"{why}; its name says {ours}, which comes with bge-launch")
        path = str(ours)
    elif ELLIPSIS.search(path):
        draft.lost(option.line, f"{option.given} (… hides a part of the path)")
    draft.keys["deepspeed"] = path


def _expanded(draft: Draft, word: Word) -> list[str]:
    """A path, or what the shell would have made of its `*`."""
    found = [] if word.quoted else sorted(glob.glob(word.text, root_dir=draft.folder))
    return found or [word.text]


def _values(draft: Draft, option: Option) -> list[Word]:
    """An option's values without remarks; says which of them cannot be read."""
    paths = option.name in REQUIRED.values() or option.name.endswith(("_dir", "_path", "_file", "deepspeed"))
    values, remarks = without_remarks(option.values, paths=paths, prose=_is_prose(option.name), folder=draft.folder)
    draft.remarks += remarks
    for text in (w.text for w in values):
        if re.search(r"\$[\w{(]|%[A-Za-z_]\w*%", os.path.expandvars(text)):
            draft.lost(option.line, f"{option.given} (neither script nor environment says what {text} stands for)")
        if paths and re.match(r"[A-Za-z]:[\\/]", text):
            draft.notes.append(f"{option.given}: a Windows path; WSL has {text[:2]} as /mnt/{text[0].lower()}")
        if paths and option.name != "deepspeed" and ELLIPSIS.search(text):
            draft.lost(option.line, f"{option.given} (… hides a part of the path)")
    return values


def _is_prose(name: str) -> bool:
    return "_instruction_for_" in name


def _value(option: Option) -> Any:
    """No value is true, several are a list; `~` and variables are expanded, for nothing does so later."""
    if _is_prose(option.name):
        return " ".join(w.text for w in option.values)
    texts = (w.text if w.quoted else os.path.expanduser(w.text) for w in option.values)
    found = [scalar(os.path.expandvars(text)) for text in texts]
    return True if not found else found[0] if len(found) == 1 else found


def _as_newest(given: list[Option]) -> frozenset[str]:
    """The names that were given, without those that newer trainers have given up."""
    gone = {"warmup_ratio", "logging_dir"} | set(RENAMED) | set(DROPPED)
    return frozenset({o.name for o in given} - gone | set(RENAMED.values()) | {"warmup_steps"})
