"""The local LLM as a reranker: does this passage answer this question? Its yes against its no, as a logit.

The model is never asked to write a number. It answers with one word, and what counts is how likely it held "yes"
and "no" for that word: log p(yes) − log p(no), which is a raw logit as a cross-encoder gives it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from factory.answers import Answer
from factory.config import Config
from factory.generate import llm_identity
from factory.languages import language
from factory.llm import LLM, Request
from factory.prompt_files import PROMPTS, read_prompt
from factory.serve import ServerDied
from factory.token_estimate import crop_to, estimated_tokens
from factory.workspace import fingerprint, sha256_file

# First tokens that count, without spaces and in lower case; a tokenizer may cut 是的 into 是 and 的, or not.
YES = frozenset({"yes", "y", "是", "是的", "能", "有"})
NO = frozenset({"no", "n", "not", "否", "不", "不是", "不能", "没", "没有", "无"})
VARIABLES = ("question", "passage")
ALTERNATIVES = 20  # looked at for the first word; vLLM's own limit (--max-logprobs)
FRAME = 260  # tokens of the prompt beside question and passage, generously


def judge_identity(config: Config) -> Any:
    """What a judgement depends on: the LLM, how much of a passage it reads, the prompts."""
    prompts = [sha256_file(p) for family in ("judge", "specific") for p in sorted(PROMPTS.glob(f"{family}.*.md"))]
    return [llm_identity(config), config.llm.seed, config.llm.context, prompts]


class LLMJudge:
    """A `Reranker` made of the configured LLM.

    Args:
        llm: open for as long as the judge is used; its answers, so also these, are kept on disk.
        prompts: by language, a prompt file with ${question} and ${passage}; default: the package's judge.*.md.
    """

    def __init__(self, llm: LLM, prompts: dict[str, Path] | None = None):
        self.llm = llm
        files = prompts or {lang: PROMPTS / f"judge.{lang}.md" for lang in ("zh", "en")}
        self._prompts = {lang: read_prompt(path, VARIABLES, VARIABLES) for lang, path in files.items()}
        self._specific = {
            lang: read_prompt(PROMPTS / f"specific.{lang}.md", ["question"], ["question"]) for lang in ("zh", "en")
        }
        self.fingerprint = fingerprint(["judge", llm.model_id, *(sha256_file(p) for p in files.values())])

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Logits, (n,) float32; above 0 the model leans to "the passage answers the question"."""
        return self.logits([(pair[1], pair[0]) for pair in pairs], [self._request(*pair) for pair in pairs], "judge")

    def specific(self, questions: Sequence[str]) -> np.ndarray:
        """Logits, (n,) float32; above 0 it leans to "the question names its subject"."""
        requests = []
        for question in questions:
            messages = self._specific[language(question)].messages({"question": question})
            requests.append(Request(messages, 1, 0, self.llm.config.seed, top_logprobs=ALTERNATIVES))
        return self.logits([("", q) for q in questions], requests, "specific?")

    def logits(self, keys: Sequence[tuple[str, str]], requests: Sequence[Request], what: str) -> np.ndarray:
        """The answers' logits, (n,) float32, in the order of `requests`; asked in the order of `keys`, so that servers can
        reuse what requests have in common. What the server refuses (too long for it, say) is no opinion: 0.

        Raises:
            ServerDied: some got no answer and were not refused. The others are kept.
        """
        order = sorted(range(len(keys)), key=lambda i: keys[i])
        answers, _ = self.llm.complete([requests[i] for i in order], what)
        failed = [a.failure for a in answers if a.failure and not a.refused]
        if failed:
            raise ServerDied(
                f"{len(failed)} of {len(answers)} judgements got no answer: {failed[0]}; run again: the others are kept"
            )
        logits = np.zeros(len(keys), np.float32)
        logits[order] = [logit(answer) for answer in answers]
        return logits

    def _request(self, question: str, passage: str) -> Request:
        room = self.llm.config.context - FRAME - estimated_tokens(question)
        variables = {"question": question, "passage": crop_to(passage, room)}
        messages = self._prompts[language(passage)].messages(variables)
        return Request(messages, max_tokens=1, temperature=0, seed=self.llm.config.seed, top_logprobs=ALTERNATIVES)


def logit(answer: Answer) -> float:
    """log p(yes) − log p(no) of the first token. A side that is not among the alternatives counts as the least
    likely of them, which is the most that it can be; with neither side there the logit is 0."""
    words = [(token.strip().strip("\"'“”").lower(), p) for token, p in answer.first]
    yes, no = [p for w, p in words if w in YES], [p for w, p in words if w in NO]
    if not yes and not no:
        return 0.0
    floor = min(p for _, p in words)
    return (_sum(yes) if yes else floor) - (_sum(no) if no else floor)


def _sum(logs: Iterable[float]) -> float:
    """log of the sum of probabilities given as logs; a log of −inf stays harmless."""
    return max(math.log(sum(math.exp(p) for p in logs) or 1e-30), -69.0)
