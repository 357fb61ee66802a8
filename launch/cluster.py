"""cluster.yaml: what Slurm, Kubernetes or a person at several machines needs beside the plan."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from factory.errors import InputError
from factory.records import problem
from launch.config import Frozen, read_yaml, refuse_unknown


class Mount(Frozen):
    """A PersistentVolumeClaim and the folder at which the pods see it."""

    claim: str = Field(min_length=1)
    path: Path
    read_only: bool = False


class Cluster(Frozen):
    """Where a plan runs. What a format does not need is not looked at; how many nodes, the plan says.

    Args:
        head: the node that the others meet at, bash and argv only.
        job_name: a DNS label, which Kubernetes wants and Slurm takes.
        time_limit: minutes.
        cpus: for each node; None is what Slurm or Kubernetes gives.
        memory: GiB for each node; None is all of a Slurm node, and no limit on Kubernetes.
        shared_memory: GiB of /dev/shm in a pod; the runtime's 64 MiB are too few for NCCL.
        workdir: None is the plan's; in a pod, the image's.
        activate: a shell line that puts `torchrun` on the PATH; without it the plan's full path is used.
    """

    head: str = Field(default="", pattern=r"^[\w.:\[\]-]*$")
    rdzv_port: int = Field(default=29500, ge=1, le=65535)
    job_name: str = Field(default="bge-launch", pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=40)
    time_limit: int = Field(default=24 * 60, ge=1)
    partition: str = Field(default="", pattern=r"^[\w.,-]*$")
    account: str = Field(default="", pattern=r"^[\w.-]*$")
    image: str = ""
    mounts: tuple[Mount, ...] = ()
    cpus: int | None = Field(default=None, ge=1)
    memory: int | None = Field(default=None, ge=1)
    shared_memory: int = Field(default=16, ge=1)
    workdir: Path | None = None
    activate: str = ""


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
        raise InputError(problem(e), where=path) from e
