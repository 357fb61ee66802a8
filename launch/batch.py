"""What the trainer's loader will really do with the rows: steps, leftovers, negatives per query."""

from __future__ import annotations

import math

from launch.config import Frozen
from launch.data import DataFacts


class BatchFacts(Frozen):
    """Counts for one training run. A step is one forward pass of every process."""

    rows: int
    queries_per_step: int
    steps_per_epoch: int
    updates: int  # optimizer updates in the whole run; what the progress bar counts
    dropped: int  # rows of each epoch that no step uses; another random set in every epoch
    hard_negatives: int  # per query: its own
    in_batch_negatives: int  # per query: the other queries' passages, dense loss
    local_negatives: int  # the same for the losses that never cross devices (sparse, ColBERT)


def batch_facts(
    data: DataFacts,
    *,
    batch_size: int,
    group_size: int,
    world_size: int,
    epochs: float,
    drop_last: bool,
    cross_device: bool,
    accumulation: int = 1,
    max_steps: int = -1,
    same_dataset: bool = False,
    in_batch: bool = True,
) -> BatchFacts:
    """The counts, from accelerate's BatchSamplerShard and transformers' Trainer.

    With drop_last a process gets floor(floor(rows / batch) / processes) batches; without, both are
    rounded up and rows are repeated to fill. In `same_dataset_within_batch` FlagEmbedding floors
    every file on its own (AbsDataset.refresh_epoch). Gradient accumulation adds no negatives.
    `in_batch`: whether other queries' passages are negatives; not for a reranker, whose loss looks
    at one query's group at a time (AbsRerankerModel.forward).
    """
    per_step = batch_size * world_size
    if same_dataset:
        sizes = [(f.rows, (batch_size // 2 if f.symmetric else batch_size) * world_size) for f in data.files]
        steps = sum(rows // size for rows, size in sizes if size)
        used = sum(rows // size * size for rows, size in sizes if size)
    elif drop_last:
        steps = data.rows // batch_size // world_size
        used = steps * per_step
    else:
        steps = math.ceil(math.ceil(data.rows / batch_size) / world_size)
        used = data.rows
    updates_per_epoch = max(math.ceil(steps / accumulation), 1) if steps else 0
    others = (batch_size - 1) * group_size if in_batch else 0
    return BatchFacts(
        rows=data.rows,
        queries_per_step=per_step,
        steps_per_epoch=steps,
        updates=max_steps if max_steps > 0 and steps else math.ceil(updates_per_epoch * epochs),
        dropped=data.rows - used,
        hard_negatives=group_size - 1,
        in_batch_negatives=(per_step - 1) * group_size if cross_device and in_batch else others,
        local_negatives=others,
    )
