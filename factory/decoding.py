"""Bytes → text: the encodings that users' files have."""

from __future__ import annotations

from pathlib import Path

from factory.languages import HAN
from factory.records import InputError


class Unreadable(Exception):
    """A file that is skipped: (reason code, detail)."""


def decode_file(path: Path) -> str:
    """A file's text. Raises InputError when its encoding cannot be told."""
    try:
        return decode(path.read_bytes())
    except Unreadable as e:
        raise InputError(f"{e.args[0]}: {e.args[1]}", where=path, fix="save it as UTF-8") from e


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
        if best is not None:
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
