"""What share of the texts is cut at the chosen lengths: a sample of the data under the model's own tokenizer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from factory.errors import InputError
from launch.base_model import token_limit
from launch.checks_model import TOKENIZERS
from launch.plan import LaunchPlan
from launch.problems import Problem, error, warning

SAMPLED = 400  # rows; a share of 5 % is then known to about ± 2 %
WORTH_SAYING = 0.02  # share of cut texts
SPECIAL = 6  # more than any of these tokenizers adds to a text or a pair
STEP = 64  # tokens; proposed lengths are multiples of it


class Cut(NamedTuple):
    """Sampled texts of one kind; `lengths` in tokens, special tokens and instruction included."""

    name: str  # the argument that limits them
    what: str
    limit: int
    lengths: list[int]


def truncation(plan: LaunchPlan) -> Iterator[Problem]:
    """Texts that are cut. Says so if the model has no tokenizer.json, the only kind that can be read here."""
    file = plan.model / "tokenizer.json"
    if not file.is_file():
        if any((plan.model / name).is_file() for name in TOKENIZERS):
            reason = f"{plan.model}: no tokenizer.json, so that the share of cut texts is not known"
            yield warning("data.lengths-unknown", reason, "AutoTokenizer.from_pretrained(model).save_pretrained(model)")
        return
    rows = sample([f.path for f in plan.data.files], SAMPLED)
    if not rows or plan.value("query_max_len") is None:
        return
    try:
        cuts = _measured(plan, file, rows)
    except InputError as e:
        yield error("model.tokenizer", f"{e.where}: {e.what}", e.fix or "")
        return
    for cut in cuts:
        share = sum(n > cut.limit for n in cut.lengths) / max(len(cut.lengths), 1)
        if share < WORTH_SAYING:
            continue
        most = sorted(cut.lengths)[math.ceil(len(cut.lengths) * 0.95) - 1]
        enough = math.ceil((most if most > cut.limit else max(cut.lengths)) / STEP) * STEP
        reason = (
            f"{share:.0%} of the {cut.what} (of {len(cut.lengths)} looked at) are longer than {cut.name} = {cut.limit} "
            f"tokens, the longest has {max(cut.lengths)}; what is beyond is cut off"
        )
        fix = f"a {cut.name} of {enough} holds 95 % of them or more; or cut them up beforehand"
        if (longest := token_limit(plan.model)) and enough > longest:
            fix = f"the model takes {longest} tokens; longer {cut.what} are to be cut up beforehand"
        yield warning(f"data.cut-{cut.what}", reason, fix)


def sample(files: list[Path], count: int) -> list[dict[str, Any]]:
    """About `count` rows, evenly spaced by bytes over all files; lines that are no JSON object are left out."""
    sizes = {f: f.stat().st_size for f in files if f.is_file()}
    total = sum(sizes.values())
    rows: dict[tuple[Path, int], dict[str, Any]] = {}
    for file, size in sizes.items():
        wanted = max(round(count * size / total), 1) if total else 0
        with open(file, "rb") as lines:
            for at in (size * i // wanted for i in range(wanted)):
                lines.seek(max(at - 1, 0))
                if at:
                    lines.readline()  # the rest of the line that the place is in
                start = lines.tell()
                row = _row(lines.readline()) if (file, start) not in rows else None
                if row:
                    rows[file, start] = row
    return list(rows.values())


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except ValueError:
        return None
    good = isinstance(row, dict) and isinstance(row.get("query"), str)
    return row if good and all(isinstance(row.get(k), list) for k in ("pos", "neg")) else None


def _measured(plan: LaunchPlan, file: Path, rows: list[dict[str, Any]]) -> list[Cut]:
    query_limit, passage_limit = int(plan.number("query_max_len", 0)), int(plan.number("passage_max_len", 0))
    instruction = plan.value("query_instruction_for_retrieval") or plan.value("query_instruction_for_rerank") or ""
    before = plan.value("passage_instruction_for_retrieval") or plan.value("passage_instruction_for_rerank") or ""
    queries = [(row.get("prompt") or instruction) + row["query"] for row in rows]
    passages = [[before + p for p in (*row["pos"][:1], *row["neg"][:1]) if isinstance(p, str)] for row in rows]
    if plan.recipe == "reranker":
        pairs = [(q, p) for q, ps in zip(queries, passages, strict=True) for p in ps]
        limit = query_limit + passage_limit
        return [Cut("query_max_len + passage_max_len", "pairs", limit, _lengths(file, pairs, limit))]
    singles = [(q,) for q in queries], [(p,) for ps in passages for p in ps]
    return [
        Cut("query_max_len", "queries", query_limit, _lengths(file, singles[0], query_limit)),
        Cut("passage_max_len", "passages", passage_limit, _lengths(file, singles[1], passage_limit)),
    ]


def _lengths(file: Path, texts: Sequence[tuple[str, ...]], limit: int) -> list[int]:
    """Tokens of each text or pair; 0 where its bytes, and SPECIAL tokens, are so few that it cannot be cut."""
    long = [sum(len(t.encode()) for t in text) + SPECIAL > limit for text in texts]
    if not any(long):
        return [0] * len(texts)  # a large tokenizer takes half a second to load
    given: list[Any] = [
        text if len(text) > 1 else text[0] for text, is_long in zip(texts, long, strict=True) if is_long
    ]
    counted = iter(_tokenizer(file).encode_batch_fast(given))
    return [len(next(counted)) if is_long else 0 for is_long in long]


@lru_cache(maxsize=1)
def _tokenizer(file: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as e:  # it raises nothing more particular
        raise InputError(f"cannot be read: {e}", where=file, fix="copy the model's own file again") from e
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
