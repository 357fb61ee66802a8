"""Which files the input names: what its links lead to, and nothing that a build wrote."""

import json

import pytest

from factory.documents import find_files, load_documents, sources
from factory.pipeline import DOCUMENTS
from factory.records import InputError
from factory.settings import InputConfig
from factory.workspace import Outcome, Workspace, write_jsonl

TEXT = "A crack after welding comes from hydrogen, a hard structure and stress."


def names(path):
    return [name for _, name in find_files(str(path))]


def write(folder, *files):
    folder.mkdir(exist_ok=True)
    for name in files:
        (folder / name).write_text(f"{name}: {TEXT}")


@pytest.fixture
def run(tmp_path):
    """Two documents, and among them the folder of a run that has loaded them and has a test set."""
    write(tmp_path, "a.txt", "b.txt")
    with Workspace(tmp_path / "run", {}, print) as ws:

        def load():
            documents, dropped, taken = load_documents(InputConfig(path=str(tmp_path)))
            write_jsonl(ws.path(DOCUMENTS), documents)
            return Outcome(taken, len(documents), dropped)

        ws.stage("load", load, outputs=[DOCUMENTS])
    write_jsonl(tmp_path / "run" / "eval" / "queries.jsonl", [{"_id": "q", "text": "Why?"}])
    return tmp_path / "run"


def test_what_a_run_wrote_into_the_input_folder_is_no_document(run, monkeypatch):
    assert names(run.parent) == ["a.txt", "b.txt"]
    assert [name for name, _, _ in sources(str(run.parent))] == ["a.txt", "b.txt"]
    monkeypatch.chdir(run.parent)
    assert names(".") == ["a.txt", "b.txt"]
    assert names("**/*.*") == ["a.txt", "b.txt"]
    with pytest.raises(InputError, match="a run of bge-factory"):
        find_files(str(run))


def test_a_file_of_a_run_that_is_named_is_read(run):
    assert names(run / "eval") == ["queries.jsonl"]
    assert names(run / "eval" / "*.jsonl") == ["queries.jsonl"]
    assert names(run / DOCUMENTS) == [DOCUMENTS]


def test_a_build_that_was_killed_before_its_first_manifest_is_no_input_either(run):
    (run / "run.json").unlink()
    (run / ".lock").touch()
    assert names(run.parent) == ["a.txt", "b.txt"]


def test_a_folder_with_somebody_elses_run_json_is_read(tmp_path):
    write(tmp_path / "mine", "a.txt")
    (tmp_path / "mine" / "run.json").write_text(json.dumps({"steps": 3}))
    assert names(tmp_path) == ["mine/a.txt", "mine/run.json"]


def test_links_to_folders_are_followed_once_and_a_link_to_nothing_is_told(tmp_path):
    docs = tmp_path / "docs"
    write(docs, "a.txt")
    write(tmp_path / "elsewhere", "b.txt")
    (docs / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(docs)
    (docs / "round").symlink_to("round")
    (docs / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    (docs / "once-more.txt").symlink_to(docs / "a.txt")
    documents, dropped, taken = load_documents(InputConfig(path=str(docs)))
    assert [d.id for d in documents] == ["a.txt", "linked/b.txt"]
    assert {d.id: (d.reason, d.detail) for d in dropped} == {
        "gone.txt": ("unreadable", "a link to nothing"),
        "round": ("unreadable", "a link to nothing"),
    }
    assert taken == 4
    assert {name for name, _, _ in sources(str(docs))} == {"a.txt", "linked/b.txt", "gone.txt", "round"}
    one_by_one = [str(path) for path, _ in find_files(str(docs))]  # as `try` draws them
    assert len(load_documents(InputConfig(path=one_by_one))[1]) == 2
