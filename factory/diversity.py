"""What the kept questions cover and how varied they are: passages, types, difficulty, length, wording, subjects.

    write_json(run / QUESTIONS, describe(passages, pairs, kept, dropped, real, encoder))

The page's section "Questions" shows it (`factory.report_questions`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from factory.languages import language, squeeze
from factory.models import Encoder
from factory.question_types import difficulty as level
from factory.records import Dropped, Pair, Passage
from factory.tokens import tokens
from factory.topics import topics

QUESTIONS = "questions.json"
KEPT, NONE_KEPT = "has a kept question", "asked, but no question was kept"
NO_PAIR, NOT_GIVEN = "answered, but without a usable question", "no pair was given for it"
ON_PURPOSE = ("held-out-for-test", "copy-of-another-passage", "copies-a-held-out-passage", "over-max_passages")
LISTED = 200  # documents without a question that are named
BINS = 24  # of a histogram, at most
TOP = 15  # openings that are named
SAMPLE = 1000  # questions that distinct-n and the nearest ones are measured on: both depend on how many there are
LEAST_REAL = 20  # real questions: with fewer every distance is chance
SHUFFLES = 20  # random divisions that say how far chance alone sets two groups of questions apart
SEED = 42


def describe(
    passages: Sequence[Passage],
    pairs: Sequence[Pair],
    kept: Sequence[Pair],
    dropped_generate: Iterable[Dropped],
    real: Sequence[str] = (),
    encoder: Encoder | None = None,
) -> dict[str, Any]:
    """Coverage, acceptance, difficulty, wording and topics of a run's questions, as JSON; the same run, the same bytes.

    Args:
        pairs: all that were made. kept: those of them that the filter kept.
        dropped_generate: what the generate stage left out; a passage's reason is the first that names its id.
        real: questions that users asked, to compare with; with fewer than 20 nothing is compared.
        encoder: for the topics and the distance to real questions, which are left out without it. It encodes the
            passages and, with real questions, at most 1000 of them and of the kept ones.
    """
    real = [text for text in (q.strip() for q in real) if text]
    enough = real if len(real) >= LEAST_REAL else []
    return {
        "coverage": coverage(passages, pairs, kept, dropped_generate),
        "by_type": acceptance(pairs, kept, lambda p: p.type or ("given" if p.origin == "given" else "no type")),
        "by_asker": acceptance(pairs, kept, lambda p: p.asker) if any(p.asker for p in pairs) else [],
        "difficulty": difficulty(kept),
        "languages": languages(kept, enough),
        "topics": topics(passages, pairs, kept, encoder) if encoder else {"missing": "no encoder was given"},
        "real": beside_real([p.query for p in kept], real, encoder),
    }


def coverage(
    passages: Sequence[Passage], pairs: Sequence[Pair], kept: Sequence[Pair], dropped: Iterable[Dropped]
) -> dict[str, Any]:
    """Each passage in exactly one class (`classes`, reason → passages), and the documents without a kept question."""
    with_kept, asked = {p.passage_id for p in kept}, {p.passage_id for p in pairs}
    reason_of: dict[str, str] = {}
    for d in dropped:
        reason_of.setdefault(d.id, d.reason)
    missing = NOT_GIVEN if pairs and all(p.origin == "given" for p in pairs) else NO_PAIR
    classes: Counter[str] = Counter({KEPT: 0})
    documents: dict[str, Counter[str]] = {}
    source: dict[str, tuple[str, str]] = {}
    for p in passages:
        reason = KEPT if p.id in with_kept else NONE_KEPT if p.id in asked else reason_of.get(p.id, missing)
        classes[reason] += 1
        documents.setdefault(p.document_id, Counter())[reason] += 1
        source.setdefault(p.document_id, (p.source, p.title))
    assert classes.total() == len(passages), (classes, len(passages))
    without = [(d, reasons.most_common(1)[0][0]) for d, reasons in documents.items() if not reasons[KEPT]]
    without.sort(key=lambda w: (w[1] in ON_PURPOSE, w[1] != NONE_KEPT))  # first what was tried in vain
    return {
        "passages": len(passages),
        "passages_asked": len(asked),
        "classes": dict(sorted(classes.items(), key=lambda c: (c[0] != KEPT, c[0] in ON_PURPOSE, -c[1], c[0]))),
        "documents": len(documents),
        "documents_covered": len(documents) - len(without),
        "documents_without": dict(Counter(reason for _, reason in without).most_common()),
        "documents_listed": [
            {"id": d, "source": source[d][0], "title": source[d][1], "passages": documents[d].total(), "reason": reason}
            for d, reason in without[:LISTED]
        ],
    }


def acceptance(pairs: Sequence[Pair], kept: Sequence[Pair], kind: Callable[[Pair], str]) -> list[dict[str, Any]]:
    """For each kind of question how many were asked and kept; the most asked first."""
    asked, good = Counter(map(kind, pairs)), Counter(map(kind, kept))
    return [{"name": k, "asked": n, "kept": good[k], "acceptance": good[k] / n} for k, n in asked.most_common()]


def difficulty(kept: Sequence[Pair]) -> dict[str, int]:
    """Questions by the rank of their own target under the base model: easy 1, medium 2 to 5, hard beyond."""
    counts = dict.fromkeys(("easy", "medium", "hard", "not measured"), 0)
    for p in kept:
        name = level(p.rank) or "not measured"
        counts[name] += 1
    return counts


def languages(kept: Sequence[Pair], real: Sequence[str]) -> dict[str, Any]:
    """Lengths, openings and distinct-n for each language; real questions beside them where a language has 20 or more."""
    generated: dict[str, list[str]] = {}
    for pair in kept:
        generated.setdefault(pair.language or language(pair.query), []).append(pair.query)
    users: dict[str, list[str]] = {}
    for query in real:
        users.setdefault(language(query), []).append(query)
    users = {lang: queries for lang, queries in users.items() if len(queries) >= LEAST_REAL}
    found = {}
    for lang in sorted(generated.keys() | users.keys(), key=lambda name: (-len(generated.get(name, [])), name)):
        ours, theirs = generated.get(lang, []), users.get(lang, [])
        number = min(SAMPLE, *(len(texts) for texts in (ours, theirs) if texts))
        found[lang] = {
            "questions": len(ours),
            "real": len(theirs),
            "lengths": lengths(ours, theirs),
            "openings": openings(ours, theirs),
            "distinct": {
                "sampled": number,
                "generated": distinct(_draw(ours, number), lang) if ours else None,
                "real": distinct(_draw(theirs, number), lang) if theirs else None,
            },
        }
    return found


def lengths(generated: Sequence[str], real: Sequence[str]) -> dict[str, Any]:
    """Characters of a question: quartiles, and histograms over the same bins of whole width, the last one open."""
    sizes = {name: np.array([len(q) for q in texts]) for name, texts in (("generated", generated), ("real", real))}
    some = {name: values for name, values in sizes.items() if len(values)}
    low = min(int(v.min()) for v in some.values())
    high = max(int(np.quantile(v, 0.99, method="higher")) for v in some.values())  # a few long ones must not flatten it
    width = -(-(high - low + 1) // BINS)
    bins = (high - low) // width + 1

    def shape(values: np.ndarray) -> dict[str, Any]:
        counts = np.bincount(np.minimum((values - low) // width, bins - 1), minlength=bins)
        quartiles = [float(q) for q in np.quantile(values, (0.25, 0.5, 0.75))]
        return {"bins": counts.tolist(), "quartiles": quartiles, "longest": int(values.max())}

    return {"from": low, "width": width} | {name: shape(some[name]) if name in some else None for name in sizes}


def opening(query: str) -> str:
    """The first word in lower case, of Chinese the first two characters; punctuation and quotes before it do not count.

    >>> opening("“怎样”算超载？"), opening("What's E5?")
    ('怎样', 'what')
    """
    return next(iter(tokens(query)), "")


def openings(generated: Sequence[str], real: Sequence[str]) -> dict[str, Any]:
    """The most frequent openings of both with their shares, how many differ, and how far the two distributions are apart.

    Both distances go from 0 to 1: total variation is the share of questions that would have to begin otherwise; `js` is
    the Jensen-Shannon distance (square root of the divergence to base 2). `by_chance` is what random divisions of all
    these questions into groups of these sizes give: small groups differ by chance alone.
    """
    ours, theirs = [opening(q) for q in generated], [opening(q) for q in real]
    counts = Counter(ours), Counter(theirs)

    def side(own: int) -> dict[str, Any] | None:
        mine, other = counts[own], counts[1 - own]
        if not mine:
            return None
        ranked = sorted(mine.items(), key=lambda c: (-c[1], c[0]))[:TOP]
        top = [
            {
                "opening": word,
                "questions": n,
                "share": n / mine.total(),
                "other_share": other[word] / other.total() if other else None,
            }
            for word, n in ranked
        ]
        return {"distinct": len(mine), "top": top}

    return {
        "generated": side(0),
        "real": side(1),
        "distance": _distances(ours, theirs) if ours and theirs else None,
    }


def _distances(ours: Sequence[str], theirs: Sequence[str]) -> dict[str, Any]:
    from scipy.spatial.distance import jensenshannon

    code = {word: i for i, word in enumerate(dict.fromkeys([*ours, *theirs]))}
    everyone = np.array([code[word] for word in (*ours, *theirs)])

    def apart(words: np.ndarray) -> tuple[float, float]:
        p, q = (np.bincount(part, minlength=len(code)) / len(part) for part in np.split(words, [len(ours)]))
        return float(np.abs(p - q).sum() / 2), float(jensenshannon(p, q, base=2))

    draw = np.random.default_rng(SEED)
    variation, js = apart(everyone)
    chance = np.mean([apart(draw.permutation(everyone)) for _ in range(SHUFFLES)], axis=0)
    return {
        "total_variation": {"value": variation, "by_chance": float(chance[0])},
        "js": {"value": js, "by_chance": float(chance[1])},
    }


def distinct(queries: Sequence[str], lang: str) -> dict[str, float]:
    """distinct-1 and distinct-2: different n-grams over all n-grams (Li et al. 2016, "A Diversity-Promoting Objective
    Function for Neural Conversation Models"); of words, in Chinese of characters. It falls as the number of queries grows.
    """
    texts = [[c for c in squeeze(q) if c.isalnum()] if lang == "zh" else tokens(q) for q in queries]
    ones = [unit for text in texts for unit in text]
    twos = [two for text in texts for two in pairwise(text)]
    return {f"distinct_{n}": len(set(g)) / len(g) if g else 0.0 for n, g in ((1, ones), (2, twos))}


def beside_real(generated: Sequence[str], real: Sequence[str], encoder: Encoder | None) -> dict[str, Any]:
    """How near generated questions come to the real ones in the base model's space; `missing` says why it is not known.

    `to_generated` is the mean cosine of a real question to its nearest of `among` generated ones, `to_real` to its
    nearest of as many other real ones, `to_any` to a real one on average. Equal texts count once.
    """
    found: dict[str, Any] = {"questions": len(real)}
    if len(real) < LEAST_REAL:
        why = (
            f"{len(real)} real questions are too few to compare with; at least {LEAST_REAL} are needed" if real else ""
        )
        return found | {"missing": why or "no questions of real users were given"}
    theirs, ours = (_draw(list({squeeze(q): q for q in texts}.values()), SAMPLE) for texts in (real, generated))
    among = min(len(ours), len(theirs) - 1)
    if encoder is None or among < 1:
        return found | {"missing": "", "nearest": None}
    r = encoder.encode(theirs, "query").dense
    g = encoder.encode(_draw(ours, among), "query").dense
    each = np.arange(len(r))
    others = r @ r[: among + 1].T  # itself, or the last one too many, is no candidate: `among` are left
    others[each, np.minimum(each, among)] = np.nan
    nearest = {
        "among": among,
        "to_generated": float((r @ g.T).max(axis=1).mean()),
        "to_real": float(np.nanmax(others, axis=1).mean()),
        "to_any": float(np.nanmean(others)),
    }
    return found | {"missing": "", "nearest": nearest}


def _draw(texts: Sequence[str], number: int) -> list[str]:
    """At most so many of them in a random order, which is always the same."""
    return random.Random(SEED).sample(texts, min(number, len(texts)))
