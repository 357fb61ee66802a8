"""The audit finds every planted fault, and nothing in a clean file."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from factory.audit import KINDS, audit
from factory.cli import app
from factory.records import InputError
from tests.handmade import circle

SUBJECTS = [
    "焊条",
    "气孔",
    "裂纹",
    "夹渣",
    "咬边",
    "未熔合",
    "预热",
    "层温",
    "坡口",
    "焊剂",
    "钨极",
    "氩气",
    "电弧",
    "熔池",
    "飞溅",
    "弧坑",
    "磁偏吹",
    "变形",
    "应力",
    "热处理",
    "硬度",
    "探伤",
    "射线",
    "超声",
    "渗透",
    "磁粉",
    "打底",
    "填充",
    "盖面",
    "清根",
    "背保",
    "点焊",
    "定位",
    "引弧",
    "收弧",
    "运条",
    "焊速",
    "电流",
    "电压",
    "极性",
    "干伸长",
]


def passage(i: int) -> str:
    s = SUBJECTS[i % len(SUBJECTS)]
    return f"第{i}条：关于{s}，规程第{i * 7}款要求先检查{SUBJECTS[(i * 3 + 1) % len(SUBJECTS)]}，再记录{i * 13}号炉批。"


def clean_rows(n: int = 45) -> list[dict]:
    return [
        {
            "query": f"{SUBJECTS[i % len(SUBJECTS)]}第{i}条怎么要求？",
            "pos": [passage(i)],
            "neg": [passage(100 + 3 * i + j) for j in range(3)],
        }
        for i in range(n)
    ]


def write(tmp_path, rows):
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    return path


def test_a_clean_file_has_no_finding(tmp_path):
    found = audit(write(tmp_path, clean_rows()))
    assert found.counts == {} and found.findings == []
    assert (found.rows, found.positives, found.negatives, found.distinct_negatives) == (45, 45, 135, 135)


def test_every_planted_fault_is_found_at_its_line(tmp_path):
    rows = clean_rows()
    common = "所有焊工上岗前都要看一遍安全须知，签字后方可领取劳保用品和焊接工具，班后归还。"
    rows[2]["neg"][0] = " " + rows[2]["pos"][0].replace("第", " 第")  # line 3: itself, other white space
    rows[3]["neg"][1] = rows[3]["pos"][0] + "另见附录。"  # line 4: a near-copy
    rows[4]["query"], rows[5]["query"] = "同一个问题？", "同一个问题？ "
    rows[4]["neg"][2] = rows[5]["pos"][0]  # line 5: answers the same question by another row
    rows[6]["neg"][1] = rows[6]["neg"][0]  # line 7
    rows[7] = rows[0] | {"neg": rows[7]["neg"]}  # line 8: the first row again
    rows[8]["neg"][0] = rows[8]["query"]  # line 9
    for i in (10, 11, 12):
        rows[i]["neg"][0] = common  # first in line 11
    rows[13]["neg"][0] = "很长" * 400  # line 14
    rows[14]["neg"][2] = "短"  # line 15
    rows[15]["neg"].pop()  # line 16
    path = write(tmp_path, rows)
    found = audit(path)
    path.write_text("\n\n" + path.read_text(encoding="utf-8"), encoding="utf-8")  # empty lines are lines, too
    assert [f.line for f in audit(path).findings] == [f.line + 2 for f in found.findings]
    assert {(f.kind, f.line) for f in found.findings} == {
        ("negative-is-positive", 3),
        ("negative-copies-positive", 4),
        ("negative-answers-same-question", 5),
        ("repeated-negative", 7),
        ("repeated-row", 8),
        ("query-as-passage", 9),
        ("same-negatives-everywhere", 11),
        ("length-outlier", 14),
        ("length-outlier", 15),
        ("uneven-groups", 16),
    }
    assert set(found.counts) == set(KINDS)


def test_a_string_where_a_list_is_meant_is_an_error_with_its_line(tmp_path):
    rows = clean_rows(3)
    rows[1]["pos"] = rows[1]["pos"][0]
    with pytest.raises(InputError, match=r"train\.jsonl:2: pos"):
        audit(write(tmp_path, rows))


class FirstCharacter:
    """An encoder that knows only a text's first character, and a judge that affirms by a mark in the text."""

    fingerprint, modes = "first", ("dense",)

    def key(self, role):
        return role

    def encode(self, texts, role, *, modes=("dense",)):
        from factory.models import Encoded

        return Encoded(circle([{"正": 0, "难": 10, "易": 80}.get(t[0], 0) for t in texts]))

    def score(self, pairs):
        return np.array([2.0 if "正" in p or "难" in p else -2.0 for _, p in pairs], np.float32)


def test_margins_coverage_and_the_share_of_false_negatives(tmp_path):
    rows = [
        {"query": f"问{i}", "pos": [f"正{i}：{passage(i)}"], "neg": [f"易{i}：{passage(99 - i)}"]} for i in range(40)
    ]
    for i in range(10):
        rows[i]["neg"] = [f"难{i}：{passage(99 - i)}"]
    corpus = [t for r in rows for t in (*r["pos"], *r["neg"])] + [passage(i) for i in range(200, 280)]
    found = audit(write(tmp_path, rows), corpus=corpus, encoder=FirstCharacter())
    assert found.coverage == pytest.approx(0.5)
    assert sorted(found.margins)[:10] == pytest.approx([1 - np.cos(np.radians(10))] * 10, abs=1e-6)

    class Judge(FirstCharacter):
        def score(self, pairs):  # the controls are other rows' positives: the number must fit
            same = [q[1:] == p[1:].split("：")[0] for q, p in pairs]
            return np.array([3.0 if s and p[0] in "正难" else -3.0 for s, (_, p) in zip(same, pairs, strict=True)])

    found = audit(write(tmp_path, rows), judge=Judge()).false_negatives
    assert (found.sample, found.affirmed, found.corrected) == (40, 10, pytest.approx(0.25))
    assert found.interval[0] < 0.25 < found.interval[1]


def test_a_judge_that_errs_too_often_is_not_believed(tmp_path):
    class Coin(FirstCharacter):
        def score(self, pairs):
            return np.random.default_rng(0).normal(size=len(pairs))

    found = audit(write(tmp_path, clean_rows()), judge=Coin()).false_negatives
    assert found.corrected is None


def test_a_judge_that_knows_only_the_subject_is_not_believed(tmp_path):
    """It is right on nine in ten passages of the whole file, and wrong on every one that matters."""
    rows = [
        {
            "query": f"问{i}：{subject}类",
            "pos": [f"{subject}类，{passage(i)}"],
            "neg": [f"{subject}类，{passage(200 + i)}"],
        }
        for i, subject in enumerate("甲乙丙丁戊己庚辛壬癸" * 8)
    ]

    class Subject(FirstCharacter):
        def score(self, pairs):
            return np.array([2.0 if q.split("：")[1] == p.split("，")[0] else -2.0 for q, p in pairs])

    found = audit(write(tmp_path, rows), judge=Subject()).false_negatives
    assert found.affirmed == found.sample == 80
    assert found.judge.specificity < 0.2
    assert found.corrected is None


def test_the_command_prints_and_writes_the_result(tmp_path):
    rows = clean_rows()
    rows[2]["neg"][0] = rows[2]["pos"][0]
    done = CliRunner().invoke(app, ["audit", str(write(tmp_path, rows)), "--out", str(tmp_path / "a.json")])
    assert done.exit_code == 0, done.output
    assert "line 3: negative-is-positive" in done.output
    assert json.loads((tmp_path / "a.json").read_text())["counts"] == {"negative-is-positive": 1}


def test_an_empty_file_is_an_error_and_not_a_clean_one(tmp_path):
    done = CliRunner().invoke(app, ["audit", str(write(tmp_path, []))])
    assert done.exit_code != 0
    with pytest.raises(InputError, match="holds no row"):
        audit(write(tmp_path, []))
