"""Subjects of a collection: the passages' vectors in k-means clusters, each named by its words, and how often it is asked about."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from factory.models import Encoder
from factory.records import Pair, Passage
from factory.tokens import words_of

MOST = 12  # topics: what a person reads at a glance
LEAST_PASSAGES = 12  # below, the passages themselves are quicker to read
FITTED = 10_000  # passages that the centres are learnt from; the others go to the nearest centre
READ, CHARACTERS = 80, 500  # passages of a topic that its name is taken from, and how much of each
NAMED_BY = 4  # terms
SEED = 42


def topics(
    passages: Sequence[Passage], pairs: Sequence[Pair], kept: Sequence[Pair], encoder: Encoder
) -> dict[str, Any]:
    """`topics`: of each its terms, passages, passages asked about and with a kept question, kept questions, and these
    for each passage; the least asked about first. Or `missing`: in words why there are none.

    k = min(12, √passages) clusters of the passages' dense vectors, on one thread: the same vectors give the same topics.
    """
    texts = [p.text for p in passages]
    different = len(set(texts))
    if different < LEAST_PASSAGES:
        return {"missing": f"{different} different passages are too few to group; {LEAST_PASSAGES} are needed"}
    vectors = encoder.encode(texts, "passage").dense
    label = _clusters(vectors, min(MOST, round(math.sqrt(different))))
    names = _names(texts, label)
    asked, questions = {p.passage_id for p in pairs}, Counter(p.passage_id for p in kept)
    found = []
    for topic, terms in names.items():
        ids = [p.id for p, its in zip(passages, label, strict=True) if its == topic]
        count = sum(questions[i] for i in ids)
        found.append(
            {
                "terms": terms,
                "passages": len(ids),
                "passages_asked": sum(i in asked for i in ids),
                "passages_covered": sum(i in questions for i in ids),
                "questions": count,
                "questions_per_passage": count / len(ids),
            }
        )
    return {"topics": sorted(found, key=lambda t: (t["questions_per_passage"], -t["passages"]))}


def _clusters(vectors: np.ndarray, k: int) -> np.ndarray:
    """The cluster of each row."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    rows = np.random.default_rng(SEED).permutation(len(vectors))[:FITTED]
    with threadpool_limits(1):  # threads add up in any order, and the last bits may move a passage
        return KMeans(k, n_init=4, random_state=SEED).fit(vectors[np.sort(rows)]).predict(vectors)


def _names(texts: Sequence[str], label: np.ndarray) -> dict[int, list[str]]:
    """The terms that tell each cluster from the collection, most telling first.

    A term's weight is p·ln(p / q): p of the cluster's passages hold it, q of all. That is tf-idf with the cluster as the
    document, where a word that stands everywhere weighs 0 (its share of the Kullback-Leibler divergence).
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

    clusters = [int(c) for c in np.unique(label)]
    rows = [np.flatnonzero(label == c) for c in clusters]
    read = [r[np.linspace(0, len(r) - 1, min(len(r), READ)).astype(int)] for r in rows]
    words = words_of("jieba")  # a name of bigrams would read 原告·告曹

    def terms(text: str) -> list[str]:
        return [w for w in words(text[:CHARACTERS]) if len(w) > 1 and not w.isnumeric() and w not in ENGLISH_STOP_WORDS]

    counter = CountVectorizer(analyzer=terms, binary=True)
    held = counter.fit_transform([texts[i] for i in np.concatenate(read)]).astype(np.float64)
    vocabulary = counter.get_feature_names_out()
    ends = np.cumsum([len(r) for r in read])
    parts = [held[end - len(r) : end] for r, end in zip(read, ends, strict=True)]
    inside = np.vstack([np.asarray(part.mean(axis=0)).ravel() for part in parts])
    often = np.vstack([np.asarray(part.sum(axis=0)).ravel() for part in parts]) > 1
    overall = np.average(inside, axis=0, weights=[len(r) for r in rows])
    weight = np.where(often, inside * np.log(np.maximum(inside, 1e-12) / overall), 0)
    return {
        cluster: [str(vocabulary[j]) for j in np.lexsort((vocabulary, -row))[:NAMED_BY] if row[j] > 0]
        for cluster, row in zip(clusters, weight, strict=True)
    }
