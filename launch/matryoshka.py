"""Trains an embedder whose vectors may be cut short: sentence-transformers' MatryoshkaLoss.

sentence-transformers has no command line, so this is one: torchrun starts it as it starts FlagEmbedding's
trainers (`-m launch.matryoshka --model_name_or_path …`), and what means the same has the same name and default.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets, load_dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MatryoshkaLoss
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import Tensor
from transformers import HfArgumentParser

COLUMNS = ("query", "pos", "neg", "prompt")
POOLING = {"cls": "cls", "mean": "mean", "last_token": "lasttoken"}  # FlagEmbedding's names → sentence-transformers'


@dataclass
class MatryoshkaArguments:
    """The arguments beside sentence-transformers' own."""

    model_name_or_path: str = field(metadata={"help": "Folder of the base model."})
    train_data: list[str] = field(metadata={"help": "JSON lines with query, pos and neg; prompt, if there, in all."})
    matryoshka_dims: list[int] = field(metadata={"help": "Lengths at which a cut vector is to be as good as it can."})
    cache_path: str | None = field(default=None, metadata={"help": "Folder for the rows' Arrow copy."})
    train_group_size: int = field(default=8, metadata={"help": "One positive and the rest negatives, drawn anew."})
    query_max_len: int = field(default=32, metadata={"help": "Tokens; longer queries are cut."})
    passage_max_len: int = field(default=128, metadata={"help": "Tokens; longer passages are cut."})
    query_instruction_for_retrieval: str = field(default="", metadata={"help": "Stands before a query."})
    passage_instruction_for_retrieval: str = field(default="", metadata={"help": "Stands before a passage."})
    sentence_pooling_method: str = field(
        default="cls", metadata={"help": "How tokens become a vector.", "choices": ["cls", "mean", "last_token"]}
    )
    temperature: float = field(default=0.02, metadata={"help": "Cosines are divided by it."})
    mini_batch_size: int = field(default=32, metadata={"help": "Texts in the encoder at a time."})
    negatives_cross_device: bool = field(default=False, metadata={"help": "Other processes' passages count too."})


def load_rows(files: Sequence[str], cache: str | None) -> Dataset:
    """All rows of the files, in their order, with the columns that are used."""
    parts = [load_dataset("json", data_files=file, split="train", cache_dir=cache) for file in files]
    return concatenate_datasets([p.select_columns([c for c in COLUMNS if c in p.column_names]) for p in parts])


def draw(row: dict[str, Any], group_size: int) -> list[str]:
    """One positive, then `group_size` - 1 negatives, at random; negatives repeat only where there are too few."""
    wanted, negatives = group_size - 1, row["neg"]
    again = math.ceil(wanted / len(negatives)) if negatives else 0
    return [random.choice(row["pos"]), *random.sample(negatives * max(again, 1), wanted)]


class Collator:
    """Rows → the loss's columns: the queries, the positives, the first drawn negatives, the second ones, …"""

    valid_label_columns: tuple[str, ...] = ()  # the trainer asks for it

    def __init__(self, model: SentenceTransformer, arguments: MatryoshkaArguments) -> None:
        self.preprocess = model.preprocess
        self.arguments = arguments

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Token tensors [rows, longest text], under `query_…`, `passage_0_…` (the positive), `passage_1_…`, …"""
        a = self.arguments
        queries = [row.get("prompt", a.query_instruction_for_retrieval) + row["query"] for row in rows]
        groups = [draw(row, a.train_group_size) for row in rows]
        columns = {"query": (queries, a.query_max_len)}
        for number, passages in enumerate(zip(*groups, strict=True)):
            texts = [a.passage_instruction_for_retrieval + text for text in passages]
            columns[f"passage_{number}"] = (texts, a.passage_max_len)
        return {
            f"{name}_{key}": value
            for name, (texts, limit) in columns.items()
            for key, value in self.preprocess(texts, max_length=limit).items()
        }


class CachedLoss(CachedMultipleNegativesRankingLoss):
    """The cached loss; sums its values for each length of the vectors until they are taken."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sums: dict[int, tuple[Tensor, int]] = {}  # length → sum of the values, how many

    def calculate_loss(self, reps: list[list[Tensor]], *args: Any, **kwargs: Any) -> Tensor:
        """MatryoshkaLoss calls it once for each length, with the vectors [texts, length] already cut."""
        value = super().calculate_loss(reps, *args, **kwargs)
        length = reps[0][0].shape[-1]
        total, count = self.sums.get(length, (torch.zeros_like(value), 0))
        self.sums[length] = (total + value.detach(), count + 1)
        return value

    def take(self) -> dict[int, Tensor]:
        """Length → this process's mean since the last call."""
        taken, self.sums = self.sums, {}
        return {length: total / count for length, (total, count) in taken.items()}


class Trainer(SentenceTransformerTrainer):
    """Logs the loss at each length; saves no model card, which would show training rows."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds `loss_<length>`, the mean of all processes, to every line that has a loss."""
        if "loss" in logs and (means := self.loss.loss.take()):
            values = self.accelerator.reduce(torch.stack(list(means.values())), reduction="mean").tolist()
            logs = logs | {f"loss_{dim}": round(value, 4) for dim, value in zip(means, values, strict=True)}
        super().log(logs, start_time)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """None: it would count words of columns that hold lists."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.model.save_pretrained(output_dir or self.args.output_dir, create_model_card=False)


def load_model(arguments: MatryoshkaArguments, device: str) -> SentenceTransformer:
    """The base model, pooled as the arguments say; unit vectors where the folder says nothing of its modules."""
    model = SentenceTransformer(arguments.model_name_or_path, device=device, local_files_only=True)
    if not Path(arguments.model_name_or_path, "modules.json").is_file():
        model.append(Normalize())
    for module in model:
        if isinstance(module, Pooling):
            module.pooling_mode = POOLING[arguments.sentence_pooling_method]
    return model


def main() -> None:
    """Trains, and saves a folder that sentence-transformers loads."""
    parser = HfArgumentParser((MatryoshkaArguments, SentenceTransformerTrainingArguments))
    arguments, training = parser.parse_args_into_dataclasses()
    model = load_model(arguments, str(training.device))
    cached = CachedLoss(
        model,
        scale=1 / arguments.temperature,
        mini_batch_size=arguments.mini_batch_size,
        gather_across_devices=arguments.negatives_cross_device,
    )
    dims = arguments.matryoshka_dims
    loss = MatryoshkaLoss(model, cached, dims, [1 / len(dims)] * len(dims))  # the mean, as FlagEmbedding's use_mrl
    if training.process_index == 0:
        told = ", ".join(map(str, loss.matryoshka_dims))
        print(f"loss: the mean over vectors of {told} dimensions of CachedMultipleNegativesRankingLoss")
    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=load_rows(arguments.train_data, arguments.cache_path),
        loss=loss,
        data_collator=Collator(model, arguments),
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
