"""Stage 1, load: files → documents. What cannot be read is dropped by name, the rest goes on."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from factory.decoding import Unreadable, decode
from factory.decoding import decode_file as decode_file
from factory.input_files import find_files as find_files
from factory.input_files import sources as sources
from factory.languages import HAN
from factory.offline import stay_offline
from factory.progress import progress
from factory.records import Document, Dropped, InputError, titled
from factory.settings import InputConfig
from factory.tables_in import LINES, TABLE, json_lines, table_rows
from factory.tables_in import read_table as read_table

TEXT, MARKDOWN = {".txt"}, {".md", ".markdown"}
CONVERTED = {".pdf", ".docx", ".html", ".htm"}
SUFFIXES = TEXT | MARKDOWN | TABLE | LINES | CONVERTED
TEXT_COLUMNS = ("text", "content", "passage")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.M)


def load_documents(config: InputConfig) -> tuple[list[Document], list[Dropped], int]:
    """(documents, files and rows left out, how many files and rows were looked at).

    A table (.csv, .tsv) or .jsonl file gives one document a row; any other file gives one.
    """
    documents: list[Document] = []
    dropped: list[Dropped] = []
    ids: set[str] = set()
    taken = 0
    for path, name in progress(find_files(config.path), "load", "file"):
        try:
            rows = list(_read(path, name, config.kind))
        except Unreadable as e:
            rows = [Dropped(stage="load", id=name, reason=e.args[0], detail=e.args[1])]
        except OSError as e:
            rows = [Dropped(stage="load", id=name, reason="unreadable", detail=e.strerror or str(e))]
        for row in rows:
            taken += 1
            if isinstance(row, Dropped):
                dropped.append(row)
                continue
            if row.id in ids:  # two rows with one id are two documents
                row = row.model_copy(update={"id": f"{row.id}~{taken}"})
            ids.add(row.id)
            documents.append(row)
    for d in dropped:
        tqdm.write(f"  skipped {d.id}: {d.reason}" + (f" ({d.detail})" if d.detail else ""))
    if not documents:
        reasons = "; ".join(f"{d.id}: {d.reason}" for d in dropped[:5])
        raise InputError(
            f"no document could be read: {reasons}",
            where=str(config.path),
            fix=f"types read: {' '.join(sorted(SUFFIXES))}",
        )
    return documents, dropped, taken


def _read(path: Path, name: str, kind: str) -> Iterator[Document | Dropped]:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise Unreadable("unreadable", "a link to nothing" if path.is_symlink() else "the folder cannot be listed")
    if suffix not in SUFFIXES:
        raise Unreadable("unknown-type", f"{suffix or 'no suffix'}; read are {' '.join(sorted(SUFFIXES))}")
    raw = path.read_bytes()
    if not raw.strip():
        raise Unreadable("empty", "the file has no text")
    whole = kind != "documents"
    if suffix in CONVERTED:
        if whole:
            raise Unreadable("wrong-type", f"input.kind: {kind} takes .jsonl, .csv, .tsv and .txt files")
        yield _document(name, convert(path), markdown=True)
    elif suffix in TABLE | LINES:
        rows = table_rows(decode(raw), suffix, name) if suffix in TABLE else json_lines(decode(raw), name)
        for number, row in rows:
            yield row if isinstance(row, Dropped) else _from_row(row, f"{name}#{number}", kind)
    elif whole:
        for number, line in enumerate(decode(raw).splitlines(), 1):
            if line.strip():
                yield Document(id=f"{name}#{number}", source=name, text=line.strip(), whole=True)
    else:
        yield _document(name, decode(raw), markdown=suffix in MARKDOWN)


def _document(name: str, text: str, markdown: bool) -> Document:
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "").replace("\f", "\n\n")
    if not text.strip():
        raise Unreadable("empty", "no text was found in it; a scanned PDF needs OCR first")
    heading = HEADING.search(text) if markdown else None
    return Document(
        id=name, source=name, title=heading.group(1) if heading else Path(name).stem, text=text, markdown=markdown
    )


def _from_row(row: dict[str, Any], name: str, kind: str) -> Document | Dropped:
    """One row as a document: its text column, or all its columns as `name: value` lines."""
    source = name.rsplit("#", 1)[0]
    wanted = ("text",) if kind == "pairs" else TEXT_COLUMNS
    text = next((str(row[c]) for c in wanted if row.get(c)), "")
    if not text.strip() and kind == "documents":
        text = "\n".join(f"{k}: {v}" for k, v in row.items() if k and str(v or "").strip())
    if not text.strip():
        return Dropped(
            stage="load",
            id=name,
            reason="no-text",
            detail=f"expected a column {' or '.join(wanted)}; got {', '.join(map(str, row))}",
        )
    identity = name if kind == "pairs" else str(row.get("_id") or row.get("id") or name)
    tabular = kind == "documents" and not any(column in row for column in TEXT_COLUMNS)
    title = str(row.get("title") or "")
    if kind == "passages":
        text = titled(title, text)  # what `evaluate` searches in
    return Document(id=identity, source=source, title=title, text=text, whole=kind != "documents" or tabular)


@lru_cache(maxsize=1)
def _converter() -> Any:
    logging.getLogger("pdfminer").setLevel(logging.ERROR)
    stay_offline()
    from markitdown import MarkItDown
    from markitdown.converters import DocxConverter, HtmlConverter, PdfConverter

    # only these three: the built-in set ends in a plain-text converter, which takes a broken PDF for text
    converter = MarkItDown(enable_builtins=False, enable_plugins=False)
    for kind in (HtmlConverter, DocxConverter, PdfConverter):
        converter.register_converter(kind())
    return converter


def convert(path: Path) -> str:
    """Markdown of a .pdf, .docx or .html file, through markitdown.

    Raises:
        Unreadable: the converter gave up; its message is the detail.
    """
    try:
        raw = path.read_bytes() if path.suffix.lower() in (".html", ".htm") else b""
        if raw and b"charset" not in raw.lower():  # markitdown would guess it, from the first 4 KB alone
            from markitdown import StreamInfo

            given = StreamInfo(extension=".html", charset="utf-8")
            return str(_converter().convert_stream(io.BytesIO(decode(raw).encode()), stream_info=given).text_content)
        text = _converter().convert_local(str(path)).text_content
    except Unreadable:
        raise
    except Exception as e:  # the converters raise whatever their libraries raise
        raise Unreadable(
            "not-converted", f"{type(e).__name__}: {str(e).splitlines()[0][:200] if str(e) else ''}"
        ) from e
    return unwrap(text) if path.suffix.lower() == ".pdf" else str(text)


def unwrap(text: str) -> str:
    """Join the lines of a PDF's paragraphs: a PDF breaks lines where the page ends, not the sentence.

    A line that reaches at least 80 % of the page's usual width and does not end a sentence goes on in
    the next one. Chinese lines are joined without a space.
    """
    lines = [line.strip() for line in text.replace("\r\n", "\n").split("\n")]
    widths = sorted(len(line) for line in lines if line)
    if not widths:
        return ""
    usual = widths[int(len(widths) * 0.8)]
    out: list[str] = []
    goes_on = False
    for line in lines:
        if goes_on and line:
            glue = "" if HAN.match(line[0]) or HAN.match(out[-1][-1]) or out[-1][-1] in "，、；：（" else " "
            out[-1] += glue + line
        else:
            out.append(line)
        goes_on = bool(line) and len(line) >= 0.8 * usual and not line.endswith(("。", "！", "？", ".", "!", "?", "|"))
    return "\n".join(out)
