"""Ways to choose negatives, behind one call: the same pairs and the same vectors in, row numbers of targets out."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from factory.choose import Chooser
from factory.config import Config
from factory.evidence import Evidence, learn
from factory.hybrid import Scorer
from factory.indexes import BM25Index, DenseIndex
from factory.judging import Probabilities, judge_candidates
from factory.models import Reranker
from factory.records import Pair
from factory.retrieve import Target, mine
from factory.settings import ChooseConfig
from factory.tables import write_blocks

Negatives = list[list[int]]  # of each pair, indices of targets


@dataclass
class Problem:
    """Pairs with one known positive each, and everything that can be searched.

    Attributes:
        queries: (pairs, d), answers: (targets, d), float32, unit length.
    """

    pairs: list[Pair]
    targets: list[Target]
    queries: np.ndarray
    answers: np.ndarray

    def positives(self) -> list[int]:
        at = {t.id: i for i, t in enumerate(self.targets)}
        return [at[p.target_id] for p in self.pairs]


def at_random(p: Problem, n: int, seed: int) -> Negatives:
    """Any passage but the positive."""
    draw = random.Random(seed)
    return [[i for i in draw.sample(range(len(p.targets)), n + 1) if i != own][:n] for own in p.positives()]


def hn_mine(p: Problem, n: int, seed: int, first: int = 10, last: int = 210) -> Negatives:
    """FlagEmbedding's hn_mine.py: the ranks 10 to 209 of the exact search, without the positive's text and the
    query's, n of them at random; where there are fewer, the rest from the whole corpus."""
    draw = random.Random(seed)
    _, rows = DenseIndex(p.answers, "flat").search(p.queries, last)
    texts = [t.text for t in p.targets]
    chosen: Negatives = []
    for pair, found in zip(p.pairs, rows[:, first:last].tolist(), strict=True):
        left = [i for i in found if i >= 0 and texts[i] not in (pair.target_text, pair.query)]
        drawn = draw.sample(left, n) if len(left) > n else left
        while len(drawn) < n:
            other = draw.randrange(len(texts))
            if texts[other] != pair.target_text:
                drawn.append(other)
        chosen.append(drawn)
    return chosen


def sentence_transformers(p: Problem, n: int, seed: int, **options: Any) -> Negatives:
    """sentence-transformers' own `mine_hard_negatives`, which is given our vectors instead of a model."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    # a text that is there twice would come back as the first of the two
    at = {f"{i}|{t.text}": i for i, t in enumerate(p.targets)}
    names = list(at)
    asked = {f"{i}|{pair.query}": i for i, pair in enumerate(p.pairs)}

    class Known:
        """What the function asks of a SentenceTransformer."""

        device = "cpu"

        def encode_document(self, texts: Any, **_: Any) -> np.ndarray:
            return p.answers[[at[t] for t in texts]]

        def encode_query(self, texts: Any, **_: Any) -> np.ndarray:
            return p.queries[[asked[t] for t in texts]]

        def get_embedding_dimension(self) -> int:
            return int(p.answers.shape[1])

        def similarity_pairwise(self, left: Any, right: Any) -> Any:
            import torch

            return (torch.as_tensor(left) * torch.as_tensor(right)).sum(dim=1)

    random.seed(seed)
    np.random.seed(seed)
    found = mine_hard_negatives(
        Dataset.from_dict({"anchor": list(asked), "positive": [names[i] for i in p.positives()]}),
        Known(),
        corpus=names,
        num_negatives=n,
        output_format="labeled-list",
        use_faiss=True,
        verbose=False,
        **options,
    )
    chosen: Negatives = [[] for _ in p.pairs]
    for row in found:
        texts, labels = row["positive"], row["labels"]
        chosen[asked[row["anchor"]]] = [at[a] for a, y in zip(texts, labels, strict=True) if not y]
    return chosen


def others(p: Problem, n: int) -> dict[str, Callable[[int], Negatives]]:
    """The miners that ours is set beside, by name; each takes a seed."""
    return {
        "random": lambda s: at_random(p, n, s),
        "hn_mine 10-210": lambda s: hn_mine(p, n, s),
        "mine_hard_negatives": lambda s: sentence_transformers(p, n, s),
        "relative_margin 0.05": lambda s: sentence_transformers(p, n, s, relative_margin=0.05),
    }


class Ours:
    """What `bge-factory build` does from mine to choose. Judged once; every choice after that is free.

    Args:
        top_k: candidates of each source. judge: None for the ceiling alone.
    """

    def __init__(self, p: Problem, config: Config, scratch: Path, judge: Reranker | None, say: Callable[[str], None]):
        self.p, self.config, self.scratch = p, config, scratch
        dense, words = DenseIndex(p.answers), BM25Index([t.text for t in p.targets])
        searches = {
            "dense": lambda start, end, k: dense.search(p.queries[start:end], k),
            "bm25": lambda start, end, k: words.search([x.query for x in p.pairs[start:end]], k),
        }
        scorer = Scorer(p.pairs, p.targets, p.queries, p.answers)
        blocks = mine(p.pairs, p.targets, p.queries, p.answers, searches, config.mine.top_k)
        self.blocks = [scorer.table(block) for block in blocks]
        path = scratch / "scores.parquet"
        write_blocks(path, self.blocks)
        learnt = learn(path, len(p.pairs))
        self.evidence = None if isinstance(learnt, str) else learnt
        self.probability: Probabilities | Evidence | None = self.evidence
        self.outcome = None
        if judge:
            self.outcome = judge_candidates(path, p.pairs, p.targets, config, judge, say, self.evidence)
            if not isinstance(self.outcome.model, str):
                self.probability = Probabilities(self.outcome.model, self.outcome.table(path), self.evidence)

    def choose(self, n: int, seed: int, *, judge: bool = True, **choose: Any) -> Negatives:
        """Negatives by these settings; without `judge` by what the pairs alone teach."""
        settings = ChooseConfig.model_validate({"negatives": n} | choose)
        learnt = (self.probability if judge else self.evidence) if settings.preset == "resolve" else None
        chooser = Chooser(self.p.pairs, self.p.targets, settings, seed, learnt)
        at = {t.id: i for i, t in enumerate(self.p.targets)}
        place = {pair.id: i for i, pair in enumerate(self.p.pairs)}
        chosen: Negatives = [[] for _ in self.p.pairs]
        for table in (chooser.block(b) for b in self.blocks):
            for pair, candidate in _negatives(table):
                chosen[place[pair]].append(at[candidate])
        return chosen


def _negatives(table: pa.Table) -> Sequence[tuple[str, str]]:
    columns = (table[name].to_pylist() for name in ("pair_id", "candidate_id", "decision"))
    return [(p, c) for p, c, d in zip(*columns, strict=True) if d == "negative"]
