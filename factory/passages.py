"""Stage 2, split: documents → passages, each in train, dev or eval by its document's group."""

from __future__ import annotations

import itertools
import random
import re
from bisect import bisect_right
from collections import defaultdict
from pathlib import Path
from typing import Any

from factory.config import Config
from factory.duplicates import join_contained, near_duplicate_groups
from factory.progress import progress
from factory.questions import Question, documents_of
from factory.records import Document, Dropped, InputError, Passage, Split
from factory.settings import PassagesConfig

HEADINGS = re.compile(r"(?:\s*#{1,6}(?:[ \t][^\n]*)?(?:\n|$))+\s*")  # a Markdown text of nothing else


def load_tokenizer(model: Path) -> Any:
    """The model's own `tokenizers.Tokenizer`, with truncation and padding off."""
    from tokenizers import Tokenizer

    if (model / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    else:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(model), local_files_only=True).backend_tokenizer
        except (OSError, ValueError, AttributeError) as e:
            raise InputError(
                f"no tokenizer could be loaded: {e}", where=model, fix="model.path must be a complete local folder"
            ) from e
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def count_tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def split_documents(
    documents: list[Document], config: PassagesConfig, tokenizer: Any
) -> tuple[list[tuple[Document, int, int]], list[Dropped]]:
    """(document, start, end) of each passage, in characters, and the pieces left out.

    Raises:
        InputError: overlap_tokens is not below max_tokens.
    """
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

    if config.overlap_tokens >= config.max_tokens:
        raise InputError(
            f"passages.overlap_tokens {config.overlap_tokens} must be below passages.max_tokens {config.max_tokens}"
        )
    splitters = {
        markdown: cls.from_huggingface_tokenizer(tokenizer, config.max_tokens, overlap=config.overlap_tokens)
        for markdown, cls in ((True, MarkdownSplitter), (False, TextSplitter))
    }
    spans: list[tuple[Document, int, int]] = []
    dropped: list[Dropped] = []
    for document in progress(documents, "split", "document"):
        if document.whole:
            spans.append((document, 0, len(document.text)))
            continue
        pieces = [
            (start, start + len(text)) for start, text in splitters[document.markdown].chunk_indices(document.text)
        ]
        for start, end in join_short(pieces, document, config, tokenizer):
            text = document.text[start:end]
            if is_short(text, document, config, tokenizer):
                dropped.append(Dropped(stage="split", id=f"{document.id}@{start}", reason="too-short", text=text))
            else:
                spans.append((document, start, end))
    return spans, dropped


def is_short(text: str, document: Document, config: PassagesConfig, tokenizer: Any) -> bool:
    """Below `min_tokens`, or nothing but headings: they answer nothing alone, and each passage below them has them in `headings`."""
    if document.markdown and HEADINGS.fullmatch(text):
        return True
    return count_tokens(tokenizer, text) < config.min_tokens


def join_short(
    pieces: list[tuple[int, int]], document: Document, config: PassagesConfig, tokenizer: Any
) -> list[tuple[int, int]]:
    """Join a piece below `min_tokens` (a lone heading, mostly) to the next one, else to the one before, if the budget allows."""
    text = document.text
    joined: list[tuple[int, int]] = []
    pending: int | None = None  # where a short piece began that waits for its follower
    for i, (start, end) in enumerate(pieces):
        begin = start
        if pending is not None:
            if count_tokens(tokenizer, text[pending:end]) <= config.max_tokens:
                begin = pending
            else:
                joined.append((pending, pieces[i - 1][1]))
            pending = None
        if is_short(text[begin:end], document, config, tokenizer):
            if i + 1 < len(pieces):
                pending = begin
                continue
            if joined and count_tokens(tokenizer, text[joined[-1][0] : end]) <= config.max_tokens:
                begin = joined.pop()[0]
        joined.append((begin, end))
    return joined


def heading_paths(document: Document) -> tuple[list[int], list[tuple[str, ...]]]:
    """Character offsets at which the heading path changes, and the path that holds from there."""
    offsets, paths = [0], [()]  # type: list[int], list[tuple[str, ...]]
    if not document.markdown:
        return offsets, paths
    from markdown_it import MarkdownIt

    line_starts = [0]
    for line in document.text.split("\n"):
        line_starts.append(line_starts[-1] + len(line) + 1)
    path: list[tuple[int, str]] = []
    tokens = MarkdownIt("commonmark").parse(document.text)
    for token, inline in itertools.pairwise(tokens):
        if token.type == "heading_open" and token.map and token.level == 0:
            level = int(token.tag[1])
            path = [*[(depth, title) for depth, title in path if depth < level], (level, inline.content.strip())]
            offsets.append(line_starts[token.map[0]])
            paths.append(tuple(title for _, title in path if title))
    return offsets, paths


def make_passages(
    documents: list[Document], config: Config, questions: list[Question]
) -> tuple[list[Passage], list[Dropped]]:
    """Split, group copies, and assign each document group to train, dev or eval.

    Passages of one split that copy a passage of a stricter one (eval over dev over train) are
    left out of training later by their `duplicate_group`; see `choose` and `generate`.
    """
    tokenizer = load_tokenizer(Path(config.model.path))
    spans, dropped = split_documents(documents, config.passages, tokenizer)
    if not spans:
        raise InputError("no passage is left after splitting", fix="lower passages.min_tokens")
    threshold = config.passages.near_duplicate
    texts = [d.text for d in documents]
    document_groups = join_contained(texts, near_duplicate_groups(texts, threshold), threshold)
    group_of = {d.id: documents[g].id for d, g in zip(documents, document_groups, strict=True)}
    weights: dict[str, int] = defaultdict(int)
    for document, start, end in spans:
        weights[group_of[document.id]] += end - start
    held_out = {group_of[i] for i in documents_of(questions, documents)} if config.test.hold_out else set()
    splits = assign_splits(weights, config, held_out)
    copies = near_duplicate_groups([d.text[s:e] for d, s, e in spans], threshold)
    ids = [d.id if d.whole else f"{d.id}@{s}" for d, s, _ in spans]
    headings = {d.id: heading_paths(d) for d in documents}
    passages = []
    for (document, start, end), copy, identity in zip(spans, copies, ids, strict=True):
        offsets, paths = headings[document.id]
        passages.append(
            Passage(
                id=identity,
                document_id=document.id,
                source=document.source,
                title=document.title,
                headings=paths[bisect_right(offsets, start) - 1],
                text=document.text[start:end],
                start=start,
                end=end,
                tokens=count_tokens(tokenizer, document.text[start:end]),
                document_group=group_of[document.id],
                duplicate_group=ids[copy],
                split=splits[group_of[document.id]],
            )
        )
    return passages, dropped


def assign_splits(weights: dict[str, int], config: Config, held_out: set[str]) -> dict[str, Split]:
    """Draw whole document groups for eval, then dev, until each holds its share of the characters; the rest trains.

    Raises:
        InputError: nothing would be left to train on.
    """
    share = config.split.eval if config.split.eval is not None else (0.0 if config.test.questions else 0.15)
    splits: dict[str, Split] = dict.fromkeys(weights, "train")
    splits |= dict.fromkeys(held_out & weights.keys(), "eval")
    free = sorted(weights.keys() - held_out)
    random.Random(config.seed).shuffle(free)
    total = sum(weights.values())
    for name, wanted in (("eval", share), ("dev", config.dev_share)):
        got = 0
        # a group is taken only while it keeps the share nearer to what was asked for, but at least one
        while free and wanted > 0 and (got == 0 or got + weights[free[-1]] / 2 <= wanted * total):
            group = free.pop()
            splits[group] = name  # type: ignore[assignment]
            got += weights[group]
    if "train" not in splits.values():
        raise InputError(
            f"nothing is left to train on: {len(weights)} document group(s), all held out for eval or dev",
            fix="add documents, lower split.eval and split.dev, or set test.hold_out: false",
        )
    return splits


def trainable(passages: list[Passage]) -> tuple[list[Passage], list[Passage]]:
    """(passages of the train split, those of them that copy a held-out passage and so must not be trained on)."""
    held = {p.duplicate_group for p in passages if p.split != "train"}
    train = [p for p in passages if p.split == "train"]
    return [p for p in train if p.duplicate_group not in held], [p for p in train if p.duplicate_group in held]
