"""A finished run made by hand, with all that its readers may meet: copies, several positives, rows without scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from factory.export import TRAIN, held_out, write_eval_set
from factory.pipeline import DOCUMENTS, KEPT, PASSAGES
from factory.records import Document, Example, Pair, Passage
from factory.retrieve import targets_of
from factory.workspace import write_json, write_jsonl

LONG = "焊前预热可以减少冷裂纹。" * 120  # more than 500 tokens under the tiny tokenizer


def passage(number: int, text: str, split: str = "train", group: int | None = None) -> Passage:
    document = f"{'manual.md' if number % 2 else 'notes/faq.md'}"
    return Passage.model_validate(
        {"id": f"p{number}", "document_id": document, "source": document, "text": text, "start": 0, "end": len(text)}
        | {"tokens": len(text), "document_group": document, "split": split}
        | {"duplicate_group": f"p{number if group is None else group}"}
    )


PASSAGES_MADE = [
    *(passage(i, f"第{i}段：焊接电流{i}0安。Keep part {i} dry.") for i in range(6)),
    passage(6, LONG),
    passage(7, "第0段：焊接电流00安。Keep part 0 dry!", group=0),  # nearly p0
    passage(8, "开发集的一段：水箱里的水每天更换。", "dev"),
    passage(9, "测试集的一段：预热温度一百五十度。", "eval"),
    passage(10, "A passage of the test: the tank holds ten litres.", "eval"),
]
TEXT = {p.id: p.text for p in PASSAGES_MADE}


def pair(number: int, target: str, query: str, **more: Any) -> Pair:
    p = next(p for p in PASSAGES_MADE if p.id == target)
    return Pair(
        id=f"q{number}", passage_id=target, query=query, target_id=target, target_text=p.text, split=p.split,
        duplicate_group=p.duplicate_group, language="zh", type="fact", **more,
    )  # fmt: skip


PAIRS = [
    pair(0, "p0", "第0段的电流是多少？"),
    pair(1, "p1", "第1段的电流是多少？", origin="given"),
    pair(2, "p2", "Which part is kept dry?"),
    pair(3, "p6", "焊前为什么预热？"),
    pair(4, "p8", "水箱的水多久换一次？"),
    pair(5, "p9", "测试：预热到多少度？"),
    pair(6, "p10", "Test: how many litres does the tank hold?"),
]


def example(number: int, pos: str, neg: str, pos_scores: list[float] | None = None, neg_scores: Any = None) -> Example:
    return Example(
        query=PAIRS[number].query, pos=[TEXT[i] for i in pos.split()], neg=[TEXT[i] for i in neg.split()],
        pos_scores=pos_scores, neg_scores=neg_scores, id=f"q{number}",
    )  # fmt: skip


EXAMPLES = [
    example(0, "p0 p5", "p1 p2 p3", [4.0, 3.0], [0.5, -1.0, -2.5]),  # p5 was promoted
    example(1, "p1", "p2", [5.0], [1.0]),  # one negative only
    example(2, "p2", "p3 p4 p5"),  # no scores
    example(3, "p6", "p1 p2 p4", [6.0], [0.0, -1.0, -3.0]),
]


def make_run(folder: Path, model: Path | str = "/models/bge-m3", **config: Any) -> Path:
    """The folder of the run; `config` replaces parts of the configuration."""
    documents = [
        Document(id=name, source=name, text="".join(p.text for p in PASSAGES_MADE if p.source == name))
        for name in ("manual.md", "notes/faq.md")
    ]
    write_jsonl(folder / DOCUMENTS, documents)
    write_jsonl(folder / PASSAGES, PASSAGES_MADE)
    write_jsonl(folder / KEPT, PAIRS)
    write_jsonl(folder / TRAIN, (e.to_json() for e in EXAMPLES))
    targets = targets_of(PASSAGES_MADE, PAIRS)
    for name in ("dev", "eval"):
        write_eval_set(folder / name, targets, *held_out(PAIRS, targets, name))
    counts: dict[str, dict[str, int]] = {
        "load": {"documents": 2, "characters": 1700},
        "split": {"passages": 11, "train": 8, "dev": 1, "eval": 2, "copies": 1},
        "generate": {"pairs": 9, "passages asked": 7},
        "filter": {"kept": 7, "train": 4, "dev": 1, "eval": 2},
        "mine": {"questions": 4, "candidates": 28, "by dense": 28, "by bm25": 20},
        "score": {"candidates": 28, "features": 17},
        "choose": {"negative": 10, "promoted": 1, "rejected": 3, "unused": 14}
        | {"negative fill-from-deeper-ranks": 2, "negative random-fill": 1, "rejected holds-the-answer": 3},
        "export": {"examples": 4, "negatives": 10, "promoted positives": 1},
    }
    dropped = {"filter": {"copied": 2}}
    default = {
        "input": {"path": ["/home/somebody/secret-project/documents"], "kind": "documents"},
        "model": {"path": str(model), "query_instruction": "query: ", "passage_instruction": ""},
        "test": {"questions": None, "hold_out": True},
        "llm": {"serve": "llamacpp", "model": "/home/somebody/models/qwen.gguf", "seed": 7, "url": ""},
        "generate": {"pairing": "question-document", "temperature": 0.7, "questions_per_passage": 3},
        "score": {"reranker": None},
        "choose": {"preset": "resolve", "negatives": 3, "depth": 40},
        "seed": 42,
    }
    manifest = {
        "bge_factory": "0.2.0",
        "config": default | config,
        "versions": {"torch": "2.13.0", "faiss-cpu": None},
        "stages": {
            name: {"counts": c, "dropped": dropped.get(name, {}), "outputs": {}, "seconds": 1.0}
            for name, c in counts.items()
        },
    }
    write_json(folder / "run.json", manifest)
    return folder


def strings(value: Any) -> set[str]:
    """All strings in a nest of lists and dictionaries, keys left out."""
    if isinstance(value, str):
        return {value}
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return {s for v in inner for s in strings(v)}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
