"""Loading: every type and encoding that users have; what cannot be read is named and the rest goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from factory.documents import load_documents, unwrap
from factory.evalset import read_eval_set
from factory.offline import SILENT
from factory.records import InputError
from factory.settings import InputConfig

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "samples"
TEXT = "焊接冷裂纹多在焊后数小时出现，与扩散氢、淬硬组织和拘束应力有关。"


def load(path, kind="documents"):
    documents, dropped, taken = load_documents(InputConfig(path=str(path), kind=kind))
    assert taken == len(documents) + len(dropped)
    return {d.id: d for d in documents}, {d.id: d for d in dropped}


def test_reading_a_pdf_leaves_nothing_that_calls_home(tmp_path):
    """onnxruntime, which markitdown imports, has a telemetry of its own: an identifier on disk, and an uploader."""
    program = "from factory.documents import convert; from pathlib import Path; print(len(convert(Path('{}'))))"
    pdf = next(SAMPLES.glob("*/documents/*.pdf"))
    home = {k: v for k, v in os.environ.items() if k not in SILENT}  # other tests have set them here
    home |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program.format(pdf)], env=home, capture_output=True, text=True, cwd=ROOT
    )
    assert int(done.stdout) > 500, done.stderr
    assert not [p for p in tmp_path.rglob("*") if "Microsoft" in p.parts]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "gbk", "utf-16"])
def test_chinese_text_is_read_in_every_encoding_in_use(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes(TEXT.encode(encoding))
    assert load(tmp_path)[0]["a.txt"].text == TEXT


def test_what_cannot_be_read_is_named_with_a_reason_and_the_rest_goes_on(tmp_path):
    (tmp_path / "good.md").write_text(f"# 冷裂纹\n\n{TEXT}", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("  \n")
    (tmp_path / "noise.txt").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 not a pdf")
    (tmp_path / "broken.docx").write_bytes(b"PK\x03\x04 not a docx")
    (tmp_path / "weights.bin").write_bytes(b"\0\1")
    documents, dropped = load(tmp_path)
    assert list(documents) == ["good.md"]
    assert documents["good.md"].title == "冷裂纹"
    assert {i: d.reason for i, d in dropped.items()} == {
        "empty.txt": "empty",
        "noise.txt": "undecodable",
        "broken.pdf": "not-converted",
        "broken.docx": "not-converted",
        "weights.bin": "unknown-type",
    }


def test_nothing_readable_is_an_error_that_says_why(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match=r"empty\.txt: empty"):
        load(tmp_path)


def test_a_wrong_path_is_an_error_that_names_it(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        load(tmp_path / "nowhere")


def test_html_and_docx_keep_their_headings(tmp_path):
    docx = pytest.importorskip("docx")
    document = docx.Document()
    document.add_heading("预热温度", level=1)
    document.add_paragraph(TEXT)
    document.save(tmp_path / "a.docx")
    (tmp_path / "b.html").write_text(f"<html><body><h1>Porosity</h1><p>{TEXT}</p></body></html>", encoding="utf-8")
    documents, _ = load(tmp_path)
    assert documents["a.docx"].title == "预热温度"
    assert TEXT in documents["a.docx"].text
    assert documents["b.html"].title == "Porosity"


def test_a_table_gives_one_document_a_row(tmp_path):
    (tmp_path / "faq.csv").write_text(f"code,symptom,remedy\nE1,leak,{TEXT}\nE2,,\n", encoding="utf-8-sig")
    documents, _ = load(tmp_path)
    assert documents["faq.csv#2"].text == f"code: E1\nsymptom: leak\nremedy: {TEXT}"
    assert documents["faq.csv#2"].whole


def test_a_broken_line_of_jsonl_is_dropped_by_number(tmp_path):
    rows = [json.dumps({"_id": f"d{i}", "title": "t", "text": f"{TEXT}{i}"}, ensure_ascii=False) for i in range(6)]
    (tmp_path / "corpus.jsonl").write_text(
        "\n".join([*rows, '{"_id": "d6", "text"', rows[0].replace("d0", "d9")]), encoding="utf-8"
    )
    documents, dropped = load(tmp_path / "corpus.jsonl", "passages")
    assert list(documents) == ["d0", "d1", "d2", "d3", "d4", "d5", "d9"]
    assert dropped["corpus.jsonl:7"].reason == "broken-json"
    assert documents["d0"].whole and documents["d0"].text == f"t\n{TEXT}0"


def test_a_prepared_passage_is_trained_with_its_title_as_it_is_searched(tmp_path):
    rows = [("a", "Slipstream", "It lifts."), ("b", "Slipstream", "Slipstream raises lift."), ("c", "", "No title.")]
    corpus = [{"_id": i, "title": title, "text": text} for i, title, text in rows]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "lift?"}')
    (tmp_path / "qrels.tsv").write_text("q\ta\t1\n")
    documents, _ = load(tmp_path / "corpus.jsonl", "passages")
    assert [d.text for d in documents.values()] == read_eval_set(tmp_path).passages
    assert documents["a"].text == "Slipstream\nIt lifts." and documents["b"].text == "Slipstream raises lift."


def test_two_rows_with_one_id_do_not_become_one_document(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "a", "text": "first text"}\n{"_id": "a", "text": "second text"}\n')
    documents, _ = load(tmp_path / "corpus.jsonl", "passages")
    assert sorted(d.text for d in documents.values()) == ["first text", "second text"]


def test_a_row_without_text_is_dropped_and_says_which_columns_it_has(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"_id": "a", "body": "x"}\n{"_id": "b", "text": "y z"}\n')
    documents, dropped = load(tmp_path / "p.jsonl", "passages")
    assert list(documents) == ["b"]
    assert "_id, body" in dropped["p.jsonl#1"].detail


def test_pdf_lines_are_joined_into_paragraphs_without_spaces_in_chinese():
    wrapped = "焊接冷裂纹多在焊后数小时甚至数天之后才出现，因此也叫\n延迟裂纹，它与扩散氢、淬硬组织和拘束应力三者有关。\n\n第二段很短。\n"
    assert unwrap(wrapped).startswith("焊接冷裂纹多在焊后数小时甚至数天之后才出现，因此也叫延迟裂纹，")
    assert "第二段很短。" in unwrap(wrapped).split("\n")
    assert unwrap("The crack appears hours after\nwelding has ended, in the zone\nnext to it.") == (
        "The crack appears hours after welding has ended, in the zone next to it."
    )


def test_western_text_in_a_one_byte_encoding_does_not_become_chinese(tmp_path):
    text = "Die Schweißnaht wurde mit 200 °C vorgewärmt. Größere Poren waren für den Prüfer nicht zulässig. " * 5
    (tmp_path / "de.txt").write_bytes(text.encode("cp1252"))
    documents, _dropped = load_documents(InputConfig(path=str(tmp_path / "de.txt")))[:2]
    assert documents[0].text.startswith("Die Schweißnaht wurde mit 200 °C vorgewärmt.")


def test_traditional_chinese_in_gbk_is_read(tmp_path):
    text = "銲接氣孔的產生原因主要有：銲條受潮、電弧過長、保護氣體流量不足。施工前應將銲條在350℃下烘乾兩小時。"
    (tmp_path / "a.txt").write_bytes(text.encode("gbk"))
    assert load(tmp_path)[0]["a.txt"].text == text


@pytest.mark.parametrize("encoding", ["gbk", "utf-8", "utf-16"])
def test_a_page_that_does_not_name_its_encoding_is_read_whatever_stands_first(tmp_path, encoding):
    page = f"<html><head><script>{'var a = 1;' * 900}</script></head><body><h1>冷裂纹</h1><p>{TEXT}</p></body></html>"
    (tmp_path / "a.html").write_bytes(page.encode(encoding))
    document = load(tmp_path)[0]["a.html"]
    assert document.title == "冷裂纹" and TEXT in document.text


def test_a_file_that_may_not_be_read_is_dropped_and_the_rest_goes_on(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "locked.txt").write_text(TEXT, encoding="utf-8")
    read = Path.read_bytes

    def refuse(path):  # as the system does where the tests do not run as root
        if path.name == "locked.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    documents, dropped = load(tmp_path)
    assert list(documents) == ["a.txt"]
    assert (dropped["locked.txt"].reason, dropped["locked.txt"].detail) == ("unreadable", "Permission denied")


@pytest.mark.parametrize("line", ['{"text": ' + "[" * 100_000, f'{{"text": {"9" * 5000}}}'], ids=["deep", "huge"])
def test_a_line_that_python_cannot_hold_is_dropped_like_any_that_is_broken(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "first"}}\n{line}\n{{"text": "third"}}\n')
    documents, dropped = load(tmp_path / "a.jsonl")
    assert [d.text for d in documents.values()] == ["first", "third"]
    assert dropped["a.jsonl:2"].reason == "broken-json"


@pytest.mark.parametrize("column", ["text", "content", "passage"])
def test_a_rows_text_is_split_whichever_name_its_column_has(tmp_path, column):
    (tmp_path / "a.jsonl").write_text(json.dumps({"_id": "1", column: TEXT}))
    (tmp_path / "b.csv").write_text(f"_id,{column}\n2,{TEXT}\n", encoding="utf-8")
    documents, _ = load(tmp_path)
    assert [(d.text, d.whole) for d in documents.values()] == [(TEXT, False)] * 2
