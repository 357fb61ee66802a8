"""What a question by itself, beside its own passage, may not be: the rules, cheapest first. None needs a model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher

from factory.demonstrations import demonstrations
from factory.languages import language, squeeze
from factory.records import Pair, Passage
from factory.settings_questions import QualityConfig, RuleName
from factory.tokens import tokens

# Words that point at a text which the asker of a real search has never seen.
DANGLING = {
    "zh": re.compile(
        r"本文|本研究|本章|本节|本段|本手册|本规程|本案例|^本(剧|片|影片|书|曲|鱼)|上文|上述|前述|下文|下述|(?<!应)该文|(?<![英中日法德俄韩外])文中|文章|这段|此段|这篇|此文|"
        r"资料中|材料中|资料里|资料提|段落|(根据|依据|按照)(资料|材料|文本|原文|描述|以上|所给)|提到的|所述|(手册|规程|指南|指导书|报告)(中|里|上)?(指出|提到|说|写|规定|给出)|书(中|里|上)(指出|提到|说|写|规定|给出)|(?<!应)该(方法|研究|案例|章节|部分|表格)|下表|上表|如图"
    ),
    "en": re.compile(
        r"\b(this|that|above|following|given|provided) (paper|study|section|report|material|chapter|table|figure)s?\b"
        r"|\b(this|the|that|above|following|given|provided) (article|passage|text|document|paragraph|excerpt|author)s?\b"
        r"|\b(mentioned|described|stated|discussed|listed|outlined|given) (above|below|here|in the)\b|\baccording to (it|this|the above)\b"
        # "the paper" alone may lie in a printer, and "the study of gases" is a subject
        r"|\bthe (paper|study|report|analysis) (analy[sz]|assum|talk|describ|provid|present|discuss|focus|conclud|cover|mention|consider|"
        r"examin|investigat|propos|suggest)\w*|\bin the (paper|study)\b(?= *[?.,;]| (about|on)\b| *$)"
        # whose, and which one? "the tests of the pump" and "the scientists at CERN" say it
        r"|\bthe (scientist|researcher|investigator|experimenter)s?\b(?! (of|at|in|from|who)\b)"
        r"|\b(in|during|by) (the|this) (experiment|investigation|research|tests?|analysis)\b(?= *[?.,;]| *$)"
        # in this situation, of these wings: nothing before it says which
        r"|^[^,.;:?!]*\b(about|at|by|for|from|in|of|on|to|under|with) (this|these) (?!(kind|type|sort|case|way|time|day|morning|week|month|season|"
        r"year|decade|century)s?\b)[a-z]\w*",
        re.I,
    ),
}
# A sentence that ends as one and has no word of a question.
STATEMENT = {"zh": re.compile(r"[。.！!；;]$"), "en": re.compile(r"[.!;]$")}
ASKING = {
    "zh": re.compile(
        r"[?？]|什么|为何|怎|如何|哪|多少|多久|多大|几|是否|吗|呢|谁|何|能不能|有没有|是不是|该不该|请|想知道|求"
    ),
    "en": re.compile(
        r"[?]|\b(what|why|how|when|where|who|whom|whose|which|tell|explain|describe|find|need|want|looking|help|does|is there)\b",
        re.I,
    ),
}
# A pronoun that stands before anything it could refer to: nobody knows whom or what the question is about.
SUBJECTLESS = {
    "zh": re.compile(
        r"^(请问|那么|如果|当|关于|对于|为什么|为何|什么是|怎么|怎样|如何|哪些|是否|在)*"
        r"([他她它](?![人国乡汀克莫达唑扎氟])|其(?![他它中余实次])|该|此(?![外前后次])|这(?![里样])|那(?![么里样霸]|不勒斯|达慕|拉提))"
    ),
    "en": re.compile(
        r"^(please|tell me|and|so|but|if|when|why|how|what|which|where|who|whom|whose|is|are|was|were|do|does|did|can|could|"
        r"should|would|will|has|have|had|must|may|might|much|many|long|often|far|kind|type|of|in|on|at|for|from|to|by|with|"
        r"about|the|a|an|some|any|not|there|be|been|,|\s)*"
        r"\b(he|she|they|them|him|her|his|hers|their|theirs|its|this|these|those)\b",
        re.I,
    ),
}
# What is left of a question once these are taken out is what it is about.
EMPTY = {
    "zh": re.compile(
        r"什么|为什么|为何|怎么办|怎么样|怎么|怎样|如何|哪些|哪个|哪里|哪|多少|多久|多大|几|是否|有没有|能不能|可以|需要|应该|请问|谁|何时|何"
        r"|[是的了呢吗吧啊呀么在有和与会要能被把对这那其该它他她们个种样上下中时不没请说]"
    ),
    "en": re.compile(
        r"\b(what|why|how|when|where|who|whom|whose|which|is|are|was|were|be|been|do|does|did|can|could|should|would|will|has|"
        r"have|had|may|might|must|the|a|an|of|in|on|at|to|for|from|by|with|about|and|or|not|it|its|this|that|these|those|he|"
        r"she|they|his|her|their|there|happen(s|ed)?|mean(s|t)?|much|many|long|i|you|we|my|your|our)\b",
        re.I,
    ),
}
LEAST = {"zh": 2, "en": 3}  # characters that must be left
LOOP = 8  # words (Chinese: character bigrams) from which half of them may not be repeats: the LLM ran in a circle
YES_NO = re.compile(
    r"(不|没|没有|未|应当?|已经?)*(是|否|能|会|有|对|需要|同意|支持|应该|应当|愿意|属于|构成|可以|有效|无效|成立|合法|正确|认可)?的?|yes|no|true|false"
)
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
SMALL = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
STEM = 5  # letters in which two English words must agree to be the same
# Characters, without spaces, from which a piece in common is a clause and no longer a term.
LONG_RUN = {"zh": 10, "en": 30}
GIVEN_AWAY = 0.9  # share of the answer's words in the question from which it asks nothing that it does not say
# A question that names what to choose from, or asks for a yes, may hold its answer.
CHOICE = {
    "zh": re.compile(r"还是|或者?|哪|吗|是否|是不是|能不能|有没有"),
    "en": re.compile(
        r"\b(or|which|whether)\b|^(is|are|was|were|do|does|did|can|could|should|has|have|must|may|will)\b", re.I
    ),
}


def rule_broken(pair: Pair, passage: Passage, config: QualityConfig) -> tuple[str, str] | None:
    """(reason, detail) of the first rule that the question breaks; None if it keeps them all."""
    return next((broken for broken in _broken(pair, passage, config) if broken[0] not in config.skip), None)


def _broken(pair: Pair, passage: Passage, config: QualityConfig) -> Iterator[tuple[RuleName, str]]:
    from rapidfuzz import fuzz

    query = pair.query.strip()
    lang = language(passage.text)
    if not config.min_characters <= len(query) <= config.max_characters:
        yield "length", f"{len(query)} characters, expected {config.min_characters} to {config.max_characters}"
    words = tokens(query)
    if len(words) >= LOOP and len(set(words)) <= len(words) / 2:
        yield "repeats-itself", f"{len(set(words))} different words in {len(words)}"
    if language(query) != lang:
        yield "wrong-language", f"{language(query)}, expected {lang}"
    if found := DANGLING[lang].search(query):
        yield "dangling-reference", found.group(0)
    if STATEMENT[lang].search(query) and not ASKING[lang].search(query):
        yield "statement", "it asks nothing"
    if SUBJECTLESS[lang].search(query):
        yield "no-subject", "a pronoun stands for what it asks about"
    if len(squeeze(re.sub(r"[\W_]", "", EMPTY[lang].sub("", query)))) < LEAST[lang]:
        yield "no-subject", "it names nothing"
    # Longest aligned window of the passage, character by character: 100 means the question stands in it word for word.
    plain, text = squeeze(query), squeeze(passage.text)
    copied = fuzz.partial_ratio(plain.rstrip("?？"), text) / 100
    if len(plain) <= len(text) and copied > config.max_copy:
        yield "copied", f"partial_ratio {copied:.2f}, at most {config.max_copy}"
    run = longest_run(plain, text)
    if len(run) >= LONG_RUN[lang] and len(run) > config.max_run * len(plain):
        yield "copied", f"{len(run)} of {len(plain)} characters in one piece: {run[:60]}"
    if pair.answer and (missing := not_in(pair.answer, passage.text, config.min_answer)):
        yield "answer-not-in-passage", f"{missing}; the answer: {pair.answer[:60]}"
    # a keyword query looks for the passage, whatever the answer drawn from it
    if pair.answer and pair.type != "keyword" and given_away(pair.answer, query, lang):
        yield "answer-in-question", f"the answer: {pair.answer[:60]}"
    around = squeeze(" ".join((passage.title, *passage.headings))) + text
    for word in demonstrations()[lang]["words"]:
        if squeeze(word) in plain and squeeze(word) not in around:
            yield "from-the-demonstration", f"{word} is not in the passage"


def given_away(answer: str, query: str, lang: str) -> bool:
    """Whether the question says its own answer: 为什么进容器前要测氧？ with 进容器先测氧."""
    plain = squeeze(answer).strip("。.!")
    if YES_NO.fullmatch(plain) or CHOICE[lang].search(query):
        return False
    return not_in(answer, query, GIVEN_AWAY) == ""


def not_in(answer: str, passage: str, least: float) -> str:
    """Why the answer cannot come from the passage; empty if it can.

    Every number of it must be there, and of its words (Chinese: character bigrams; English: to the first letters) at least
    the share `least`. Yes and no are in every passage.
    """
    plain, text = squeeze(answer), squeeze(passage)
    if YES_NO.fullmatch(plain.strip("。.!")):
        return ""
    for number in NUMBER.findall(plain):
        if not any(form in text for form in forms(number)) and number.replace(",", "") not in text.replace(",", ""):
            return f"{number} is not in the passage"
    words = [w for w in tokens(answer) if not w.isdecimal()]
    known = set(tokens(passage))
    stems = {w[:STEM] for w in known if w.isascii()}
    found = sum(w in known or w in text if not w.isascii() else w in known or w[:STEM] in stems for w in words)
    return (
        f"{found} of its {len(words)} words (Chinese: pairs of characters) are in the passage"
        if found < least * len(words)
        else ""
    )


def forms(number: str) -> list[str]:
    """How a passage may write a number that stands in digits: as it is, 20 as 二十, 2 as 两 or two, 30000 as 3万."""
    found = [number]
    if not number.isdecimal() or len(number) > 12:
        return found
    n, digits = int(number), "零一二三四五六七八九"
    if n < len(SMALL):
        found += [SMALL[n], *(["两"] if n == 2 else [])]
    if n < 100:
        tens, ones = divmod(n, 10)
        found.append(
            (digits[tens] if tens > 1 else "") + ("十" if tens else "") + (digits[ones] if ones or not tens else "")
        )
    if n >= 10_000:
        found += [f"{n / 10_000:.6f}".rstrip("0").rstrip(".") + "万", f"{n / 1e8:.8f}".rstrip("0").rstrip(".") + "亿"]
    return found


def longest_run(query: str, passage: str) -> str:
    """The longest piece of the query that stands in the passage as it is."""
    match = SequenceMatcher(None, query, passage, autojunk=False).find_longest_match()
    return query[match.a : match.a + match.size]
