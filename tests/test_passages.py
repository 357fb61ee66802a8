"""Splitting: pieces fit the model, point back into their document, and no copy crosses from train to eval."""

import random
from pathlib import Path

import pytest

from factory.config import Config
from factory.duplicates import join_contained, near_duplicate_groups
from factory.passages import assign_splits, count_tokens, load_tokenizer, make_passages, trainable
from factory.questions import Answer, Question, passages_of, read_questions
from factory.records import Document, InputError
from tests.tiny_models import make_tiny_m3

SENTENCES = [
    "冷裂纹多在焊后数小时出现，与扩散氢有关。",
    "预热温度一般取一百到一百五十摄氏度。",
    "焊条在三百五十度烘干两小时，随用随取。",
    "The shielding gas flow is 15 L/min.",
    "层间温度不得低于预热温度！",
    "未熔合常在坡口侧壁，超声波比射线更容易发现。",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_m3(tmp_path_factory.mktemp("m3"))


def config(model: Path, **parts) -> Config:
    return Config.model_validate({"input": {"path": "x"}, "model": {"path": str(model)}} | parts)


def document(name: str, text: str, markdown: bool = True) -> Document:
    return Document(id=name, source=name, title=name, text=text, markdown=markdown)


def long_text(seed: int, paragraphs: int = 12) -> str:
    """Chinese-looking text that differs from seed to seed."""
    draw = random.Random(seed)
    parts = [f"# 手册{seed}"]
    for i in range(paragraphs):
        sentences = ["".join(chr(draw.randrange(0x4E00, 0x6000)) for _ in range(14)) + "，" + s for s in SENTENCES]
        parts += [f"## 第{seed}号车间第{i}节", "".join(f"{seed}-{i}-{j}：{s}" for j, s in enumerate(sentences))]
    return "\n\n".join(parts)


def test_passages_fit_the_budget_and_point_back_into_their_document(model):
    documents = [document(f"{i}.md", long_text(i)) for i in range(4)]
    passages, _ = make_passages(documents, config(model, passages={"max_tokens": 120, "min_tokens": 8}), [])
    tokenizer = load_tokenizer(model)
    texts = {d.id: d.text for d in documents}
    assert len(passages) > 40
    for p in passages:
        assert p.text == texts[p.document_id][p.start : p.end]
        assert p.tokens == count_tokens(tokenizer, p.text) <= 120
        assert p.headings[0].startswith("手册")
    covered = sum(len(p.text) for p in passages) / sum(map(len, texts.values()))
    assert covered > 0.97


def test_a_cut_falls_behind_a_chinese_sentence_end(model):
    text = "".join(SENTENCES * 8)
    passages, _ = make_passages(
        [document("a.txt", text, markdown=False)], config(model, passages={"max_tokens": 64}, split={"eval": 0}), []
    )
    assert len(passages) > 3
    assert all(p.text.rstrip()[-1] in "。！." for p in passages)


def test_a_lone_heading_is_joined_to_what_it_heads(model):
    text = "# 一\n\n## 二\n\n### 三\n\n" + SENTENCES[0] * 3
    passages, dropped = make_passages([document("a.md", text)], config(model, split={"eval": 0}), [])
    assert [p.text for p in passages] == [text.strip()]
    assert not dropped


def test_a_heading_that_fits_no_passage_is_none_by_itself(model):
    """It would be asked about, and be a negative that answers nothing; what it heads still has it."""
    heading, body = "焊缝气孔：氢气孔、氮气孔与一氧化碳气孔的成因", SENTENCES[0] * 9
    text = f"# {heading}\n\n{body}"
    given = config(model, passages={"max_tokens": 256, "min_tokens": 8}, split={"eval": 0})
    passages, dropped = make_passages([document("a.md", text)], given, [])
    assert body in "".join(p.text for p in passages)
    assert all(p.headings == (heading,) for p in passages)
    assert not [p for p in passages if p.text.startswith("#")]
    assert [(d.reason, d.text) for d in dropped] == [("too-short", f"# {heading}")]


def test_of_several_headings_that_fit_no_passage_none_is_lost(model):
    from factory.passages import join_short, load_tokenizer

    parts = ["# 焊缝气孔\n\n", "## 氢气孔与氮气孔\n\n", SENTENCES[0] * 9]
    ends = [len("".join(parts[: i + 1])) for i in range(3)]
    pieces = list(zip([0, *ends], ends, strict=False))
    given = config(model, passages={"max_tokens": 200}, split={"eval": 0})
    joined = join_short(pieces, document("a.md", "".join(parts)), given.passages, load_tokenizer(model))
    assert joined == [(0, ends[1]), (ends[1], ends[2])]


def test_a_passage_without_any_break_is_still_cut_to_the_budget(model):
    passages, _ = make_passages([document("a.txt", "焊" * 10_000, False)], config(model, split={"eval": 0}), [])
    assert len(passages) > 10
    assert max(p.tokens for p in passages) <= 256


def test_prepared_passages_are_kept_as_they_are(model):
    text = SENTENCES[0] * 200
    whole = Document(id="d0", source="corpus.jsonl", text=text, whole=True)
    passages, _ = make_passages([whole], config(model, split={"eval": 0}), [])
    assert [p.text for p in passages] == [text]


def test_copies_of_a_document_never_end_on_both_sides_of_the_split(model):
    documents = [document(f"{i}.md", long_text(i)) for i in range(10)]
    documents += [document(f"copy-{i}.md", long_text(i).replace("手册", "手 册 ")) for i in range(10)]
    passages, _ = make_passages(documents, config(model, split={"eval": 0.3, "dev": 0.1}), [])
    splits = {d.id: {p.split for p in passages if p.document_id == d.id} for d in documents}
    assert all(len(s) == 1 for s in splits.values())
    assert all(splits[f"{i}.md"] == splits[f"copy-{i}.md"] for i in range(10))
    assert {s for each in splits.values() for s in each} == {"train", "dev", "eval"}


@pytest.mark.parametrize("seed", range(4))
def test_a_document_that_stands_within_a_larger_one_is_on_the_same_side_of_the_split(model, seed):
    """Its passages there begin elsewhere, so that none is a copy, and yet all of its text would be trained on."""
    documents = [document(f"{i}.txt", long_text(i), False) for i in range(6)]
    documents += [document("larger.txt", long_text(7, 10) + "\n" + documents[0].text, False)]
    passages, _ = make_passages(documents, config(model, split={"eval": 0.3}, seed=seed), [])
    assert len({p.split for p in passages if p.document_id in ("0.txt", "larger.txt")}) == 1
    assert len({p.document_group for p in passages}) == 6


def test_boilerplate_joins_no_documents():
    """Nor does a text of nothing else, which all of the others hold."""
    boilerplate = "\n".join(f"本手册第{i}条约定的责任以采购合同为准。" for i in "一二三四五六")
    texts = [f"第{i}号设备每半年由两名技师检修一次。\n{boilerplate}" for i in range(9)]
    texts = [t + long_text(i, 1) for i, t in enumerate(texts)] + [boilerplate]
    assert join_contained(texts, range(10), 0.8) == list(range(10))


def test_a_training_passage_that_copies_a_held_out_one_is_not_trainable(model):
    shared = "\n\n## 附录\n\n" + "".join(SENTENCES) * 2
    documents = [document(f"{i}.md", long_text(i, 8) + shared) for i in range(6)]
    passages, _ = make_passages(documents, config(model, passages={"max_tokens": 150}, split={"eval": 0.3}), [])
    usable, copies = trainable(passages)
    held_out = {p.duplicate_group for p in passages if p.split == "eval"}
    assert copies and all(p.headings[-1] == "附录" for p in copies)
    assert not held_out & {p.duplicate_group for p in usable}


def test_documents_that_test_questions_rest_on_are_held_out(model):
    documents = [document(f"{i}.md", long_text(i)) for i in range(6)]
    question = Question(id="q", query="预热多少度？", answers=(Answer(document="3.md", quote="第3号 车间第5节"),))
    passages, _ = make_passages(documents, config(model, test={"questions": "q.jsonl"}), [question])
    assert {p.document_id for p in passages if p.split == "eval"} == {"3.md"}
    (found,) = passages_of(question, passages)
    assert "第3号车间第5节" in next(p.text for p in passages if p.id == found)


def test_a_quote_that_no_document_holds_is_an_error_with_its_line(model, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(
        '{"id": "a", "query": "?!x", "answers": [{"document": "0.md", "quote": "不存在的话"}]}\n', encoding="utf-8"
    )
    with pytest.raises(InputError, match=r"questions\.jsonl:1: quote '不存在的话' is not in '0\.md'"):
        make_passages(
            [document("0.md", long_text(0))], config(model, test={"questions": str(path)}), read_questions(path)
        )


def test_holding_everything_out_is_an_error_not_an_empty_training_file(model):
    with pytest.raises(InputError, match="nothing is left to train on"):
        assign_splits({"only": 100}, config(model), set())


def test_the_split_does_not_change_between_runs_and_hits_its_share(model):
    weights = {f"d{i}": 50 + i for i in range(100)}
    first = assign_splits(weights, config(model, split={"eval": 0.2}), set())
    assert first == assign_splits(dict(reversed(weights.items())), config(model, split={"eval": 0.2}), set())
    share = sum(w for d, w in weights.items() if first[d] == "eval") / sum(weights.values())
    assert 0.15 < share < 0.25


def test_near_duplicates_are_found_whatever_their_spacing_and_width():
    a = "".join(SENTENCES)
    texts = [
        a,
        "别的话题：咖啡豆烘焙到一爆之后升温率下降。",
        a.replace("，", " ，\n"),
        a.replace("扩散氢", "扩散的氢"),
        a.replace("L/min", "Ｌ/ｍｉｎ"),
    ]
    assert near_duplicate_groups(texts, 0.8) == [0, 1, 0, 0, 0]


def test_overlap_not_below_the_budget_is_an_error(model):
    with pytest.raises(InputError, match="overlap_tokens 300 must be below"):
        make_passages([document("a.md", "x")], config(model, passages={"overlap_tokens": 300}), [])
