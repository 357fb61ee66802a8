"""Parquet files that are larger than memory: written and read one row group, a block of questions, at a time."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory.records import InputError
from factory.workspace import atomic

TEXTS = ("query", "answer", "target_query", "target_answer")
DICTIONARY_PAGE = 1 << 26  # bytes; a block's texts are stored once, however often candidates repeat them


def write_blocks(path: Path, blocks: Iterable[pa.Table]) -> int:
    """Write each table as one row group, atomically; returns the rows.

    Raises:
        InputError: there is no table, since no question is left that may be trained on.
    """
    rows = 0
    with atomic(path) as temporary:
        writer: pq.ParquetWriter | None = None
        try:
            for block in blocks:
                if writer is None:
                    writer = pq.ParquetWriter(
                        temporary, block.schema, compression="zstd", dictionary_pagesize_limit=DICTIONARY_PAGE
                    )
                writer.write_table(block, row_group_size=max(len(block), 1))
                rows += len(block)
        finally:
            if writer is not None:
                writer.close()
        if writer is None:
            raise InputError(
                "too few passages: no training question has candidates", where=path.parent, fix="add documents"
            )
    return rows


def row_groups(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The row groups, one after the other; by default without the columns of texts."""
    file = pq.ParquetFile(path)
    wanted = list(columns) if columns else [n for n in file.schema_arrow.names if n not in TEXTS]
    for i in range(file.num_row_groups):
        yield file.read_row_group(i, wanted)


def everything(path: Path) -> Iterator[pa.Table]:
    """The row groups with all their columns."""
    return row_groups(path, pq.ParquetFile(path).schema_arrow.names)


def count(path: Path) -> int:
    """How many rows the file has."""
    return int(pq.ParquetFile(path).metadata.num_rows)


def take(path: Path, rows: np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows with these numbers, in this order; columns as in `row_groups`."""
    order = np.argsort(rows, kind="stable")
    sorted_rows, parts, at = rows[order], [], 0
    for block in row_groups(path, columns):
        here = sorted_rows[(sorted_rows >= at) & (sorted_rows < at + len(block))]
        parts.append(block.take(pa.array(here - at)))
        at += len(block)
    return pa.concat_tables(parts).take(pa.array(np.argsort(order, kind="stable")))


def write_csv(path: Path) -> Path:
    """The same table as <name>.csv, row group by row group; with a BOM, without which Excel garbles Chinese."""
    from pyarrow import csv

    target = path.with_suffix(".csv")
    with atomic(target) as temporary, open(temporary, "wb") as f:
        f.write(codecs.BOM_UTF8)
        first = True
        for block in everything(path):
            plain = [pa.string() if pa.types.is_dictionary(field.type) else field.type for field in block.schema]
            block = block.cast(pa.schema(zip(block.column_names, plain, strict=True)))
            csv.write_csv(block, f, csv.WriteOptions(include_header=first))
            first = False
    return target
