"""`bge-factory try-prompt` as a user runs it, against an HTTP server in place of the LLM."""

import json
import subprocess
import sys

import pytest
import yaml

from factory.prompt_files import PROMPTS
from tests.test_build import ROOT

COMMAND = [sys.executable, "-m", "factory.cli", "try-prompt"]


@pytest.fixture
def tried(tmp_path, minilm_en, start):
    """Runs the command; the LLM copies under the package's prompt and asks well under another."""

    def behave(handler, number, prompt):
        question = "Why is my coffee sour?" if prompt.startswith("MINE") else "The passage above says what?"
        text = json.dumps({"items": [{"question": f"{question}", "answer": ""}]})
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        answer = {"choices": [choice], "usage": {"completion_tokens": 3}}
        handler.say(200, json.dumps(answer).encode())

    server = start(behave)
    settings = {
        "input": {"path": str(ROOT / "samples" / "coffee-en" / "documents")},
        "model": {"path": str(minilm_en)},
        "llm": {"serve": "endpoint", "url": server.url},
        "generate": {"questions_per_passage": 1, "types": ["symptom"]},
    }
    (tmp_path / "factory.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "mine.md").write_text("---\nlanguage: en\n---\n## system\nx\n## user\nMINE ${passage}\n")

    def run(*options):
        command = [*COMMAND, str(tmp_path / "factory.yaml"), *map(str, options)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300), server

    return run, tmp_path


def test_two_prompts_stand_side_by_side_with_what_the_rules_say(tried):
    run, folder = tried
    done, server = run("--prompt", folder / "mine.md", "--n", 3)
    assert done.returncode == 0, done.stderr
    assert len(server.seen) == 6
    assert "question-document.en.md (now)" in done.stdout and "mine.md" in done.stdout
    assert done.stdout.count("✓ Why is my coffee sour?  symptom") == 3
    assert done.stdout.count("✗ The passage above says what?  symptom") == 3
    summary = done.stdout[done.stdout.index("summary") :]
    assert "0 (0 %)" in summary and "3 (100 %)" in summary
    assert {p.name for p in folder.iterdir()} == {"factory.yaml", "mine.md"}


def test_a_prompt_for_another_language_says_so(tried):
    run, _ = tried
    done, server = run("--prompt", PROMPTS / "question-document.zh.md")
    assert done.returncode == 2 and "no passage in zh" in done.stderr and not server.seen
    done, _ = run("--prompt", "nowhere.md")
    assert done.returncode == 2 and "no such prompt file" in done.stderr
