"""The sections of factory.yaml as frozen models. Every default has its reason beside it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]


def _as_written(value: object) -> object:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_as_written)]  # YAML reads a bare on as true


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputConfig(Part):
    """Where the text comes from."""

    path: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="a folder, a file or a glob, or a list of these"
    )
    kind: Literal["documents", "passages", "pairs"] = Field(
        "documents",
        description="documents: split into passages. passages: one passage a line (BEIR corpus.jsonl, .csv with a text "
        "column, .txt with one passage a line), kept as they are, a title before the text. pairs: .csv or .jsonl with query and text; no LLM is used",
    )


class ModelConfig(Part):
    """The model to be trained: its tokenizer sets the passage lengths, its vectors find the candidates."""

    path: str = Field(description="a local folder: bge-m3, bge-large-zh-v1.5, any sentence-transformers folder")
    kind: Literal["auto", "m3", "flag", "sentence-transformers"] = Field(
        "auto",
        description="auto: m3 if the folder holds sparse_linear.pt, FlagEmbedding's class if it can, else sentence-transformers",
    )
    query_instruction: str = Field("", description="put before each query, e.g. 'query: ' for e5; bge-m3 wants none")
    passage_instruction: str = Field("", description="put before each passage, e.g. 'passage: ' for e5")
    query_max_length: int = Field(128, ge=8, description="tokens; longer questions are truncated")
    passage_max_length: int = Field(512, ge=16, description="tokens; longer passages are truncated")
    batch_size: int = Field(32, ge=1, description="texts encoded at once; 32 fits a CPU and any GPU")
    device: str = Field("auto", description="auto, cpu, cuda:0, …")


class PassagesConfig(Part):
    """How documents are split."""

    max_tokens: int = Field(
        256, ge=16, description="token budget under the training model's tokenizer; about 400 Chinese characters"
    )
    overlap_tokens: int = Field(0, ge=0, description="0: overlap makes near-duplicates, which are poor negatives")
    min_tokens: int = Field(
        16,
        ge=1,
        description="a shorter piece, or a lone heading, is joined to its neighbour, or dropped if it cannot be",
    )
    near_duplicate: Fraction = Field(
        0.8,
        description="Jaccard on character 5-grams from which two texts count as copies; and the share of one document's sentences "
        "in another one from which both are on the same side of the split",
    )


class SplitConfig(Part):
    """Train, dev and eval are divided by document group, before any question is written."""

    eval: Fraction | None = Field(
        None,
        description="share of the documents whose questions are held out; default 0.15, or 0 when `test.questions` names them",
    )
    dev: Fraction | None = Field(
        None, description="share for dev/, the set to choose checkpoints and rounds on; default 0, or 0.1 with rounds"
    )


class TestConfig(Part):
    """Questions that people asked: they become eval/, and no generated question goes in there."""

    questions: str | None = Field(
        None, description='JSONL: {"id", "query", "answers": [{"document": file, "quote": a span of its text}]}'
    )
    hold_out: bool = Field(True, description="keep the documents that the questions rest on out of training")


class GivenConfig(Part):
    """Questions with the text that answers them, mixed with the generated ones."""

    path: str | list[str] | None = Field(None, description=".csv, .tsv or .jsonl files with query and text")
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="they make up at most this share of the training questions; more are drawn from at random"
    )


class LLMConfig(Part):
    """Where the local LLM is and how it is asked."""

    serve: Literal["llamacpp", "vllm", "endpoint", "batch"] = Field(
        "llamacpp",
        description="llamacpp: a GGUF file, served by us. vllm: `vllm serve` started by us. endpoint: a URL that runs. batch: "
        "files carried to and from another machine (`bge-factory requests`, `answers`)",
    )
    model: str = Field(
        "", description="a GGUF file (llamacpp), a model folder (vllm), or the served model's name (endpoint, batch)"
    )
    url: str | list[str] = Field(
        "", description="endpoint only, e.g. http://127.0.0.1:8000/v1; several that serve the same model share the work"
    )
    api_key_env: str = Field(
        "", description="name of the environment variable that holds the key; the key is never written down"
    )
    executable: list[str] = Field(
        default_factory=lambda: ["vllm", "serve"],
        min_length=1,
        description="vllm only: the command, which may live in another environment",
    )
    arguments: list[str] = Field(
        default_factory=list, description="vllm only: further arguments, e.g. --tensor-parallel-size 8"
    )
    environment: dict[str, str] = Field(default_factory=dict, description="vllm only: further environment variables")
    concurrency: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        8,
        description="requests under way at each server; auto follows the load that vLLM reports (with endpoint and vllm); "
        "1 gives answers that are the same in every run",
    )
    context: int = Field(2048, ge=256, description="tokens of prompt and answer together, per request")
    timeout: float = Field(600, gt=0, description="seconds for one answer; a CPU is slow")
    start_timeout: float = Field(
        900, gt=0, description="seconds for the server to come up; a large model loads for minutes"
    )
    retries: int = Field(
        8, ge=0, description="times a failed request is sent again; the pauses grow to 30 s, in all some two minutes"
    )
    seed: int = Field(42, description="sent with each request")

    @model_validator(mode="after")
    def _complete(self) -> LLMConfig:
        if self.serve == "endpoint" and not self.url:
            raise ValueError("serve: endpoint needs url, e.g. http://127.0.0.1:8000/v1")
        if self.serve == "batch" and not self.model:
            raise ValueError("serve: batch needs model, the name or folder that `vllm run-batch --model` is given")
        return self


class MineConfig(Part):
    """Where candidates come from."""

    top_k: int = Field(100, ge=1, description="candidates of each source for each question")
    sources: Annotated[list[Literal["dense", "bm25", "sparse"]], Field(min_length=1)] | None = Field(
        None, description="default: dense and bm25, and sparse when the model has m3's sparse head"
    )
    index: Literal["auto", "flat", "hnsw", "ivf"] = Field(
        "auto",
        description="auto: exact up to 100,000 passages (5 million on a GPU), then HNSW64, then IVF. HNSW is built by several "
        "threads and may differ from run to run",
    )
    segmenter: Literal["bigrams", "jieba"] = Field(
        "bigrams", description="Chinese words of BM25: character bigrams need no dictionary and know every new word"
    )


class ScoreConfig(Part):
    """A cross-encoder that reads candidates, if there is one; the other features are always measured."""

    reranker: str | None = Field(
        None,
        description="a folder (bge-reranker-v2-m3, any cross-encoder), or llm: the configured LLM's yes against its no. "
        "Writes pos_scores/neg_scores",
    )
    rerank_depth: int = Field(50, ge=1, description="candidates that it reads for each question, near-copies left out")
    batch_size: int = Field(32, ge=1, description="texts that a cross-encoder reads at once; 32 fits a CPU and any GPU")


class JudgeConfig(Part):
    """The LLM says of some candidates whether they answer the question; from these a model for all is learnt."""

    use: Switch = Field(
        "auto",
        description="auto: with choose.preset resolve and llm.serve vllm or endpoint; on a CPU a judgement takes seconds",
    )
    labels: int = Field(300, ge=0, description="candidates judged to learn from, drawn evenly over easy and hard ones")
    controls: int = Field(
        50,
        ge=10,
        description="questions judged with their own passage and with a candidate that does not look like an answer: "
        "the judge's error",
    )
    band: int = Field(500, ge=0, description="further judgements, spent where the learnt model is least sure")


class Rule(Part):
    """One line of `choose.rules`. The first rule that holds decides."""

    when: str = Field(description="an SQL condition over the columns of 6-scores.parquet")
    then: Literal["reject", "keep"] = Field("reject", description="keep: no later rule can reject it")
    reason: str = Field("", description="what 7-decisions.parquet says; default: the condition")


class ChooseConfig(Part):
    """Which candidates become negatives."""

    preset: Literal["resolve", "perc", "margin", "topk", "range", "window", "rules"] = Field(
        "resolve",
        description="resolve: no copies, nothing that probably answers the question. perc, margin: NV-Retriever's ceilings. "
        "range: FlagEmbedding's hn_mine. window: L2 distances. topk: the hardest. rules: your own conditions",
    )
    negatives: int = Field(
        7, ge=1, description="for each question: with one positive a group of 8, FlagEmbedding's usual"
    )
    ceiling: Fraction = Field(
        0.95,
        description="resolve without a judge: a negative's score may at most reach this share of the positive's, both counted from "
        "the score of a chance pair; perc: this share of the positive's score (TopK-PercPos, arXiv 2407.15831)",
    )
    margin: float = Field(
        0.05, ge=0, description="margin: how far a negative's cosine stays below the positive's (TopK-MarginPos)"
    )
    near_copy: Fraction = Field(
        0.8, description="Jaccard with the positive from which a candidate is a copy of it; the same for questions"
    )
    reject_at: Fraction = Field(
        0.1,
        description="resolve: probability of answering the question from which a candidate is no negative; candidates "
        "abound, so that strictness costs little",
    )
    promote_at: Fraction = Field(
        0.95, description="resolve with a judge: probability from which a judged candidate becomes a positive; 1 never"
    )
    range: tuple[int, int] = Field(
        (10, 210),
        description="range: first and last rank, counted from 0, the last not included (range_for_sampling); every source "
        "is mined down to the last",
    )
    window: tuple[float, float] = Field(
        (0.4, 0.7),
        description="window: distances above the first, up to the second; as FAISS gives L2, squared: 2 − 2 cosine",
    )
    rules: list[Rule] = Field(default_factory=list, description="rules: conditions in order; what none rejects is kept")
    depth: int = Field(40, ge=1, description="negatives are drawn at random from the first so many that are allowed")
    too_few: Literal["fill", "drop"] = Field(
        "fill",
        description="a question with fewer allowed candidates: fill up from easier ranks and mark it, or drop the question",
    )

    @model_validator(mode="after")
    def _some_candidate_fits(self) -> ChooseConfig:
        for name, (low, high) in (("range", self.range), ("window", self.window)):
            if not 0 <= low < high:
                raise ValueError(f"{name}: expected two numbers from 0 on, the smaller one first, got {[low, high]}")
        if self.rules and "preset" not in self.model_fields_set:
            raise ValueError("rules are read with preset: rules alone, and no preset is set")
        if self.preset == "rules" and not self.rules:
            raise ValueError("preset: rules needs rules, e.g. [{when: 'score > 0.8', reason: too near}]")
        return self


class RoundsConfig(Part):
    """`rounds: 2`: train the base model on train.jsonl, mine again with what comes out, train the base on that; compare on dev/."""

    count: int = Field(
        1,
        ge=1,
        description="rounds at most. 1: train.jsonl is written, nothing is trained. Each later round mines the same questions with the "
        "model of the round before, in RUN/rounds/2, …, and trains the base model, never the tuned one",
    )
    launch: str = Field(
        "launch.yaml",
        description="how bge-launch trains: same model and instructions as here; train_data and output are each round's own, and dev is left out",
    )
    gain: Fraction = Field(
        0.0,
        description="the first round whose nDCG@10 on dev/ is not above the best before it by more than this is the last",
    )
    sure: bool = Field(
        True,
        description="the difference's 95 % interval must lie above zero, too; with a small dev/ that asks for several points. "
        "false: the difference alone decides",
    )


class CardConfig(Part):
    """What the data card (README.md beside train.jsonl) says and no file of the run knows."""

    licence: str = Field(
        "", description="of the documents, e.g. cc-by-4.0, or in your words; without it the card says 'not stated'"
    )
