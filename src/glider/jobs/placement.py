"""The user's options of where jobs run. Imports neither torch nor Ray, so that the command line is instant."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from glider.config import Config
from glider.errors import ConfigError


class Placement(Config):
    """The executor and its options. All but `workers` are for a cluster."""

    executor: Literal["local", "ray"] = Field("local", description="Where jobs run: local, ray.")
    workers: int | None = Field(
        None, ge=1, description="Jobs at a time. Default: 1; on a cluster as many as there is room for."
    )
    address: str | None = Field(
        None, description="Of the Ray cluster: auto, HOST:6379, local. Default: what Ray finds, or a new one here."
    )
    cpus_per_job: float | None = Field(None, gt=0, description="CPUs of a job on a cluster, and its threads (1).")
    gpus_per_job: float | None = Field(None, ge=0, description="GPUs of a job on a cluster (0).")
    files: Literal["store", "path"] | None = Field(
        None, description="Files of jobs on a cluster: sent to nodes (store), or at a path that all can read (path)."
    )
    checkpoint_steps: int | None = Field(
        None, ge=1, description="Training steps between checkpoints that come back from a cluster (100, or 2 minutes)."
    )
    autoscaling: bool = Field(False, description="The cluster gets nodes when jobs wait for them.")

    def make(self, *, keep: bool = False) -> Any:
        """The executor; on a cluster, with `keep`, of actors that keep their base model.

        Raises `ConfigError` for options of a cluster without one, and `MissingDependency` without Ray.
        """
        options = {
            "address": self.address,
            "cpus": self.cpus_per_job,
            "gpus": self.gpus_per_job,
            "files": self.files,
            "save_steps": self.checkpoint_steps,
            "autoscaling": self.autoscaling or None,
        }
        options = {name: value for name, value in options.items() if value is not None}
        if self.executor == "local":
            from glider.jobs.local import LocalExecutor

            if options:
                got = f"{', '.join(options)} without it"
                raise ConfigError("options of a cluster with --executor ray", got, "Say --executor ray.")
            return LocalExecutor(self.workers or 1)
        from glider.jobs.ray_cluster import require_ray

        require_ray()
        from glider.jobs.ray_executor import RayExecutor

        return RayExecutor(workers=self.workers, keep=keep, **options)

    def session(self, packages: Sequence[Path] = ()) -> AbstractContextManager[Any]:
        """A context that keeps the connection to a cluster over several runs; `packages` are sent along to be imported
        there."""
        if self.executor == "local":
            return nullcontext()
        from glider.jobs.ray_cluster import connected

        return connected(self.address, packages)
