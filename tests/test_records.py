"""The training format: what the trainer would choke on is refused with file and line."""

import json

import pytest

from factory.records import Example, InputError, read_lines, read_records
from factory.validate import check_file
from factory.workspace import write_jsonl

GOOD = {"query": "焊缝为什么有气孔？", "pos": ["保护气体流量过小"], "neg": ["预热温度不足"]}


def write(path, lines):
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines) + "\n",
        encoding="utf-8",
    )
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"neg": []}, "neg"),
        ({"neg": [""]}, "neg.0"),
        ({"neg": ["   "]}, "neg.0"),
        ({"pos": "a string, whose characters the trainer would take as passages"}, "pos"),
        ({"query": ""}, "query"),
        ({"neg": ["保护气体流量过小"]}, "both in pos and in neg"),
        ({"pos_scores": [1.0]}, "both be there"),
        ({"pos_scores": [1.0], "neg_scores": [1.0, 2.0]}, "neg_scores has 2 entries, neg has 1"),
        ({"pos_scores": [float("nan")], "neg_scores": [1.0]}, "finite"),
        ({"negs": ["typo"]}, "negs: is not a known key"),
    ],
)
def test_a_row_that_would_break_training_is_refused_with_its_line(tmp_path, change, says):
    path = write(tmp_path / "train.jsonl", [GOOD] * 6 + [GOOD | change])
    good, problems = check_file(path)
    assert good == 6
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}:7: ")
    assert says in problems[0]


def test_broken_json_names_the_line_and_rows_before_it_are_counted(tmp_path):
    path = write(tmp_path / "train.jsonl", [GOOD] * 6 + ['{"query": "x", "pos"'])
    good, problems = check_file(path)
    assert good == 6
    assert problems[0].startswith(f"{path}:7: not valid JSON")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": "query: "}, "by prompt"),
        ({"pos_scores": [1.0], "neg_scores": [0.5]}, "by neg_scores, pos_scores"),
        ({"prompt": None}, ""),
        ({"id": "2", "type": "normal"}, ""),
    ],
)
def test_what_the_trainer_needs_in_every_row_is_in_all_or_in_none(tmp_path, change, said):
    for rows in ([GOOD, GOOD | change], [GOOD | change, GOOD]):
        good, problems = check_file(write(tmp_path / "train.jsonl", rows))
        assert (good, len(problems)) == ((1, 1) if said else (2, 0))
        assert said in "".join(problems)


ODD = {
    "missing id and type": [GOOD, GOOD | {"id": "2", "type": "normal"}, GOOD],
    "half an emoji": [GOOD, json.dumps(GOOD).replace('"query": "', '"query": "\\ud83d ')],
    "a whole emoji": [GOOD, json.dumps(GOOD).replace('"query": "', '"query": "\\ud83d\\ude00 ')],
    "a key twice": [GOOD, json.dumps(GOOD)[:-1] + ', "query": "again"}'],
    "a late key": [GOOD | {"pos": ["x" * 10_000]}] * 1100 + [GOOD | {"id": "2"}],
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_good_is_what_the_trainers_loader_reads(tmp_path, name):
    datasets = pytest.importorskip("datasets")
    path = write(tmp_path / "train.jsonl", ODD[name])
    good, problems = check_file(path)
    try:
        read = len(datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path)))
    except datasets.exceptions.DatasetGenerationError:
        assert problems and problems[0].startswith(f"{path}:{len(ODD[name])}: ")
    else:
        assert (good, problems) == (read, [])


def test_a_folder_and_utf16_are_called_what_they_are_once(tmp_path):
    with pytest.raises(InputError, match="is a folder, expected a file"):
        check_file(tmp_path)
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        path = tmp_path / f"{encoding}.jsonl"
        path.write_bytes(f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}\n".encode(encoding))
        with pytest.raises(InputError, match=r"(?s)jsonl: is UTF-16.*save it as UTF-8"):
            check_file(path)


def test_a_missing_file_is_looked_for_where_its_path_counts_from(tmp_path):
    with pytest.raises(InputError, match="in a YAML file it is relative to that file's folder"):
        list(read_lines(tmp_path / "absent.jsonl"))


def test_a_bom_blank_lines_and_emoji_are_read(tmp_path):
    path = tmp_path / "train.jsonl"
    row = GOOD | {"query": "焊缝发黑 😀 ok?"}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode() + b"\n\n\n")
    assert read_records(path, Example)[0].query == row["query"]


def test_an_empty_or_missing_file_is_an_error_not_zero_rows(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no row"):
        check_file(tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match="no such file"):
        check_file(tmp_path / "absent.jsonl")


def test_a_file_in_another_encoding_names_the_line(tmp_path):
    path = tmp_path / "gbk.jsonl"
    path.write_bytes(json.dumps(GOOD, ensure_ascii=False).encode("gbk"))
    with pytest.raises(InputError, match=r"gbk\.jsonl:1: not UTF-8"):
        list(read_lines(path))


def test_half_an_emoji_in_an_escape_becomes_a_character_that_a_file_can_hold(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(r'{"text": "a\ud83d b", "list": ["\ud83d\ude00", {"k\udc00": 1}], "path": "C:\\ude00"}')
    (row,) = [row for _, row in read_lines(path)]
    assert row == {"text": "a\ufffd b", "list": ["😀", {"k\ufffd": 1}], "path": "C:\\ude00"}
    write_jsonl(tmp_path / "y.jsonl", [row])
