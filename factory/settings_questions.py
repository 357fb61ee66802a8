"""The sections generate and quality of factory.yaml: what the LLM is asked for, and which questions stay."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from factory.settings import Fraction, Part, Switch

Pairing = Literal["question-document", "question-answer", "question-question"]


class GenerateConfig(Part):
    """What the LLM is asked for."""

    pairing: Pairing = Field(
        "question-document", description="what a question is trained to find: the passage, the answer, or a rewording"
    )
    questions_per_passage: int = Field(
        3,
        ge=1,
        le=10,
        description="asked for in one answer; more make the LLM repeat itself, and the repeats are dropped",
    )
    asker: str | list[str] = Field(
        "",
        description="who asks, in the passages' language, e.g. 'a nurse on a night shift'; of several each passage gets the "
        "next one; default: somebody who looks something up",
    )
    propose_askers: int = Field(
        0, ge=0, le=20, description="so many further askers, which the LLM proposes from a sample of the corpus"
    )
    types: list[str] | dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=lambda: ["fact", "how-to", "reason"],
        description="kinds of question: fact, how-to, reason, comparison, symptom, keyword, colloquial, description, or your own "
        "words. A list asks for each as often; {fact: 3, keyword: 1} for three facts to one keyword query",
    )
    tone: str = Field("", description="how they ask, in the passages' language, e.g. 'hurried, without courtesies'")
    length: str = Field("", description="how long a question is, in the passages' language, e.g. '5 to 12 words'")
    examples: str | None = Field(
        None,
        description="a file of questions that your users asked (.txt one a line; .csv, .jsonl with query): shown to the LLM as "
        "examples, and compared with what it writes. None of them may be a test question",
    )
    examples_shown: int = Field(4, ge=1, le=20, description="so many of them at a time; others every 64 passages")
    neighbours: int = Field(
        0,
        ge=0,
        description="characters of the text before and after the passage that the LLM sees, to know who 'he' is; a small LLM "
        "then also asks about them",
    )
    focus: bool = Field(
        False,
        description="the answer to each question is to come from a sentence that is named, spread over the passage: details are "
        "asked about, too, and not the same thing twice",
    )
    unnamed: Fraction = Field(
        0,
        description="share of the passages whose title is a name of their own that the LLM is shown without it and without the sentences "
        "that have it, so that it asks about what else is there; a small LLM then asks vaguer questions. See quality.names_title",
    )
    temperature: float = Field(0.7, ge=0, le=2, description="0.7: varied wording, still on the subject")
    max_tokens: int = Field(400, ge=16, description="of one answer")
    prompt: str | dict[Literal["zh", "en"], str] | None = Field(
        None,
        description="your own prompt file, or {zh: file, en: file}; default: the package's in factory/prompts/, by pairing and "
        "language. `bge-factory try-prompt` shows what one makes of your passages",
    )
    max_passages: int | None = Field(
        None, ge=1, description="ask about this many passages, drawn evenly over the documents; default all"
    )

    @model_validator(mode="after")
    def _some_type(self) -> GenerateConfig:
        if not self.types:
            raise ValueError("types: names no kind of question; leave the key out for fact, how-to and reason")
        if isinstance(self.types, dict) and not sum(self.types.values()):
            raise ValueError("types: every share is 0")
        return self


Difficulty = Literal["easy", "medium", "hard"]
RuleName = Literal[
    "length",
    "repeats-itself",
    "wrong-language",
    "dangling-reference",
    "statement",
    "no-subject",
    "copied",
    "answer-not-in-passage",
    "answer-in-question",
    "from-the-demonstration",
]


class QualityConfig(Part):
    """What a question must be to be kept. The tests stand in their order: cheap ones first."""

    skip: list[RuleName] = Field(
        default_factory=list,
        description="rules that are not applied: length, repeats-itself, wrong-language, dangling-reference (本文, this study), statement, "
        "no-subject (为什么它会裂？), copied, answer-not-in-passage, answer-in-question, from-the-demonstration (a subject of the "
        "prompt's demonstration that the passage does not have)",
    )
    min_characters: int = Field(5, ge=1, description="a shorter question says too little to be searched for")
    max_characters: int = Field(300, ge=10, description="a longer one is a copied passage, or an LLM that ran on")
    max_copy: Fraction = Field(
        0.9, description="partial_ratio of question and passage (rapidfuzz) above which it is copied"
    )
    max_run: Fraction = Field(
        0.5,
        description="share of the question that may stand in the passage in one piece, if that is a clause or longer",
    )
    min_answer: Fraction = Field(
        0.4,
        description="share of the answer's words that the passage must hold, beside all its numbers",
    )
    duplicate: Fraction = Field(
        0.9,
        description="ratio of two questions on one passage from which the second is a duplicate, if it has the same numbers",
    )
    duplicate_across: Fraction = Field(
        0.95,
        description="the same for questions on different passages",
    )
    asked_of_many: int = Field(
        3, ge=2, description="a question that was written for so many different passages fits none: all of them go"
    )
    round_trip_k: int = Field(
        20, ge=0, description="a search must have the question's own passage among its first k; 0 turns the test off"
    )
    round_trip_by: list[Literal["dense", "bm25"]] = Field(
        ["dense", "bm25"],
        min_length=1,
        description="whose search, one of these is enough: dense, the base model's; bm25. What BM25 alone finds is what the base "
        "model has to learn",
    )
    unreachable: Literal["drop", "judge"] = Field(
        "drop",
        description="a question whose passage none of them finds: it goes, or it stays if the LLM says that the passage answers",
    )
    judge: Switch = Field(
        "off",
        description="the LLM says of each question whether its passage answers it and whether it names its subject. auto: with "
        "llm.serve vllm or endpoint, since on a CPU each judgement takes seconds. Off: a 1.5 B model's word did not earn its time",
    )
    elsewhere: int = Field(
        0,
        ge=0,
        le=50,
        description="other passages, the base model's first ones, of which the LLM is asked whether they answer the question too; "
        "needs the judge; 0 turns the test off",
    )
    max_elsewhere: int = Field(
        2, ge=0, description="if at most so many of them do, they become positives; if more do, the question goes"
    )
    names_title: Fraction = Field(
        0.25,
        description="largest share of the training questions that name the title (a name, of this passage alone) of a passage that the "
        "base model ranks first: from many of these it learns to look for names, and loses on queries without one (seen). Of the others a "
        "Chinese one is asked without the title, if a search then still has the passage among its first 5; the rest goes, but half of the "
        "training questions keep their place in any case. 1: no limit",
    )
    at_most: dict[Difficulty, Fraction] = Field(
        default_factory=dict,
        description="largest share of the training questions that are easy (the base model ranks the passage first), medium "
        "(2 to 5), hard; e.g. {easy: 0.5}",
    )

    @model_validator(mode="after")
    def _shares_fill_the_whole(self) -> QualityConfig:
        if len(self.at_most) == 3 and sum(self.at_most.values()) < 1:
            raise ValueError(f"at_most: the three shares make {sum(self.at_most.values()):g}, expected at least 1")
        return self
