"""What the reranker reads, what it is never asked twice, and the LLM as a reranker."""

import math

import numpy as np
import pytest

from factory.answers import Answer
from factory.judge import LLMJudge, logit
from factory.llm import LLM
from factory.records import InputError
from factory.rerank import CachedReranker, add_scores, worth_reading
from factory.settings import ChooseConfig, ScoreConfig
from factory.token_estimate import crop_to, estimated_tokens
from tests.handmade import scored


class Counting:
    """Scores by length, and remembers what it was asked."""

    fingerprint = "counting"

    def __init__(self):
        self.asked = []

    def score(self, pairs):
        self.asked += pairs
        return np.array([len(q) - len(p) for q, p in pairs], np.float32)


def test_a_pair_of_texts_is_scored_once_in_its_life(tmp_path):
    reranker, path = Counting(), tmp_path / "cache" / "rerank.sqlite"
    pairs = [("问", "答案"), ("ab", "c"), ("a", "bc"), ("问", "答案")]
    first = CachedReranker(reranker, path).score(pairs)
    assert first.tolist() == [-1, 1, -1, -1]
    assert CachedReranker(reranker, path).score([*pairs, ("new", "")]).tolist() == [*first.tolist(), 3]
    assert reranker.asked == [("问", "答案"), ("ab", "c"), ("a", "bc"), ("new", "")]
    other = Counting()
    other.fingerprint = "another model"
    CachedReranker(other, path).score(pairs[:1])
    assert other.asked == pairs[:1]


def test_a_reranker_that_gives_no_number_stops_and_is_not_remembered(tmp_path):
    class Overflowing(Counting):
        def score(self, pairs):
            return super().score(pairs) * np.array([1.0] * (len(pairs) - 1) + [np.nan])

    with pytest.raises(InputError, match="NaN or infinity"):
        CachedReranker(Overflowing(), tmp_path / "r.sqlite").score([("a", "b"), ("c", "d")])
    healthy = Counting()
    CachedReranker(healthy, tmp_path / "r.sqlite").score([("a", "b"), ("c", "d")])
    assert len(healthy.asked) == 2


def test_a_cache_that_is_no_database_is_an_error(tmp_path):
    (tmp_path / "r.sqlite").write_bytes(b"not a database, and long enough to be read as one" * 30)
    with pytest.raises(InputError, match="not a usable SQLite file"):
        CachedReranker(Counting(), tmp_path / "r.sqlite").score([("a", "b")])


def test_the_cascade_reads_the_first_of_each_question_that_are_no_copies():
    scores, pairs, _ = scored()
    copy = np.zeros(len(scores), np.float32)
    copy[[0, 21]] = 0.9  # the first candidate of q0, the second of q1
    at = scores.column_names.index("answer_tgt_answer_jaccard")
    import pyarrow as pa

    scores = scores.set_column(at, "answer_tgt_answer_jaccard", pa.array(copy))
    reads = worth_reading(scores, depth=3, near_copy=0.8)
    assert np.flatnonzero(reads).tolist() == [1, 2, 3, 20, 22, 23, 40, 41, 42, 60, 61, 62, 80, 81, 82]
    reranker = Counting()
    (table,) = add_scores([scores], reranker, ScoreConfig(rerank_depth=3), ChooseConfig())
    assert len(reranker.asked) == 15 + len(pairs)  # and each question's own positive, once
    for row, read in zip(table.to_pylist(), reads, strict=True):
        assert row["rerank_score"] == (len(row["query"]) - len(row["target_answer"]) if read else None)
        assert row["positive_rerank_score"] == len(row["query"]) - len(row["answer"])


def answer(*first: tuple[str, float]) -> Answer:
    return Answer("", "length", 1, 1, 0.1, first)


def test_a_logit_is_yes_against_no_of_the_first_word():
    both = answer((" Yes", math.log(0.6)), ("yes", math.log(0.1)), ("No", math.log(0.2)), ("I", math.log(0.1)))
    assert logit(both) == pytest.approx(math.log(0.7 / 0.2))
    assert logit(answer(("否", math.log(0.5)), ("是", math.log(0.25)))) == pytest.approx(math.log(0.5))
    # what is not among the alternatives is at most as likely as the least of them
    assert logit(answer(("是", -0.1), ("x", -4.0))) == pytest.approx(3.9)
    assert logit(answer(("The", -0.1), ("A", -2.0))) == 0
    assert logit(answer()) == 0
    assert math.isfinite(logit(answer(("yes", -math.inf), ("no", 0.0))))


def test_a_long_passage_is_cut_to_fit_the_context():
    assert estimated_tokens("焊接" * 50) >= 100 and estimated_tokens("weld " * 60) == 101
    assert crop_to("焊" * 900, 300) == "焊" * 299 and crop_to("短", 300) == "短"


def test_a_real_server_gives_log_probabilities_and_no_judgement_is_paid_for_twice(tmp_path, server):
    text = "The shop opens at nine and closes at six. " * 60  # longer than the context: its beginning is judged
    pairs = [("When does the shop open?", text), ("Who painted this?", text[:80]), ("焊条怎么烘？", "焊条烘两小时。")]
    with LLM(server(), "m", tmp_path / "llm.sqlite", tmp_path / "log", print) as llm:
        judge = LLMJudge(llm)
        first = judge.score(pairs)
        assert np.isfinite(first).all() and len(set(first.tolist())) == 3 and (np.abs(first) < 30).all()
    with LLM(server(model="/nowhere"), "m", tmp_path / "llm.sqlite", tmp_path / "log", print) as llm:
        again = LLMJudge(llm)
        assert again.score(pairs).tolist() == first.tolist()  # the server is not even started
        assert again.fingerprint == judge.fingerprint
