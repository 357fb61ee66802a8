"""The gate of rounds by table, the file that tells of them while they go on, and what makes a training another one."""

import json

import pytest
from pydantic import ValidationError

from factory.config import Config
from factory.evaluation import Change
from factory.rounds_result import Base, Board, Development, Round, Score, decide, in_words, read_rounds
from factory.settings import RoundsConfig
from factory.training import _key
from tests.tiny_models import make_tiny_bert


@pytest.mark.parametrize(
    ("number", "value", "low", "rule", "kept", "go_on", "why"),
    [
        (1, 0.05, 0.01, {}, True, True, "better"),
        (2, 0.05, 0.01, {}, True, True, "better"),
        (3, 0.05, 0.01, {}, True, False, "better"),  # count
        (2, 0.05, 0.00, {}, False, False, "chance"),  # the interval must lie above zero
        (2, 0.05, -0.01, {}, False, False, "chance"),
        (2, 0.05, -0.01, {"sure": False}, True, True, "better"),
        (2, 0.00, 0.00, {}, False, False, "not-above"),  # the same model twice
        (2, 0.00, 0.00, {"sure": False}, False, False, "not-above"),
        (1, -0.02, -0.04, {"sure": False}, False, False, "not-above"),
        (2, 0.01, 0.005, {"gain": 0.02}, False, False, "little"),
        (2, 0.02, 0.005, {"gain": 0.02}, False, False, "little"),
        (2, 0.03, 0.005, {"gain": 0.02}, True, True, "better"),
    ],
)
def test_a_round_is_kept_only_if_it_is_surely_above_the_best_before_it(number, value, low, rule, kept, go_on, why):
    change = Change(value=value, low=low, high=value + 0.02)
    verdict = decide(number, change, RoundsConfig.model_validate({"count": 3} | rule))
    assert (verdict.kept, verdict.go_on, verdict.why) == (kept, go_on, why)
    before = "the base model" if number == 1 else f"round {number - 1}"
    assert f"{100 * value:+.1f} points [{100 * low:+.1f}, {100 * value + 2:+.1f}] against {before}" in verdict.reason
    assert (f"{before} stays the best" in verdict.reason) == (not kept)


def some_round(number: int, kept: bool) -> Round:
    zero = {"value": 0.1, "low": 0.0, "high": 0.2}
    return Round.model_validate(
        {"round": number, "mined_with": "m", "mined_with_fingerprint": "f", "train": "t", "rows": 1, "negatives": 1}
        | {"new_negatives": None, "launch": "l", "tuned": f"rounds/{number}/tuned", "fingerprint": "f", "updates": 1}
        | {"seconds": 1.0, "loss": None, "score": zero, "to_base": zero, "to_before": zero, "kept": kept}
        | {"verdict": "better" if kept else "chance", "reason": "so"}
    )


def test_the_file_and_the_link_are_true_while_rounds_go_on_and_when_one_is_trained_anew(tmp_path):
    development = Development(folder="dev", questions=9, documents=3, passages=5)
    base = Base(folder=str(tmp_path / "bert"), fingerprint="b", score=Score(value=0.5, low=0.4, high=0.6))
    one, two = some_round(1, True), some_round(2, True)
    link = tmp_path / "best"

    board = Board(tmp_path, development)
    board.go_back()
    board.put(base, [one], finished=False)
    assert link.readlink().as_posix() == "rounds/1/tuned" and not read_rounds(tmp_path).finished
    board.put(base, [one, two], finished=True)
    assert link.readlink().as_posix() == "rounds/2/tuned" and read_rounds(tmp_path).best.round == 2

    again = Board(tmp_path, development)  # the same command once more: nothing flickers
    again.put(base, [one], finished=False)
    assert link.readlink().as_posix() == "rounds/2/tuned" and read_rounds(tmp_path).finished
    again.go_back()  # but round 2 has other rows now
    assert link.readlink().as_posix() == "rounds/1/tuned" and len(read_rounds(tmp_path).rounds) == 1
    again.put(base, [one, some_round(2, False)], finished=True)
    assert link.readlink().as_posix() == "rounds/1/tuned" and read_rounds(tmp_path).best.folder == "rounds/1/tuned"

    Board(tmp_path, development).go_back()  # and now round 1
    assert not link.is_symlink() and read_rounds(tmp_path) is None


def test_without_a_better_round_the_base_is_the_best_and_a_folder_called_best_is_left_alone(tmp_path):
    (tmp_path / "best").mkdir()
    board = Board(tmp_path, Development(folder="dev", questions=9, documents=3, passages=5))
    base = Base(folder="/models/bert", fingerprint="b", score=Score(value=0.5, low=0.4, high=0.6))
    board.put(base, [some_round(1, False)], finished=True)
    best = read_rounds(tmp_path).best
    assert (best.round, best.folder, best.train, best.link) == (0, "/models/bert", None, None)
    assert (tmp_path / "best").is_dir() and not (tmp_path / "best").is_symlink()
    told = in_words(read_rounds(tmp_path), tmp_path)
    assert "the base model, nDCG@10 50.0" in told[0] and told[1].endswith(" /models/bert")


def test_a_training_is_another_one_if_its_rows_model_or_settings_are_but_not_if_its_folder_is(tmp_path):
    rows, more = tmp_path / "train.jsonl", tmp_path / "more.jsonl"
    rows.write_text("a\n"), more.write_text("b\n")
    model = make_tiny_bert(tmp_path / "bert")
    settings = {"model": str(model), "train_data": [str(rows)], "output": "there", "epochs": 1}
    key = _key(settings)
    (tmp_path / "moved.jsonl").write_text("a\n")
    assert _key(settings | {"train_data": [str(tmp_path / "moved.jsonl")], "output": "elsewhere"}) == key
    assert _key(settings | {"epochs": 2}) != key
    assert _key(settings | {"train_data": [str(rows), str(more)]}) != key
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    assert _key(settings) != key


def test_rounds_hold_documents_out_for_dev_and_may_be_a_number():
    parts = {"input": {"path": "d"}, "model": {"path": "m"}}
    assert Config.model_validate(parts).dev_share == 0
    two = Config.model_validate(parts | {"rounds": 2})
    assert (two.rounds.count, two.dev_share) == (2, 0.1)
    assert Config.model_validate(parts | {"rounds": 2, "split": {"dev": 0.2}}).dev_share == 0.2
    with pytest.raises(ValidationError, match=r"compared on dev/, but split\.dev is 0"):
        Config.model_validate(parts | {"rounds": 2, "split": {"dev": 0}})
