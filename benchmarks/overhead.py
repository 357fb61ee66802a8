"""What mining, scoring and choosing cost on top of what no miner can avoid: encoding and a raw FAISS search.

    python -m benchmarks.overhead ../shared/data/cjrc --model MODEL --queries 2000

Prints seconds and peak memory of each step in one run, and the share on top.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import collection_parser, parse, peak
from factory.choose import Chooser, choose
from factory.evalset import read_eval_set
from factory.evidence import Evidence, learn
from factory.hybrid import Scorer, score
from factory.indexes import BM25Index, DenseIndex
from factory.lexical import token_jaccard
from factory.models import load_encoder
from factory.records import Pair
from factory.retrieve import Target, mine
from factory.settings import ChooseConfig, ModelConfig
from factory.tables import count, everything, row_groups, write_blocks

TOP_K = 100


def main() -> None:
    p = collection_parser(__doc__)
    p.add_argument("--queries", type=int, default=2000)
    p.add_argument("--device", default="auto")
    a = parse(p)
    data = read_eval_set(a.collection)
    targets = [Target(f"t{i}", t, f"t{i}", "train", f"t{i}") for i, t in enumerate(data.passages)]
    pairs = [
        Pair(id=f"q{q}", passage_id=f"t{min(r)}", query=text, target_id=f"t{min(r)}", target_text=data.passages[min(r)],
             duplicate_group=f"t{min(r)}", split="train")
        for q, (text, r) in enumerate(zip(data.queries, data.relevant, strict=True))
    ][: a.queries]  # fmt: skip
    described = ModelConfig(
        path=str(a.model.expanduser()), query_instruction=a.query_instruction,
        passage_instruction=a.passage_instruction, device=a.device,
    )  # fmt: skip
    encoder = load_encoder(described)
    encoder.encode(["warm"], "query")  # the weights are read before the clock runs, and the comparison compiled
    token_jaccard(["a"], ["b"])
    print(f"{len(pairs):,} questions, {len(targets):,} passages, {TOP_K} candidates of each source")
    seconds: dict[str, float] = {}

    def step(name: str, work: Callable[[], Any]) -> Any:
        started = time.monotonic()
        result = work()
        seconds[name] = time.monotonic() - started
        print(f"{name:28} {seconds[name]:8.2f} s   peak {peak():.2f} GiB", flush=True)
        return result

    answers = step("encode passages", lambda: encoder.encode(data.passages, "passage").dense)
    queries = step("encode questions", lambda: encoder.encode([x.query for x in pairs], "query").dense)
    step("raw FAISS search", lambda: DenseIndex(answers, "flat").search(queries, TOP_K))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.parquet" for i in range(3)]

        def mined() -> int:
            dense, words = DenseIndex(answers), BM25Index(data.passages)
            searches = {
                "dense": lambda start, end, k: dense.search(queries[start:end], k),
                "bm25": lambda start, end, k: words.search([x.query for x in pairs[start:end]], k),
            }
            return write_blocks(files[0], mine(pairs, targets, queries, answers, searches, TOP_K))

        def scored() -> int:
            scorer = Scorer(pairs, targets, queries, answers)
            return write_blocks(files[1], score(everything(files[0]), scorer, count(files[0])))

        def learnt() -> Evidence:
            found = learn(files[1], len(pairs))
            assert isinstance(found, Evidence), found
            return found

        def chosen(evidence: Evidence) -> int:
            chooser = Chooser(pairs, targets, ChooseConfig(), 1, evidence)
            return write_blocks(files[2], choose(row_groups(files[1]), chooser, count(files[1])))

        step("mine: dense and BM25", mined)
        step("score: 16 features", scored)
        evidence = step("learn from the pairs", learnt)
        step("choose", lambda: chosen(evidence))
    needed = sum(seconds[n] for n in ("encode passages", "encode questions", "raw FAISS search"))
    ours = sum(seconds[n] for n in ("mine: dense and BM25", "score: 16 features", "learn from the pairs", "choose"))
    own_search = ours - seconds["raw FAISS search"]  # ours includes the search, which the bound has too
    print(f"on top of encoding and search: {100 * own_search / needed:.1f} %")


if __name__ == "__main__":
    main()
