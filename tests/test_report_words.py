"""The report in two languages: every text has both, nothing else is written into the templates, and a browser shows one."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from markupsafe import escape

from factory.diversity import QUESTIONS, beside_real, describe
from factory.evaluation import Change
from factory.evidence import learn
from factory.false_negatives import fit, judge_error
from factory.gates import limit, requirement, verdict
from factory.groups import length_classes
from factory.question_repeats import repeated
from factory.question_rules import rule_broken
from factory.question_types import TYPES
from factory.records import Pair, Passage, read_records
from factory.report import write_report
from factory.report_words import WORDS, known, percent, said, say, table
from factory.settings_questions import QualityConfig, RuleName
from factory.workspace import write_json
from tests import handmade
from tests.browser import Browser, find_chromium
from tests.review_run import make_run
from tests.small_run import passage
from tests.test_report_parts import BETTER, evaluation, write_events

CHROMIUM = find_chromium()
TEMPLATES = sorted(WORDS.parent.glob("*.html.j2"))
HAN = re.compile(r"[\u4e00-\u9fff]")
# Names that are the same in both languages.
NAMES = {"English", "BM25", "p", "tuned", "base", "bge", "factory", "nbsp", "DOCTYPE", "html"}


def fields(text: str) -> list[str]:
    return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name)


def test_every_text_has_both_languages_with_the_same_places() -> None:
    for key, entry in table().items():
        assert set(entry) == {"en", "zh"}, key
        assert entry["en"] and (entry["zh"] or key == "gap"), key
        assert sorted(set(fields(entry["en"]))) == sorted(set(fields(entry["zh"]))), key
        assert not HAN.search(entry["en"]), key
        words = re.sub(r"<[^>]+>|<code>.*?</code>|\{[^}]*\}|&\w+;", " ", entry["zh"])
        same = entry["zh"] == entry["en"] and len(entry["en"].split()) < 2
        assert same or HAN.search(words) or not re.search(r"[A-Za-z]{2,} [a-z]{2,}", words), (key, entry["zh"])


def test_the_templates_and_the_code_ask_for_texts_that_are_there_and_for_each_of_them() -> None:
    sources = [*TEMPLATES, *WORDS.parent.parent.glob("report*.py")]
    code = "\n".join(p.read_text(encoding="utf-8") for p in sources)
    whole = set(re.findall(r"""\b(?:t|say)\(f?"([^"{]+)"(?! ~)""", code))
    assert whole <= table().keys(), whole - table().keys()
    begun = set(re.findall(r"""\b(?:t|say)\(f?"([^"{]+)(?:\{|" ~)""", code)) | {
        f"{prefix}." for prefix in re.findall(r"""\bknown\("([^"]+)\"""", code)
    }
    quoted = set(re.findall(r"\"([a-z]+\.[^\"]+)\"", code))
    unused = [k for k in table() if k not in whole | quoted and not k.startswith((*begun, "said.", "subtitle."))]
    assert not unused


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda p: p.name)
def test_no_word_of_a_template_is_untranslated(template: Path) -> None:
    text = re.sub(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}", " ", template.read_text(encoding="utf-8"), flags=re.S)
    words = re.findall(r"[A-Za-z\u4e00-\u9fff]\w*", re.sub(r"<style>.*?</style>|<[^>]*>", " ", text, flags=re.S))
    assert set(words) <= NAMES | {"中文"}, set(words) - NAMES


def test_values_are_escaped_and_sentences_of_files_are_recognised() -> None:
    text = say("done.llm", llm="<script>")
    assert "&lt;script&gt;" in text.en and "&lt;script&gt;" in text.zh and "生成" in text.zh
    assert said("68 questions are too few to learn from; 50 are needed").zh == "68 个问题太少，至少需要 50 个"
    assert said("<b>something else</b>").zh == "&lt;b&gt;something else&lt;/b&gt;"
    assert known("reason", "score > 0.9").zh == "score &gt; 0.9"


def test_a_share_is_written_as_each_language_writes_it() -> None:
    assert (percent(62.6).en, percent(62.6).zh, percent(7.44, 1).en) == ("63\u00a0%", "63%", "7.4\u00a0%")
    assert percent(0.2).zh == "&lt; 1%" and percent(0.0).zh == "0%"  # what is there is not none


def test_what_other_parts_write_into_the_files_is_translated(tmp_path: Path) -> None:
    written = [text for gate, strict in ((requirement("ndcg@10 +0.05"), False), (requirement("ndcg@10 +0.05"), True),
                                         (limit("general=-0.01"), False))
               for value in (0.01, 0.2) for low in (-0.1, 0.005)
               for text in verdict(gate, Change(value=value, low=low, high=0.3), strict)[1:] if text]  # fmt: skip
    written += length_classes(["a" * n for n in (5, 50, 500)])
    none = np.zeros(3, bool)
    written += [str(learn(tmp_path, 8)), str(fit({}, none, np.ones(3), [], judge_error(np.ones(1), np.zeros(1))))]
    written += [beside_real([], ["q"] * n, None)["missing"] for n in (0, 3)]
    for sentence in written:
        assert HAN.search(said(sentence).zh), sentence
        assert said(sentence).en == sentence
    factory = WORDS.parent.parent
    reasons = re.findall(r'reason="([a-z_-]+)"', "".join(p.read_text(encoding="utf-8") for p in factory.glob("*.py")))
    choices = re.findall(r'"([a-z]+(?:-[a-z]+)+)"', (factory / "presets.py").read_text(encoding="utf-8"))
    wanted = {f"reason.{r}" for r in (*reasons, *get_args(RuleName))} | {f"choice.{c}" for c in choices if c != "a-b"}
    wanted |= {f"type.{kind}" for kind in TYPES["en"]}
    assert len(wanted) > 30 and wanted <= table().keys(), wanted - table().keys()


def test_why_a_question_was_dropped_is_told_in_chinese_too() -> None:
    text = "低氢型焊条吸潮后，焊缝中的氢会增加，容易产生冷裂纹，因此使用前要在350度烘干一小时。"
    whole = handmade.target(0, text)
    asked = [("焊条？", ""), ("焊条" * 80 + "？", ""), ("焊条吸潮后会出什么毛病 " * 8 + "？", ""), ("焊条要烘干。", ""), ("它要烘多久？", ""),
             ("为什么焊缝中的氢会增加，容易产生冷裂纹，因此使用前要？", ""), ("低氢焊条为何要烘？", "电源极性应当先接反"),
             ("低氢焊条烘几小时？", "烘999小时"), ("低氢焊条烘干一小时吗，为什么容易产生冷裂纹？", "容易产生冷裂纹"),
             ("热水器的焊条烘多久？", "")]  # fmt: skip
    shown = passage(0, text)
    dropped = [rule_broken(handmade.pair(i, whole, q, a), shown, QualityConfig()) for i, (q, a) in enumerate(asked)]
    details = [found[1] for found in dropped if found]
    same, near = (
        repeated([handmade.pair(i, whole, q) for i, q in enumerate(two)], [], QualityConfig())["q1"][1]
        for two in (["焊条要烘多久？"] * 2, ["低氢型焊条使用前要烘多久呢？", "低氢型焊条使用前要烘多久呀？"])
    )
    assert same == "the same as '焊条要烘多久？'" and near.startswith("nearly ")
    assert len(details) >= 8
    for detail in (
        *details,
        same,
        near,
        "not among the first 20 of dense, bm25; by the base model its own passage is number 57",
    ):
        assert said(detail).en == escape(detail) and said(detail).zh != said(detail).en, detail


def test_the_command_takes_a_language_and_names_those_that_there_are(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from factory.cli import app

    (tmp_path / "run.json").write_text("{}")
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--language", "zh"])
    assert done.exit_code == 0 and '<html lang="zh">' in (tmp_path / "report.html").read_text(encoding="utf-8")
    wrong = CliRunner().invoke(app, ["report", str(tmp_path), "--language", "fr"])
    assert wrong.exit_code == 2 and "auto" in wrong.output


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all sections: Chinese and English texts, a long word, an evaluation, curves, a review, a gate."""
    run = make_run(tmp_path_factory.mktemp("words") / "run", 60)
    gate = {"gate": "ndcg@10 +0.05", "model": "tuned", "base": "base", "mode": "dense", "eval_set": "eval", "p": 0.01}
    gate |= {
        "metric": "ndcg@10",
        "passed": True,
        "wanted": "+5.0 or more, interval above 0",
        "got": 0.12,
        "low": 0.08,
        "high": 0.16,
        "remark": "",
    }
    group = {"model": "tuned", "base": "base", "mode": "dense", "value": 0.1, "low": 0.01, "high": 0.2}
    values = {"BM25": 0.2, "base dense": 0.3, "tuned dense": 0.4}
    groups = [{"by": "type", "name": "fact", "queries": 40, "values": values, "changes": [group]}]
    write_json(run / "evaluation.json", evaluation(BETTER, gates=[gate], groups=groups))
    write_events(run / "tuned" / "runs", "1", range(1, 50), lambda s: 1 / s)
    names = [key.removeprefix("test.") for key in table() if key.startswith("test.")]
    tests = [{"test": name, "asked": 60, "dropped": {"answer-in-question": 13, "copied": 6}} for name in names]
    passages, kept = read_records(run / "2-passages.jsonl", Passage), read_records(run / "4-kept.jsonl", Pair)
    write_json(run / QUESTIONS, {"tests": tests, "judge": {}} | describe(passages, kept, kept, []))
    batch = {"rows": 60, "queries_per_step": 8, "hard_negatives": 2, "in_batch_negatives": 21}
    write_json(run / "tuned" / "launch.json", {"batch": batch, "updates": 24, "seconds": 479.0})
    (run / "dropped").mkdir()
    row = '{"stage": "filter", "id": "q", "reason": "copied", "text": "%s"}\n' % ("很长" * 300 + "x" * 500)
    (run / "dropped" / "filter.jsonl").write_text(row, encoding="utf-8")
    write_json(run / "run.json", _manifest(run))
    return write_report(run)


def _manifest(run: Path) -> dict[str, Any]:
    stages = {
        "load": {"counts": {"documents": 20, "characters": 123456}, "dropped": {"no-text": 1}, "seconds": 1.0},
        "split": {"counts": {"passages": 620, "train": 600, "eval": 20}, "dropped": {"too-short": 8}, "seconds": 1.0},
        "generate": {"counts": {"pairs": 90, "passages asked": 30}, "dropped": {"over-max_passages": 590}, "seconds": 99.0},
        "filter": {"counts": {"kept": 62, "eval": 2}, "dropped": {"copied": 20, "round-trip": 8}, "seconds": 9.0},
        "export": {"counts": {"examples": 60, "negatives": 180}, "dropped": {}, "seconds": 1.0},
    }  # fmt: skip
    return json.loads((run / "run.json").read_text()) | {"stages": stages, "versions": {"torch": "2.13.0"}}


def test_how_much_was_trained_is_told_in_both_languages(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "24 steps of 8 questions" in text and "2 of its hard negatives and 21 passages" in text
    assert text.count("7 min 59 s") == 2 and "共 24 步" in text


def test_the_same_files_give_the_same_bytes(page: Path) -> None:
    assert page.read_bytes() == write_report(page.parent).read_bytes()


def test_the_language_that_comes_first(page: Path, tmp_path: Path) -> None:
    assert '<html lang="zh">' in page.read_text(encoding="utf-8")  # most passages are Chinese
    (tmp_path / "2-passages.jsonl").write_text('{"text": "a weld"}\n', encoding="utf-8")
    assert '<html lang="en">' in write_report(tmp_path).read_text(encoding="utf-8")
    assert '<html lang="zh">' in write_report(tmp_path, "zh").read_text(encoding="utf-8")


VISIBLE = """(() => { const clone = document.querySelector('main').cloneNode(true);
  document.body.append(clone); clone.querySelectorAll('code, pre, details > div, .tag').forEach(e => e.remove());
  const text = clone.innerText; clone.remove(); return text; })()"""
OVERFLOWING = """[...document.querySelectorAll('main *, .switch')].filter(e => {
    const box = e.getBoundingClientRect(); return box.width && (box.right > innerWidth + 1 || box.left < -1); })
  .map(e => e.outerHTML.slice(0, 90))"""
SMALLEST = """Math.min(...[...document.querySelectorAll('main *')].filter(e => e.getClientRects().length
    && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())).map(e => parseFloat(getComputedStyle(e).fontSize)))"""


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (Debian: apt-get install chromium)")
def test_a_browser_shows_one_language_and_nothing_is_wider_than_the_page(page: Path, tmp_path: Path) -> None:
    assert CHROMIUM
    with Browser(CHROMIUM, tmp_path / "profile") as browser:
        for width in (1400, 390):
            browser.size(width, 900)
            browser.open(page.as_uri())
            browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            for tag in ("en", "zh"):
                browser.click(f"label[for={tag}]")
                text = browser.evaluate(VISIBLE)
                assert ("Deploy" in text, "可以上线" in text) == (tag == "en", tag == "zh")
                assert ("50.0 → 62.0" in text) and "+12.0" in text
                if tag == "zh":
                    assert not re.search(r"\b[A-Za-z]{2,} [a-z]{2,} [a-z]{2,}", text), text
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                assert not browser.evaluate(OVERFLOWING)
                assert browser.evaluate(SMALLEST) >= 12
            shown = [browser.evaluate(f"document.querySelector('.flow .{kind}').getBoundingClientRect().width > 0")
                     for kind in ("wide", "narrow")]  # fmt: skip
            assert shown == [width == 1400, width == 390]
