"""A LaunchPlan for where it is to run: a shell script, a Slurm batch file, a Kubeflow manifest.

The trainer's words are always the plan's own; only torchrun's, which say who the other nodes are,
depend on the place.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from factory.errors import InputError
from launch.cluster import Cluster
from launch.plan import LaunchPlan

FORMATS = ("argv", "json", "bash", "slurm", "k8s", "trainjob")
TRAINER = "trainer.kubeflow.org"
# Seconds in which a node must reach the head's store; torch's 60 are too few for nodes started by hand.
PATIENCE = 600


def render(plan: LaunchPlan, format: str, where: Cluster, config: Path) -> str:
    """The plan as a text in one of FORMATS.

    Args:
        config: its launch.yaml, which `bge-launch prepare` and `finish` read there, before and after.

    Raises:
        InputError: an unknown format; argv without the head of several nodes; a pod without an image,
            or that would not see a file of the plan.
    """
    if format == "argv":
        return json.dumps(_argv(plan, where), ensure_ascii=False) + "\n"
    if format == "json":
        return plan.model_dump_json(indent=2) + "\n"
    if format in ("bash", "slurm"):
        return _script(plan, format, where, config)
    if format in ("k8s", "trainjob"):
        _check_pods(plan, where)
        documents = [_pytorch_job(plan, where)] if format == "k8s" else _train_job(plan, where)
        return _around(plan, "bge-launch", config) + _yaml(documents)
    raise InputError(f"{format!r} is not a format", fix=f"one of {', '.join(FORMATS)}")


def _trainer(plan: LaunchPlan) -> tuple[str, ...]:
    """The words from `-m` on."""
    return plan.argv[plan.argv.index("-m") :]


def _launcher(plan: LaunchPlan, id: str, endpoint: str) -> list[str]:
    """torchrun's own words. `id` and `endpoint` are put in as they are."""
    if plan.nnodes == 1:
        return ["--standalone", "--nproc_per_node", str(plan.nproc_per_node)]
    nodes = ["--nnodes", str(plan.nnodes), "--nproc_per_node", str(plan.nproc_per_node), "--rdzv_backend", "c10d"]
    return [*nodes, "--rdzv_id", id, "--rdzv_endpoint", endpoint, "--rdzv_conf", f"read_timeout={PATIENCE}"]


def _argv(plan: LaunchPlan, where: Cluster) -> list[str]:
    if plan.nnodes > 1 and not where.head:
        raise InputError(
            "several nodes need a head node to meet at", fix="set `head:` in cluster.yaml to its host name"
        )
    endpoint = f"{where.head}:{where.rdzv_port}"
    return [plan.argv[0], *_launcher(plan, where.job_name, endpoint), *_trainer(plan)]


# Scripts


def _script(plan: LaunchPlan, format: str, where: Cluster, config: Path) -> str:
    import jinja2

    templates = jinja2.FileSystemLoader(Path(__file__).resolve().parent / "templates")
    jinja = jinja2.Environment(
        loader=templates, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    jinja.filters["quote"] = shlex.quote
    if format == "bash":
        id, endpoint = where.job_name, f'"$head:{where.rdzv_port}"'
    else:
        id, endpoint = '"$SLURM_JOB_ID"', '"$head:$port"'
    torchrun = "torchrun" if where.activate else shlex.quote(plan.argv[0])
    program = "bge-launch" if where.activate else str(Path(plan.argv[0]).with_name("bge-launch"))
    words = [*_launcher(plan, id, endpoint), *map(shlex.quote, _trainer(plan))]
    return jinja.get_template(f"{format}.j2").render(
        where=where,
        env=plan.env,
        workdir=str(where.workdir or plan.workdir),
        nnodes=plan.nnodes,
        gpus=plan.nproc_per_node if plan.device == "cuda" else None,
        command=[torchrun, *_by_argument(words)],
        patience=PATIENCE,
        around=_around(plan, program, config),
        prepare=shlex.join([program, "prepare", str(config)]) if plan.prepared else None,
        finish=shlex.join([program, "finish", str(config)]),
    )


def _around(plan: LaunchPlan, program: str, config: Path) -> str:
    """Comment lines: what a job that is only the training leaves to its user."""
    before = f"# Before, once: {shlex.join([program, 'prepare', str(config)])}\n" if plan.prepared else ""
    return f"{before}# Afterwards, once: {shlex.join([program, 'finish', str(config)])}\n"


def _by_argument(words: list[str]) -> list[str]:
    """One line for each argument, its values on the same line."""
    lines: list[str] = []
    for word in words:
        if not lines or (word.startswith("-") and not word[1:2].isdigit()):
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return lines


# Kubeflow


def _check_pods(plan: LaunchPlan, where: Cluster) -> None:
    if not where.image:
        fix = "set `image:` in cluster.yaml to one with bge-factory in it, which brings torchrun and FlagEmbedding"
        raise InputError("a pod needs a container image", fix=fix)
    needed = [("the model", plan.model), *(("the training data", f.path) for f in plan.data.files)]
    if plan.deepspeed:
        needed.append(("the DeepSpeed file", plan.deepspeed))
    for what, path in [*needed, ("the output", plan.output)]:
        seen = [m for m in where.mounts if path.is_relative_to(m.path)]
        if not seen:
            fix = "put it on a volume, give launch.yaml the path that it has there, and add the claim to `mounts:`"
            raise InputError(f"{path}: no mount holds {what}, so a pod would not see it", fix=fix)
        if what == "the output" and max(seen, key=lambda m: len(m.path.parts)).read_only:
            raise InputError(f"{path}: the output is on a read-only mount", fix="mount it for writing")


def _pod_words(plan: LaunchPlan) -> list[str]:
    """What follows `torchrun` in a pod, `$` doubled: Kubernetes makes `$$` a `$` and replaces `$(NAME)`.

    One node: the plan's words. Several: both operators put PET_NNODES, PET_NPROC_PER_NODE,
    PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT into the environment, where torchrun takes
    them for the arguments that it is not given, in its static rendezvous.
    """
    own = _launcher(plan, "", "") if plan.nnodes == 1 else []
    return [_dollars(word) for word in (*own, *_trainer(plan))]


def _dollars(text: str) -> str:
    return text.replace("$", "$$")


def _env(plan: LaunchPlan) -> list[dict[str, str]]:
    return [{"name": name, "value": _dollars(value)} for name, value in plan.env.items()]


def _resources(plan: LaunchPlan, where: Cluster) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if plan.device == "cuda":
        limits["nvidia.com/gpu"] = plan.nproc_per_node
    if where.cpus:
        limits["cpu"] = where.cpus
    if where.memory:
        limits["memory"] = f"{where.memory}Gi"
    return {"limits": limits}  # what is requested is then the same


def _pod(where: Cluster, container: dict[str, Any]) -> dict[str, Any]:
    """A pod of one container, with the claims and a /dev/shm that is large enough for NCCL."""
    mounts: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}]
    volumes: list[dict[str, Any]] = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{where.shared_memory}Gi"}}
    ]
    for number, mount in enumerate(where.mounts, 1):
        read_only = {"readOnly": True} if mount.read_only else {}
        mounts.append({"name": f"claim-{number}", "mountPath": str(mount.path)} | read_only)
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": mount.claim} | read_only})
    workdir = {"workingDir": str(where.workdir)} if where.workdir else {}
    return {"containers": [container | workdir | {"volumeMounts": mounts}], "volumes": volumes}


def _pytorch_job(plan: LaunchPlan, where: Cluster) -> dict[str, Any]:
    """The training operator's job, version 1.7 and later: one Master, which is rank 0, and the Workers.

    Not elastic: an elastic job counts as done when the *first* pod is, and rank 0, which still
    saves the model then, may be on any of them. Its `standalone: true` sets PET_STANDALONE to
    nothing, which torchrun cannot read.
    """

    def replicas(count: int) -> dict[str, Any]:
        container = {
            "name": "pytorch",  # the operator looks for this name
            "image": where.image,
            "command": ["torchrun"],
            "args": _pod_words(plan),
            "env": _env(plan),
            "resources": _resources(plan, where),
        }
        return {"replicas": count, "restartPolicy": "Never", "template": {"spec": _pod(where, container)}}

    workers = {"Worker": replicas(plan.nnodes - 1)} if plan.nnodes > 1 else {}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": where.job_name},
        "spec": {
            "nprocPerNode": str(plan.nproc_per_node),
            "runPolicy": {"cleanPodPolicy": "Running", "activeDeadlineSeconds": where.time_limit * 60},
            "pytorchReplicaSpecs": {"Master": replicas(1)} | workers,
        },
    }


def _train_job(plan: LaunchPlan, where: Cluster) -> list[dict[str, Any]]:
    """Kubeflow Trainer 2: a TrainJob and the runtime that it names.

    The runtime is our own because a TrainJob adds volumes to a shared one under another key in
    each release: podSpecOverrides in 2.0, podTemplateOverrides in 2.1, runtimePatches from 2.2 on.
    """
    pod = _pod(where, {"name": "node", "image": where.image})
    job = {"backoffLimit": 0, "activeDeadlineSeconds": where.time_limit * 60}
    pods = {"template": {"spec": pod | {"restartPolicy": "Never"}}}
    step = {"labels": {f"{TRAINER}/trainjob-ancestor-step": "trainer"}}
    runtime = {
        "apiVersion": f"{TRAINER}/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": {"name": where.job_name, "labels": {f"{TRAINER}/framework": "torch"}},
        "spec": {
            "mlPolicy": {"numNodes": plan.nnodes, "torch": {}},
            "template": {
                "spec": {"replicatedJobs": [{"name": "node", "template": {"metadata": step, "spec": job | pods}}]}
            },
        },
    }
    trainer = {
        "numNodes": plan.nnodes,
        "numProcPerNode": plan.nproc_per_node,
        "command": ["torchrun"],
        "args": _pod_words(plan),
        "env": _env(plan),
        "resourcesPerNode": _resources(plan, where),
    }
    named = {"apiGroup": TRAINER, "kind": "TrainingRuntime", "name": where.job_name}
    train_job = {
        "apiVersion": f"{TRAINER}/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": where.job_name},
        "spec": {"runtimeRef": named, "trainer": trainer},
    }
    return [runtime, train_job]


def _yaml(documents: list[dict[str, Any]]) -> str:
    import yaml  # type: ignore[import-untyped]

    return str(yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=1000))
