"""Bytes that one GPU needs for a training run, from shapes alone: neither torch nor a GPU is used.

All sizes are bytes, and every text is taken at its full length, with padding somewhere in the batch: the worst case.
Symbols: n parameters, h hidden size, i intermediate size, L tokens of a text, V vocabulary, W processes.

Memory is not one sum: while the sparse head is at its largest, there are no gradients yet. So the parts are summed at
four moments of a step, and the largest sum is the estimate. Sources: FlagEmbedding 1.4.2, transformers 5.23, DeepSpeed
0.19.8, torch 2.13; "seen" is what FlagEmbedding's own models allocated on fake tensors, which have sizes but no data.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from factory.errors import InputError
from launch.config import Frozen
from launch.recipes import Precision

GIB = 2**30
BUCKET = 500_000_000  # elements of DeepSpeed's reduce_bucket_size; ZeRO allocates all of it for the smallest model
SCORE = 16  # bytes of one score: 16-bit, over the temperature, its log-softmax in float32, and gradients (rounded up)
# Assumed, not measured; benchmarks/memory.py compares with a real GPU:
FRAGMENTATION = 0.08  # held by torch's allocator beyond what is in use, of all that comes and goes; 0.03 to 0.15
CONTEXT = int(0.75 * GIB)  # CUDA context, kernels, cuBLAS and cuDNN work space; 0.5 to 1.0 GiB
NCCL = int(0.5 * GIB)  # communicators and channels; 0.2 to 1.0 GiB


class ModelShape(Frozen):
    """What of a model decides its memory. `parameters`: the encoder with its pooler, without a recipe's heads."""

    layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    intermediate: int = Field(ge=1)
    heads: int = Field(ge=1)
    vocabulary: int = Field(ge=1)
    positions: int = Field(ge=1)
    parameters: int = Field(ge=1)


class Setting(Frozen):
    """How it is trained. Lengths in tokens, both batch sizes per GPU, `accumulation` in steps (it adds no negatives)."""

    recipe: Literal["base", "m3-unified", "reranker"]
    precision: Precision
    batch_size: int = Field(ge=1)
    group_size: int = Field(ge=1)
    query_len: int = Field(ge=1)
    passage_len: int = Field(ge=1)
    world_size: int = Field(default=1, ge=1)
    zero_stage: Literal[0, 1, 2, 3] | None = None  # None: without DeepSpeed
    offload: bool = False
    checkpointing: bool = False
    sub_batch_size: int | None = Field(default=None, ge=1)
    cross_device: bool = False
    attention: Literal["sdpa", "eager"] = "sdpa"
    pad_to_multiple_of: int | None = Field(default=None, ge=1)
    accumulation: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> Setting:
        if self.offload and not self.zero_stage:
            raise ValueError("offload needs zero_stage 1, 2 or 3")
        return self

    @property
    def autocast(self) -> bool:
        """Float32 weights and 16-bit products: what the Trainer does without DeepSpeed, which casts the weights."""
        return self.precision != "fp32" and self.zero_stage is None

    @property
    def compute(self) -> int:
        """Bytes of a number that a linear layer gives."""
        return 4 if self.precision == "fp32" else 2

    @property
    def weight(self) -> int:
        """Bytes of a weight, of its gradient, and of the stream between layers, which LayerNorm gives back so."""
        return 4 if self.precision == "fp32" or self.autocast else 2


class Part(Frozen):
    """One named share of the memory."""

    name: str
    bytes: int
    reason: str


Parts = tuple[Part, ...]


class Memory(Frozen):
    """An estimate: its parts, and the moment of a step at which they are all there."""

    moment: str
    parts: Parts

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(p.bytes for p in self.parts)

    def table(self) -> str:
        """One line for each part, the largest first."""
        rows = sorted(self.parts, key=lambda p: -p.bytes)
        name, all_of_it = max(len(p.name) for p in rows), self.total / 100
        lines = [f"{p.name:<{name}} {p.bytes / GIB:8.2f} GiB {p.bytes / all_of_it:3.0f} %  {p.reason}" for p in rows]
        return "\n".join([f"{self.total / GIB:.1f} GiB on each GPU, most during {self.moment}", *lines])


def shape_of(config: dict[str, Any]) -> ModelShape:
    """The shape in a config.json, bge-m3's has 567,754,752 parameters. InputError if it is no BERT or RoBERTa kind.

    n = (V + positions + types) h + 2h + layers (4h² + 2hi + 9h + i) + h² + h; the last two are the pooler.
    """
    if config.get("model_type") not in ("bert", "roberta", "xlm-roberta", "camembert"):
        raise InputError(f"memory is known for BERT and RoBERTa kinds, got model_type {config.get('model_type')!r}")
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    missing = [name for name in names if not isinstance(config.get(name), int)]
    if missing:
        raise InputError(f"config.json has no {', '.join(missing)}", fix="copy the whole model folder again")
    layers, h, i, heads, v = (config[name] for name in names)
    p, types = config.get("max_position_embeddings", 512), config.get("type_vocab_size", 2)
    n = (v + p + types) * h + 2 * h + layers * (4 * h * h + 2 * h * i + 9 * h + i) + h * h + h
    return ModelShape(layers=layers, hidden=h, intermediate=i, heads=heads, vocabulary=v, positions=p, parameters=n)


def trained(shape: ModelShape, recipe: str) -> int:
    """Parameters with the recipe's heads: m3's ColBERT (h² + h) and sparse (h + 1), the reranker's output (h + 1)."""
    return shape.parameters + {"base": 0, "m3-unified": (shape.hidden + 1) ** 2, "reranker": shape.hidden + 1}[recipe]


def estimate(shape: ModelShape, setting: Setting) -> Memory:
    """Bytes on each GPU at the worst moment of a step. InputError for ZeRO-3 with m3, which loses the weights."""
    if setting.recipe == "m3-unified" and setting.zero_stage == 3:
        reason = "ZeRO-3 with m3: FlagEmbedding saves the unfilled shards, not the gathered weights"
        raise InputError(reason, fix="use ZeRO-1")
    moment, parts = max(moments(shape, setting).items(), key=lambda item: sum(p.bytes for p in item[1]))
    moving = sum(p.bytes for p in parts if p.name not in ("weights", "optimizer states", "DDP buckets"))
    parts += (
        _part("fragmentation", int(FRAGMENTATION * moving), f"{FRAGMENTATION:.0%} of what comes and goes (assumed)"),
        _part("CUDA context", CONTEXT + NCCL * (setting.world_size > 1), "cuBLAS, NCCL on several GPUs (assumed)"),
    )
    return Memory(moment=moment, parts=tuple(p for p in parts if p.bytes))


def moments(shape: ModelShape, setting: Setting) -> dict[str, Parts]:
    """What torch's allocator gives out at four moments of a step; a part that is not there has 0 bytes."""
    calls = _calls(setting)
    held, gradients, bucket, step = _states(shape, setting)
    saved = tuple(_saved(shape, setting, call) for call in calls)
    linear = shape.layers * (4 * shape.hidden**2 + 2 * shape.hidden * shape.intermediate)
    casts = _part("16-bit weights", 2 * linear * setting.autocast, "autocast's copies of the linear layers' weights")
    layer = _layer_backwards(shape, setting, calls)
    kept = (*held, *(gradients[:1] if setting.accumulation > 1 else ()), *saved)
    return {
        "the heads' forward pass": (*kept, casts, *_heads(shape, setting, calls)),
        "the last layer's backward pass": (*kept, *(() if setting.checkpointing else (casts,)), layer, *bucket),
        "the end of the backward pass": (*held, *gradients, *bucket),
        "the optimizer's step": (*held, *step),
    }


def _part(name: str, size: int, reason: str) -> Part:
    return Part(name=name, bytes=size, reason=reason)


class _Call(NamedTuple):
    """The texts that the encoder gets, `chunk` of them at a time, each `length` tokens long."""

    name: str
    texts: int
    chunk: int
    length: int


def _calls(setting: Setting) -> list[_Call]:
    """The reranker has one call, with pairs, and ignores sub_batch_size (its help: "not implemented yet")."""
    texts, lengths = setting.batch_size * setting.group_size, (setting.query_len, setting.passage_len)
    multiple, sub = setting.pad_to_multiple_of or 1, setting.sub_batch_size or texts
    named = [("queries", setting.batch_size, lengths[0]), ("passages", texts, lengths[1])]
    if setting.recipe == "reranker":
        named, sub = [("pairs", texts, sum(lengths))], texts
    return [_Call(name, n, min(sub, n), -(-length // multiple) * multiple) for name, n, length in named]


def _layer(shape: ModelShape, setting: Setting, texts: int, length: int) -> int:
    """What one XLMRobertaLayer saves for its backward pass, with dropout.

    A token: q, k, v and the attention's output (4h compute); GELU's input and output (2i compute); two LayerNorms'
    inputs (2h weight); two dropout masks (2h); the linear layers' inputs, which are the layer's input and the first
    LayerNorm's output (2h weight), or under autocast as many bytes of casts, one each for q, k, v and feed-forward; sums
    of the softmax (4 a head) and of LayerNorm (16). With i = 4h: 42h under autocast, 34h in 16 bit, 66h in float32 (seen).
    A pair of tokens: sdpa makes the padding mask a number, anew in each layer (compute); eager keeps for each head the
    softmax (weight), its dropout mask (1) and the product of the two (compute).
    """
    h, c, w = shape.hidden, setting.compute, setting.weight
    token = (4 * h + 2 * shape.intermediate) * c + h * (4 * w + 2) + 4 * shape.heads + 16
    pair = shape.heads * (w + 1 + c) if setting.attention == "eager" else c
    return texts * length * (token + length * pair)


def _saved(shape: ModelShape, setting: Setting, call: _Call) -> Part:
    """All that the encoder keeps for its backward pass.

    Beside the layers: the embeddings' LayerNorm input and dropout mask, the last hidden state, the mask [texts, 1, L, L].
    sub_batch_size changes nothing: one backward pass is for all chunks, so the graph of every chunk stays.
    """
    h, w, tokens = shape.hidden, setting.weight, call.texts * call.length
    around = tokens * ((2 * w + 1) * h + call.length * (w if setting.attention == "eager" else 1))
    inner = tokens * h * w if setting.checkpointing else _layer(shape, setting, call.texts, call.length)
    reason = f"{call.texts:,} × {call.length:,} tokens" + (", only each layer's input" if setting.checkpointing else "")
    return _part(f"activations of the {call.name}", around + shape.layers * inner, reason)


def _layer_backwards(shape: ModelShape, setting: Setting, calls: list[_Call]) -> Part:
    """What comes and goes while one layer runs backwards: with checkpointing, the layer itself, computed again.

    Gradients in flight: 10h a token under autocast, 6h in 16 bit, 12h in float32; eager under autocast: the float32
    attention weights, which the layer's frame holds (seen).
    """
    flight = shape.hidden * (10 if setting.autocast else 3 * setting.weight)
    scores = 4 * shape.heads if setting.attention == "eager" and setting.autocast else 0
    again = int(setting.checkpointing)
    sizes = [(c.chunk * c.length, c.length, _layer(shape, setting, c.chunk, c.length)) for c in calls]
    size = max(tokens * (flight + length * scores) + again * layer for tokens, length, layer in sizes)
    return _part("one layer backwards", size, "computed again, for one chunk" if again else "gradients in flight")


def _heads(shape: ModelShape, setting: Setting, calls: list[_Call]) -> Parts:
    """Heads and losses: m3/modeling.py, AbsModeling.py.

    Sparse: `_sparse_embedding` fills torch.zeros [texts, L, V] and scatters it into a second one, both in the sparse
    layer's type (compute); its maximum keeps a value and an int64 index for each text and word.
    ColBERT: the linear layer's input (h compute), its product with the float32 mask, and that normalized (4h each).
    `einsum('qin,pjn->qipj')` gives a score for each of a query's tokens and each of a passage's, in 2 bytes under
    autocast, else 4 (the mask made the vectors float32), when the sparse tensors are gone: only the larger counts.
    Scores: dense, with the gathered vectors twice; those of sparse, ColBERT, ensemble and self-distillation are local.
    """
    if setting.recipe == "reranker":
        return ()
    queries, passages = calls
    world = setting.world_size if setting.cross_device else 1
    q, p = world * queries.texts, world * passages.texts
    matrices = SCORE * q * p + 2 * (q + p) * shape.hidden * setting.weight
    if setting.recipe == "base":
        return (_part("scores", matrices, f"[{q:,} queries, {p:,} passages]"),)
    matrices += 5 * SCORE * queries.texts * passages.texts
    tokens = [(c.length - 1) * c.texts for c in calls]  # ColBERT leaves out the first token
    pairs = tokens[0] * tokens[1] * (2 if setting.autocast else 4)
    big = max(calls, key=lambda c: c.chunk * c.length)
    dense = 2 * big.chunk * big.length * shape.vocabulary * setting.compute
    size = f"[{big.chunk} {big.name}, {big.length:,} tokens, {shape.vocabulary:,} words], {setting.compute} bytes each"
    vectors = (queries.texts + passages.texts) * shape.vocabulary * (setting.compute + 8)
    return (
        _part("sparse head", dense if dense >= pairs else 0, f"two {size}"),
        _part("token scores", pairs if pairs > dense else 0, f"ColBERT's [{tokens[0]:,}, {tokens[1]:,}]"),
        _part("sparse vectors", vectors, "a value and an index for each text and word"),
        _part("ColBERT vectors", sum(tokens) * shape.hidden * (8 + setting.compute), "cast, masked, normalized"),
        _part("scores", matrices, f"[{q:,} queries, {p:,} passages], and the heads' local ones"),
    )


def _states(shape: ModelShape, setting: Setting) -> tuple[Parts, Parts, Parts, Parts]:
    """What is held all the time; gradients when complete; ZeRO's bucket; what the optimizer's step adds.

    Without DeepSpeed: float32 weights, gradients and Adam's two moments (4 + 4 + 8 bytes), fused; DDP's buckets are a
    second copy of the gradients (4), since gradient_as_bucket_view is off.
    DeepSpeed stage 0 in 16 bit (FP16_UnfusedOptimizer): weights 2, gradients 2, float32 weights 4, moments 8, in the
    step float32 gradients 4: the 20 bytes behind 10.6 GiB for bge-m3. torch's Adam (foreach) takes 4 more.
    ZeRO divides the float32 weights and gradients and the moments by W, from stage 2 on the gradients too; stage 3
    divides the weights, but its limits for gathered ones (10⁹ elements) are above these models, so all stay besides.
    """
    n, w, stage = trained(shape, setting.recipe), setting.weight, setting.zero_stage
    mine = -(-n // setting.world_size) if stage else n  # what this process updates
    on_gpu, embeddings = not setting.offload, shape.vocabulary * shape.hidden * w
    master = 4 if stage is not None and (stage or w == 2) else 0
    bucket = _part("DeepSpeed's bucket", BUCKET * w, f"reduce_bucket_size, {BUCKET:,} elements")
    twice = 0 if setting.recipe == "reranker" else embeddings  # queries' and passages' wait for each other
    held = (
        _part("weights", n * w + (mine * w if stage == 3 else 0), f"{n:,} parameters, {w} bytes each"),
        _part("optimizer states", on_gpu * mine * (master + 8), f"{mine:,} parameters, {master + 8} bytes each"),
        _part("offload buffer", setting.offload * embeddings, "for the largest gradient"),
        _part("DDP buckets", 4 * n if stage is None and setting.world_size > 1 else 0, "the gradients once more"),
    )
    own = (mine if (stage or 0) >= 2 else n) * w + (mine * w if stage == 1 and on_gpu else 0)
    gradients = _part("gradients", own, f"{w} bytes each")
    second = _part("second gradient", twice, "the word embeddings', of queries and passages")
    if stage is None:
        return held, (gradients, second), (), (gradients,)
    step = (
        _part("gradients", 0 if stage else n * w, f"{w} bytes each"),  # ZeRO's are freed before Adam
        _part("float32 gradients", on_gpu * 4 * mine if w == 2 else 0, "for the step"),
        _part("Adam's work space", on_gpu * 4 * mine, "the root of the second moment, of all parameters at once"),
    )
    return held, (gradients, second), (bucket,) if stage else (), step
