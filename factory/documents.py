"""Stage 1, load: files → documents. What cannot be read is dropped by name, the rest goes on."""

from __future__ import annotations

import csv
import glob
import io
import json
import logging
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from factory.languages import HAN
from factory.offline import stay_offline
from factory.progress import progress
from factory.records import Document, Dropped, InputError, loads, titled
from factory.settings import InputConfig

TEXT, MARKDOWN, TABLE, LINES = {".txt"}, {".md", ".markdown"}, {".csv", ".tsv"}, {".jsonl"}
CONVERTED = {".pdf", ".docx", ".html", ".htm"}
SUFFIXES = TEXT | MARKDOWN | TABLE | LINES | CONVERTED
TEXT_COLUMNS = ("text", "content", "passage")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.M)


class Unreadable(Exception):
    """A file that is skipped: (reason code, detail)."""


def find_files(paths: str | list[str]) -> list[tuple[Path, str]]:
    """(file, name relative to its input folder) for every file of a known type, sorted by name.

    Raises:
        InputError: a path that names nothing.
    """
    found: dict[Path, str] = {}
    for pattern in [paths] if isinstance(paths, str) else paths:
        path = Path(pattern)
        if path.is_dir():
            files = [(f, f.relative_to(path).as_posix()) for f in path.rglob("*") if f.is_file()]
            files = [
                (f, name) for f, name in files if not any(part.startswith((".", "~$")) for part in Path(name).parts)
            ]
        elif path.is_file():
            files = [(path, path.name)]
        else:
            files = [(Path(m), Path(m).name) for m in glob.glob(pattern, recursive=True) if Path(m).is_file()]
        if not files:
            raise InputError(
                "no such file or folder, or nothing in it", where=pattern, fix="correct the path in the configuration"
            )
        for each, name in files:
            found.setdefault(each.resolve(), name)
    taken: set[str] = set()
    result = []
    for name, file in sorted((name, str(file)) for file, name in found.items()):
        unique = name if name not in taken else file
        taken.add(unique)
        result.append((Path(file), unique))
    return result


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
        rows = _table(decode(raw), suffix) if suffix in TABLE else _json_lines(decode(raw), name)
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
    tabular = kind == "documents" and "text" not in row
    title = str(row.get("title") or "")
    if kind == "passages":
        text = titled(title, text)  # what `evaluate` searches in
    return Document(id=identity, source=source, title=title, text=text, whole=kind != "documents" or tabular)


def decode_file(path: Path) -> str:
    """A file's text. Raises InputError when its encoding cannot be told."""
    try:
        return decode(path.read_bytes())
    except Unreadable as e:
        raise InputError(f"{e.args[0]}: {e.args[1]}", where=path, fix="save it as UTF-8") from e


def read_table(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, row) of a .csv, .tsv or .jsonl file in any encoding that `decode` reads.

    Raises:
        InputError: the file is missing, of another type, undecodable or has a broken line.
    """
    if not path.is_file() or path.suffix.lower() not in TABLE | LINES:
        raise InputError("expected a .csv, .tsv or .jsonl file", where=path)
    text = decode_file(path)
    rows = _table(text, path.suffix.lower()) if path.suffix.lower() in TABLE else _json_lines(text, str(path))
    good = []
    for number, row in rows:
        if isinstance(row, Dropped):
            raise InputError(row.detail, where=f"{path}:{number}")
        good.append((number, row))
    return good


def _table(text: str, suffix: str) -> Iterator[tuple[int, dict[str, Any] | Dropped]]:
    csv.field_size_limit(1 << 30)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if suffix == ".tsv" else ",")
    for row in reader:
        yield reader.line_num, {str(k).strip(): v for k, v in row.items() if k is not None}


def _json_lines(text: str, name: str) -> Iterator[tuple[int, dict[str, Any] | Dropped]]:
    # split on "\n" alone: U+2028 and the like are legal inside a JSON string
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = loads(line)
            problem = "" if isinstance(row, dict) else f"expected a JSON object, got {type(row).__name__}"
        except json.JSONDecodeError as e:
            problem = f"not valid JSON: {e.msg} at column {e.colno}"
        yield (
            number,
            Dropped(stage="load", id=f"{name}:{number}", reason="broken-json", detail=problem, text=line[:200])
            if problem
            else row,
        )


def decode(raw: bytes) -> str:
    """UTF-8 (with or without BOM), UTF-16 with BOM, GB18030/GBK; else what charset-normalizer is sure of.

    Raises:
        Unreadable: no encoding fits.
    """
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _strict(raw, "utf-16")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    if b"\0" not in raw:
        try:
            text = raw.decode("gb18030")
        except UnicodeDecodeError:
            text = ""
        if _plausibly_chinese(text):
            return text
        from charset_normalizer import from_bytes

        best = from_bytes(raw).best()
        if best is not None and best.encoding != "gb18030":
            return str(best)
    raise Unreadable("undecodable", "neither UTF-8, UTF-16 nor GB18030; save it as UTF-8")


def _strict(raw: bytes, encoding: str) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as e:
        raise Unreadable("undecodable", str(e)) from e


def _plausibly_chinese(text: str) -> bool:
    """Western text in a one-byte encoding also decodes as GB18030, but into rare characters."""
    high = [c for c in text if c > "\x7f"]
    common = 0.0
    for c in high:
        try:
            common += len(c.encode("gb2312")) == 2
        except UnicodeEncodeError:
            common += bool(HAN.match(c)) / 2
    return bool(high) and common >= 0.85 * len(high)


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
        text = _converter().convert_local(str(path)).text_content
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


def sources(paths: str | list[str]) -> Iterable[tuple[str, int, int]]:
    """(name, bytes, modification time in ns) of each file: what a stage rests on that reads them."""
    for path, name in find_files(paths):
        stat = path.stat()
        yield name, stat.st_size, stat.st_mtime_ns
