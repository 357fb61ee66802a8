"""The pairs that an answer makes: what they are trained on, of which kind they are, and what counts as one target."""

import json

import numpy as np
import pytest

from factory.answers import Answer
from factory.generate import pairs_of, regroup
from factory.retrieve import rank_of_target, targets_of
from tests.handmade import pair, target
from tests.test_generate import answer, config, passage

QUESTION = {"question": "焊条要烤多久？", "answer": "两小时"}
KEYWORDS = {"关键词": "焊条 烘干 温度", "answer": "350℃"}


def items(*rows: dict[str, str]) -> Answer:
    return answer(json.dumps({"items": rows}, ensure_ascii=False))


def test_a_generated_target_that_is_a_given_passage_is_one_with_it():
    """A rank is looked for among the texts that are there once: the two must not be in groups of different names."""
    chosen = config(generate={"pairing": "question-answer"})
    passages = [passage("p"), passage("g", "每半年由技师更换一次", group="of-g")]
    given = [pair(0, target(0)).model_copy(update={"origin": "given", "passage_id": "g", "target_id": "g"})]
    given[0] = given[0].model_copy(update={"target_text": passages[1].text, "duplicate_group": "of-g"})
    texts = [passages[1].text, passages[1].text + "。", "350℃"]
    made = [p for t in texts for p in pairs_of(passages[0], [], items(QUESTION | {"answer": t}), chosen)[0]]
    again = regroup(made, chosen, given)
    assert [p.duplicate_group for p in again] == ["of-g", "of-g", made[2].id]
    for pairs in ([*again, *given], [*given, *again]):
        targets = targets_of(passages, pairs)
        alike = np.ones((len(pairs), 1), np.float32), np.ones((len(targets), 1), np.float32)
        assert rank_of_target(pairs, targets, *alike) == [1] * 4


def test_a_question_that_was_not_reworded_is_not_trained_on():
    chosen = config(generate={"pairing": "question-question"})
    same, other = QUESTION | {"rephrased": "焊条要烤 多久?"}, QUESTION | {"rephrased": "药皮潮了得烘几个钟头？"}
    pairs, dropped = pairs_of(passage("p"), [], items(same, other), chosen)
    assert [p.query for p in pairs] == [other["rephrased"]]
    assert [(d.reason, d.detail) for d in dropped] == [("incomplete", "rephrased is the query")]


@pytest.mark.parametrize(
    ("rows", "finish", "kinds"),
    [
        ([QUESTION, KEYWORDS], "stop", ["fact", "keyword"]),
        ([{"question": "", "answer": "两小时"}, KEYWORDS], "stop", [""]),  # the keywords are no fact
        ([QUESTION], "length", ["fact"]),  # cut off behind it
    ],
)
def test_no_question_is_said_to_be_of_another_ones_kind(rows, finish, kinds):
    said = Answer(items(*rows).text, finish, 1, 1, 0.1)
    pairs, _ = pairs_of(passage("p"), ["fact", "keyword"], said, config())
    assert [p.type for p in pairs] == kinds
