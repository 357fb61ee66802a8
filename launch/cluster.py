"""cluster.yaml: what Slurm, Kubernetes or a person at several machines needs beside the plan."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from factory.errors import InputError
from factory.records import problem
from launch.config import EXPLAINED, Frozen, read_yaml, refuse_unknown


class Mount(Frozen):
    """A PersistentVolumeClaim and the folder at which the pods see it."""

    claim: str = Field(min_length=1, description="the claim's name")
    path: Path = Field(description="the folder in the pod")
    read_only: bool = Field(default=False, description="whether the pod may not write there")


class Cluster(Frozen):
    """Where a plan runs. What a format does not need is not looked at; how many nodes, the plan says."""

    head: str = Field(
        default="",
        pattern=r"^[\w.:\[\]-]*$",
        description="bash, argv: the node that the others meet at, name or address",
    )
    rdzv_port: int = Field(
        default=29500, ge=1, le=65535, description="the port at which they meet there; torchrun's own"
    )
    job_name: str = Field(
        default="bge-launch",
        pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$",
        max_length=40,
        description="a DNS label, which Kubernetes wants and Slurm takes; at most 40 small letters, digits and -",
    )
    time_limit: int = Field(default=24 * 60, ge=1, description="slurm: minutes")
    partition: str = Field(default="", pattern=r"^[\w.,-]*$", description="slurm")
    account: str = Field(default="", pattern=r"^[\w.-]*$", description="slurm")
    image: str = Field(default="", description="k8s, trainjob: the container image with bge-factory in it")
    mounts: tuple[Mount, ...] = Field(
        default=(), description="k8s, trainjob: where the pods find model, data and output"
    )
    cpus: int | None = Field(default=None, ge=1, description="for each node; null: what Slurm or Kubernetes gives")
    memory: int | None = Field(
        default=None, ge=1, description="GiB for each node; null: all of a Slurm node, no limit on Kubernetes"
    )
    shared_memory: int = Field(
        default=16, ge=1, description="k8s, trainjob: GiB of /dev/shm; the runtime's 64 MiB are too few for NCCL"
    )
    workdir: Path | None = Field(default=None, description="null: the plan's; in a pod, the image's")
    activate: str = Field(
        default="",
        description="bash, slurm: a shell line that puts torchrun on the PATH; without it the plan's full path is used",
    )


def load_cluster(path: Path) -> Cluster:
    """The cluster in a YAML file. InputError if it is missing or does not fit; names the key and the nearest known one."""
    raw = read_yaml(path)
    for name in ("nnodes", "nproc_per_node"):
        if name in raw:
            what = f"{name!r} is not set here: the plan depends on it"
            raise InputError(what, where=path, fix=f"set `hardware: {{{name}: {raw[name]}}}` in launch.yaml")
    refuse_unknown(raw, Cluster, path)
    try:
        return Cluster.model_validate(raw)
    except ValidationError as e:
        raise InputError(problem(e), where=path, fix=EXPLAINED) from e
