"""Tables: no row is lost without a word, whatever the quotes in it."""

import pytest

from factory.documents import load_documents, read_table
from factory.given import given_documents
from factory.records import InputError
from factory.settings import InputConfig


def load(path):
    documents, dropped, taken = load_documents(InputConfig(path=str(path)))
    assert taken == len(documents) + len(dropped)
    return {d.id: d.text for d in documents}, {d.id: d for d in dropped}


def table(rows, mark=","):
    return "".join(f"{i}{mark}{text}\n" for i, text in [("id", "text"), *rows])


@pytest.mark.parametrize("stray", [{4}, {4, 900}, {1998}], ids=["one", "two", "near the end"])
def test_a_quote_that_is_never_closed_costs_its_own_row_and_no_other(tmp_path, stray):
    rows = [(i, '"5 inch pipe' if i in stray else f"Text {i}.") for i in range(2000)]
    (tmp_path / "a.csv").write_text(table(rows))
    documents, dropped = load(tmp_path / "a.csv")
    assert documents == {str(i): text for i, text in rows if i not in stray}
    assert {d.text for d in dropped.values()} == {f'{i},"5 inch pipe\n' for i in stray}
    assert set(dropped) == {f"a.csv:{i + 2}" for i in stray}
    with pytest.raises(InputError, match=rf"a\.csv:{min(stray) + 2}: "):
        read_table(tmp_path / "a.csv")


def test_a_quote_that_another_row_closes_by_chance_swallows_no_rows(tmp_path):
    texts = ["one", '"5 inch pipe', "three", "four", "five", 'a pipe of 6"', "seven"]
    (tmp_path / "a.csv").write_text(table(enumerate(texts)))
    documents, dropped = load(tmp_path / "a.csv")
    assert list(documents.values()) == [t for t in texts if t != '"5 inch pipe']
    assert dropped["a.csv:3"].detail.startswith("a quote swallows 4 rows")
    (tmp_path / "b.csv").write_text('id,text,note\n1,"a\n2,b,c\n3,d",e,f\n4,g,h\n')  # four values for three
    assert set(load(tmp_path / "b.csv")[1]) == {"b.csv:2", "b.csv:4"}


def test_values_that_have_no_column_are_told_and_not_cut_off(tmp_path):
    (tmp_path / "a.csv").write_text("text\nWelding is hot, so wear gloves\nIt is bright\nIt is loud,,\n")
    documents, dropped = load(tmp_path / "a.csv")
    assert list(documents.values()) == ["It is bright", "It is loud"]
    assert dropped["a.csv:2"].detail.startswith("2 values for 1 columns; a value with a comma in it needs quotes")


def test_quoted_values_may_hold_commas_quotes_and_lines(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,"a, ""b""\nand c"\n2,d\n\n3,"e"\n')
    assert load(tmp_path / "a.csv") == ({"1": 'a, "b"\nand c', "2": "d", "3": "e"}, {})


def test_quotes_in_a_tsv_are_plain_characters_where_they_do_not_pair(tmp_path):
    rows = [(1, "Hello"), (2, '"he said'), (3, "def"), (4, 'ghi" x'), (5, '"5 inch')]
    (tmp_path / "a.tsv").write_text(table(rows, "\t"))
    assert load(tmp_path / "a.tsv") == ({str(i): text for i, text in rows}, {})
    (tmp_path / "b.tsv").write_text('id\ttext\n1\t"a\tb\nc ""d"""\n')
    assert load(tmp_path / "b.tsv") == ({"1": 'a\tb\nc "d"'}, {})


def test_a_header_that_cannot_be_read_leaves_no_row_under_a_wrong_name(tmp_path):
    (tmp_path / "a.csv").write_text('id,"text\n1,a\n2,b\n')
    with pytest.raises(InputError, match=r"a\.csv:1: the names of the columns"):
        read_table(tmp_path / "a.csv")


def test_a_broken_row_of_pairs_stops_with_its_line(tmp_path):
    (tmp_path / "faq.csv").write_text('query,text\nWhy?,Because.\nHow?,"5 inch pipe\nWhen?,Now.\n')
    with pytest.raises(InputError, match=r"faq\.csv:3: unexpected end of data; a quote within a value"):
        given_documents(str(tmp_path / "faq.csv"), [])
