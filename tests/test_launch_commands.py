"""bge-launch diagnose and migrate on the command line, as a person with a failed log or a blog's command has them."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
COMMAND = """torchrun --nproc_per_node 2 \\
  -m FlagEmbedding.BGE_M3.run --model_name_or_path m3 --train_data train.jsonl --output_dir tuned \\
  --normlized True --learning_rate 2e-5 --unified_finetuning True
"""


def launch(*words: str, stdin: str = "", cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.cli", *words]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


@pytest.mark.parametrize("given", ["-", "old.sh"])
def test_a_command_becomes_a_file_and_is_explained_beside_it(tmp_path, given):
    (tmp_path / "old.sh").write_text(COMMAND)
    done = launch("migrate", given, stdin=COMMAND, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = yaml.safe_load(done.stdout)
    assert (made["recipe"], made["learning_rate"], made["hardware"]) == ("m3-unified", 2e-5, {"nproc_per_node": 2})
    assert "-m FlagEmbedding.BGE_M3.run → recipe: m3-unified" in done.stderr


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    (tmp_path / "old.sh").write_text(COMMAND)
    done = launch("migrate", "old.sh", "--out", "launch.yaml", cwd=tmp_path)
    assert done.returncode == 0 and not done.stdout and "next: bge-launch check launch.yaml" in done.stderr
    written = (tmp_path / "launch.yaml").read_text()
    again = launch("migrate", "old.sh", "--out", "launch.yaml", cwd=tmp_path)
    assert again.returncode == 2 and "launch.yaml: is there already" in again.stderr
    assert (tmp_path / "launch.yaml").read_text() == written


def test_what_cannot_be_migrated_or_read_is_one_clear_error(tmp_path):
    (tmp_path / "other.sh").write_text("pip install FlagEmbedding\n")
    for name, said in (
        ("other.sh", "no command that runs a FlagEmbedding trainer"),
        ("gone.sh", "No such file"),
        (".", "directory"),
    ):
        done = launch("migrate", name, cwd=tmp_path)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_script_in_gbk_and_a_log_of_powershell_are_read(tmp_path):
    (tmp_path / "old.bat").write_bytes(COMMAND.replace("tuned", "模型/焊接").encode("gbk"))
    done = launch("migrate", "old.bat", cwd=tmp_path)
    assert yaml.safe_load(done.stdout)["output"] == "模型/焊接"
    (tmp_path / "log.txt").write_bytes(
        "epoch 1\r\nCUDA out of memory. Tried to allocate 20.00 GiB\r\n".encode("utf-16")
    )
    done = launch("diagnose", "log.txt", cwd=tmp_path)
    assert "[cuda.memory]" in done.stdout and "line 2" in done.stdout


def test_a_log_is_diagnosed_whatever_its_bytes(tmp_path):
    log = b"epoch 1\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB\n" + b"\xff\xfe"
    (tmp_path / "launch.log").write_bytes(log)
    done = launch("diagnose", "launch.log", cwd=tmp_path)
    assert done.returncode == 0 and "[cuda.memory]" in done.stdout and "line 2" in done.stdout
    unknown = launch("diagnose", "-", stdin="nothing that anybody knows\n", cwd=tmp_path)
    assert unknown.returncode == 0 and "no known cause" in unknown.stdout
