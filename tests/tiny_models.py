"""Real, tiny, untrained models for tests: they load, train and save like their big relatives, in a second.

The tokenizer is a byte-level BPE, so every character of every language has a token and none is unknown.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEXTS = [
    "What does this mean? The welding current is too high; lower it before you start.",
    "How long should the coffee be roasted, and at which temperature?",
    "Keep the machine clean and dry. The water in the tank must be fresh every day.",
    "query: passage: question answer document model search text data train 0123456789",
    "焊接电流过大时应当降低电流，否则会产生气孔和飞溅。",
    "什么是预热温度？焊前预热可以减少冷裂纹的产生。",
    "机器必须保持清洁干燥，水箱里的水每天都要更换。",
    "问题和答案，文档和模型，搜索与训练数据。",
]


def _tokenizer(folder: Path, tokens: dict[str, str], vocabulary: int, max_length: int) -> int:
    """Trains and saves a tokenizer; gives its vocabulary size. `tokens` in the order of their ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(tokens.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    first, last = tokens["cls_token"], tokens["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B {last}",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in (first, last)],
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **tokens)
    fast.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 5 writes a name that 4 does not know
    config["model_input_names"] = ["input_ids", "attention_mask"]  # 4 adds token types, of which XLM-R has one only
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.get_vocab_size()


def _sentence_transformers_files(folder: Path, pooling: str, max_length: int, width: int) -> None:
    modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": i, "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (name, path, kind) in enumerate(modules)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {"__version__": {"sentence_transformers": "2.2.2"}},
    }
    (folder / "1_Pooling").mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")


def _xlm_roberta(folder: Path) -> dict[str, Any]:
    """Saves a tokenizer; gives the configuration of a two-layer XLM-RoBERTa of width 64."""
    tokens = {
        "cls_token": "<s>",
        "pad_token": "<pad>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    vocabulary = _tokenizer(folder, tokens | {"bos_token": "<s>", "eos_token": "</s>"}, 600, 512)
    return {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }


def make_tiny_m3(folder: Path) -> Path:
    """A two-layer XLM-RoBERTa of width 64 with bge-m3's three heads (CLS, sparse, ColBERT) in `folder`."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaModel

    folder.mkdir(parents=True, exist_ok=True)
    config = XLMRobertaConfig(**_xlm_roberta(folder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        XLMRobertaModel(config, add_pooling_layer=True).save_pretrained(folder)
        torch.save(torch.nn.Linear(64, 64).state_dict(), folder / "colbert_linear.pt")
        torch.save(torch.nn.Linear(64, 1).state_dict(), folder / "sparse_linear.pt")
    _sentence_transformers_files(folder, "cls", 512, 64)
    return folder


def make_tiny_bert(folder: Path) -> Path:
    """A two-layer BERT of width 64 with mean pooling in `folder`."""
    import torch
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True, exist_ok=True)
    tokens = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    vocabulary = _tokenizer(folder, tokens, 600, 512)
    config = BertConfig(
        vocab_size=vocabulary, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        BertModel(config).save_pretrained(folder)
    _sentence_transformers_files(folder, "mean", 512, 64)
    return folder


def make_tiny_reranker(folder: Path, *, labels: int = 1) -> Path:
    """A two-layer XLM-RoBERTa of width 64 with a head for `labels` scores, as bge-reranker is, in `folder`."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    folder.mkdir(parents=True, exist_ok=True)
    config = XLMRobertaConfig(**_xlm_roberta(folder), num_labels=labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    return folder
