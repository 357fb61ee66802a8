"""Words for BM25 and Jaccard, the same for Chinese and English, without a dictionary."""

from __future__ import annotations

import re
import unicodedata

# Scripts written without spaces (Han, kana, Hangul) are one run; of the rest, letters and digits are.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
_RUN = re.compile(rf"([{_CJK}]+)|[^\W_{_CJK}]+")


def tokens(text: str) -> list[str]:
    """Character bigrams of Chinese (a lone character stays as it is); lower-cased words and numbers of the rest.

    Full-width letters and digits count as the usual ones (NFKC). Bigrams are the usual dictionary-free
    indexing of Chinese, as in Lucene's CJKAnalyzer.

    >>> tokens("更换E4303焊条 2 根")
    ['更换', 'e4303', '焊条', '2', '根']
    """
    found: list[str] = []
    for match in _RUN.finditer(unicodedata.normalize("NFKC", text).lower()):
        run = match.group()
        if match.group(1) and len(run) > 1:
            found.extend(run[i : i + 2] for i in range(len(run) - 1))
        else:
            found.append(run)
    return found
