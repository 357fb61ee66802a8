"""`bge-factory try-prompt`: what several prompts make of the same few passages, side by side."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.askers import propose
from factory.config import Config
from factory.documents import find_files, load_documents
from factory.generate import ask, draw_evenly, llm_identity, pairs_of
from factory.languages import language
from factory.llm import LLM
from factory.passages import make_passages
from factory.prompt_files import read_prompt
from factory.prompting import VARIABLES, asker_of, prompt_file, requests_for
from factory.question_rules import rule_broken
from factory.question_types import schedule
from factory.questions import read_questions, read_user_questions
from factory.records import InputError, Pair, Passage
from factory.settings import SplitConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

FILES = 5  # files that are read for each passage that is wanted
CLIP = 400  # characters of a passage that are shown


@dataclass(frozen=True)
class Tried:
    """One prompt's questions: for each passage (question, "" or the rule that it breaks), or why there are none."""

    name: str
    questions: list[list[tuple[Pair, str]]]
    failures: list[str]
    seconds: float
    tokens: int


def try_prompts(
    config: Config, prompts: Sequence[Path], n: int, say: Callable[[str], None]
) -> tuple[list[Passage], list[Tried]]:
    """n passages drawn over the documents, and what each prompt makes of them; nothing is kept on disk.

    Args:
        prompts: files to try; with a single one the configuration's own prompt stands beside it, with none alone.
    """
    if config.llm.serve == "batch":
        what = "llm.serve is batch, and prompts are tried on a server that answers now"
        raise InputError(what, fix="serve: endpoint, vllm or llamacpp in a copy of the YAML file")
    tried: list[Path | None] = [*([None] if len(prompts) < 2 else []), *prompts]
    languages = {read_prompt(p, VARIABLES).header.language for p in prompts} - {None}
    if len(languages) > 1:
        raise InputError("the prompts are for different languages", fix="try those of one language together")
    corpus = _corpus(config, n)
    wanted = [p for p in corpus if not languages or language(p.text) in languages]
    if not wanted:
        raise InputError(f"no passage in {languages.pop()} was found for the prompt", where=prompts[0])
    passages, _ = draw_evenly(wanted, n, config.seed)
    tests = read_questions(Path(config.test.questions)) if config.test.questions else []
    own = config.generate.examples
    examples = read_user_questions(Path(own), tests, say) if own else []
    with (
        tempfile.TemporaryDirectory(prefix="bge-factory-try-") as scratch,
        LLM(
            config.llm, llm_identity(config), Path(scratch) / "llm.sqlite", Path(scratch) / "llm-server.log", say
        ) as llm,
    ):
        askers = propose(corpus, config, llm) if config.generate.propose_askers else {}
        found = []
        for path in tried:
            found.append(_try(path, passages, corpus, config, llm, askers, examples))
    return passages, found


def _try(
    path: Path | None,
    passages: Sequence[Passage],
    corpus: Sequence[Passage],
    config: Config,
    llm: LLM,
    askers: dict[str, list[str]],
    examples: Sequence[str],
) -> Tried:
    if path:
        chosen = config.model_copy(update={"generate": config.generate.model_copy(update={"prompt": str(path)})})
        name = path.name
    else:
        chosen = config
        files = dict.fromkeys(prompt_file(config.generate, language(p.text)).name for p in passages)
        name = f"{', '.join(files)} (now)"
    requests = requests_for(passages, chosen, corpus=corpus, askers=askers, examples=examples)
    answers, usage = ask(llm, requests, lambda number, answer: name)
    turns = schedule(chosen.generate, len(passages))
    questions, failures = [], []
    for i, (passage, answer) in enumerate(zip(passages, answers, strict=True)):
        who = asker_of(i, language(passage.text), chosen, askers)
        pairs, lost = pairs_of(passage, turns[i], answer, chosen, who)
        questions.append([(pair, (rule_broken(pair, passage, chosen.quality) or ("", ""))[0]) for pair in pairs])
        failures.append("; ".join(f"{d.reason}: {d.detail}" for d in lost))
    return Tried(name, questions, failures, usage.seconds, usage.completion_tokens)


def _corpus(config: Config, n: int) -> list[Passage]:
    """The passages of some files drawn at random, as a build would make them, with nothing held out."""
    files = [str(path) for path, _ in find_files(config.input.path)]
    drawn = sorted(random.Random(config.seed).sample(files, min(len(files), FILES * n)))
    documents, _, _ = load_documents(config.input.model_copy(update={"path": drawn}))
    return make_passages(documents, config.model_copy(update={"split": SplitConfig(eval=0)}), [])[0]


def render(passages: Sequence[Passage], tried: Sequence[Tried]) -> list[RenderableType]:
    """For each passage its text and a table with a column for each prompt; at the end a summary."""
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = []
    for i, passage in enumerate(passages):
        text = " ".join(passage.text.split())
        parts.append(Text(f"\n{passage.id}", style="bold"))
        parts.append(Text(text if len(text) <= CLIP else text[:CLIP] + " …", style="dim"))
        table = Table(show_lines=False, expand=True)
        for each in tried:
            table.add_column(each.name, ratio=1, overflow="fold")
        table.add_row(*(_cell(each, i) for each in tried))
        parts.append(table)
    summary = Table(title="\nsummary", title_justify="left")
    for heading in ("prompt", "questions", "keep the rules", "characters", "seconds", "tokens/s"):
        summary.add_column(heading, justify="left" if heading == "prompt" else "right")
    for each in tried:
        every = [q for questions in each.questions for q in questions]
        good = sum(not broken for _, broken in every)
        length = sum(len(pair.query) for pair, _ in every) / max(len(every), 1)
        share = f"{good} ({100 * good / len(every):.0f} %)" if every else "–"
        rate = f"{each.tokens / each.seconds:.0f}" if each.seconds else "–"
        summary.add_row(each.name, str(len(every)), share, f"{length:.0f}", f"{each.seconds:.1f}", rate)
    return [*parts, summary]


def _cell(tried: Tried, i: int) -> Any:
    from rich.text import Text

    cell = Text()
    for pair, broken in tried.questions[i]:
        cell.append("✗ " if broken else "✓ ", style="red" if broken else "green")
        cell.append(pair.query)
        cell.append(f"  {pair.type}" if pair.type else "", style="dim")
        cell.append(f"  {broken}" if broken else "", style="red")
        cell.append(f"\n    → {pair.answer}\n" if pair.answer else "\n", style="dim")
    if tried.failures[i]:
        cell.append(tried.failures[i], style="red")
    return cell
