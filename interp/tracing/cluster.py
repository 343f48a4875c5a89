"""A job in pieces over many GPUs or machines: Ray actors, each with its own copy of the model.

Workers share nothing but a folder that all of them see. Each piece is given to one worker at a time and counts as
finished when its files exist: a worker that dies is replaced, and its piece is run again.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from interp.errors import ModelError, first_line
from interp.token_positions import TraceError
from interp.vlm import LLM, VLM

__all__ = [
    "Job",
    "loading_for_workers",
    "run_job",
]

try:
    import ray
except ImportError as error:
    raise TraceError("work over several machines needs Ray: install vlm-guard[distributed]") from error

MAX_DEATHS = 3
"""Workers that may die on the same piece: more deaths than that are not the machine's fault."""


@runtime_checkable
class Job(Protocol):
    """Work in numbered pieces. The job is sent to every worker; what it loads there stays there."""

    def run_piece(self, piece: int) -> None:
        """Run one piece and write its results to the shared folder."""


class _Worker:
    """An actor in a process of its own, perhaps on another machine."""

    def __init__(self, job: Job):
        self.job = job

    def run_piece(self, piece: int) -> None:
        self.job.run_piece(piece)


def loading_for_workers(model: VLM | LLM) -> dict:
    """Return the arguments of `from_pretrained` that load the same model in another process.

    Raises:
        TraceError: the model was built by hand.
    """
    if model.loading is None:
        raise TraceError(
            f"workers can't load {model.name!r}, which was built by hand: save model and processor with "
            "save_pretrained, and load that folder with from_pretrained"
        )
    # The same dtype, but each worker on its own device; dtype `auto` could differ between a CPU and a GPU.
    loading = model.loading | {"dtype": model.model.dtype, "device": "auto"}
    if Path(loading["name_or_path"]).is_dir():
        loading["name_or_path"] = Path(loading["name_or_path"]).absolute()
    return loading


def run_job(
    job: Job,
    missing: Sequence[int],
    is_done: Callable[[int], bool],
    advance: Callable[[int], None],
    address: str,
    cpus_per_worker: int,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Run the missing pieces of a job on a Ray cluster.

    Args:
        job: sent to every worker.
        missing: numbers of the pieces, in the order in which they are handed out.
        is_done: returns whether the results of a piece exist.
        advance: called with the number of each piece that is finished.
        address: address of a Ray cluster, `auto` for the one that runs here, or `local` for workers on this machine.
        cpus_per_worker: CPUs per worker on a cluster without GPUs.
        check: called between pieces; raises to stop.

    Raises:
        TraceError: there is no such cluster, or it has no room for a worker.
        ModelError: workers die on the same piece again and again.
    """
    if not missing:
        return
    connected_here = _connect(address)
    try:
        resources = _resources_per_worker(cpus_per_worker)
        n_workers = min(_n_workers(resources), len(missing))
        _WorkerPool(job, resources, n_workers).run(missing, is_done, advance, check)
    finally:
        if connected_here:
            ray.shutdown()


def _connect(address: str) -> bool:
    """Connect to the cluster, and return False if the process was connected before.

    Raises:
        TraceError: no cluster answers.
    """
    if ray.is_initialized():
        return False
    # By default a cluster that is started here would report usage statistics to Ray's makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    kwargs = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=False, **kwargs)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise TraceError(
            f"no Ray cluster answers at {address!r} ({first_line(error)}); start one with `ray start --head`, or pass "
            "'local' for workers on this machine only"
        ) from error
    return True


def _resources_per_worker(cpus_per_worker: int) -> dict[str, int]:
    has_gpus = ray.cluster_resources().get("GPU", 0) >= 1
    return {"num_gpus": 1, "num_cpus": 1} if has_gpus else {"num_cpus": cpus_per_worker}


def _n_workers(resources: dict[str, int]) -> int:
    """Return how many workers the cluster has room for.

    Raises:
        TraceError: there is no room for a single one.
    """
    available = ray.cluster_resources()
    names = {"num_gpus": "GPU", "num_cpus": "CPU"}
    n_workers = min(int(available.get(names[kind], 0) // n) for kind, n in resources.items())
    if n_workers < 1:
        raise TraceError(f"the Ray cluster has no room for a worker, which needs {resources}; it has {available}")
    return n_workers


class _WorkerPool:
    """Workers, and the piece that each of them is running."""

    def __init__(self, job: Job, resources: dict[str, int], size: int):
        # Stored once in the cluster, not sent again with each worker.
        self._job, self._resources, self._deaths = ray.put(job), resources, Counter()
        self.idle = [self._new_worker() for _ in range(size)]
        self.running = {}

    def _new_worker(self) -> "ray.actor.ActorHandle":
        return ray.remote(_Worker).options(**self._resources, max_restarts=0).remote(self._job)

    def run(
        self,
        missing: Sequence[int],
        is_done: Callable[[int], bool],
        advance: Callable[[int], None],
        check: Callable[[], None],
    ) -> None:
        """Hand out pieces in their order until all are finished.

        Args:
            missing: numbers of the pieces.
            is_done: returns whether the results of a piece exist.
            advance: called with the number of each piece that is finished.
            check: called between pieces; raises to stop.
        """
        waiting = list(missing)[::-1]
        try:
            while waiting or self.running:
                check()
                while waiting and self.idle:
                    worker, piece = self.idle.pop(), waiting.pop()
                    self.running[worker.run_piece.remote(piece)] = (worker, piece)
                finished, _ = ray.wait(list(self.running), num_returns=1, timeout=1.0)
                for result in finished:
                    worker, piece = self.running.pop(result)
                    self.idle.append(worker if self._survived(result, piece) else self._new_worker())
                    # A worker that died may have written its whole piece before.
                    if is_done(piece):
                        advance(piece)
                    else:
                        waiting.append(piece)
        except KeyboardInterrupt:
            # No new pieces are handed out; those that are running are finished.
            if self.running:
                ray.wait(list(self.running), num_returns=len(self.running))
            raise
        finally:
            for worker in self.idle + [worker for worker, _ in self.running.values()]:
                ray.kill(worker)

    def _survived(self, result: "ray.ObjectRef", piece: int) -> bool:
        """Return False if the worker died.

        Raises:
            ModelError: too many workers have died on this piece.
        """
        try:
            ray.get(result)
        except ray.exceptions.RayTaskError as error:
            # An error of the job itself is raised here as it was raised there.
            raise error.cause from error
        except ray.exceptions.RayError as error:
            # The process was killed, its machine ran out of memory, or the machine is gone.
            self._deaths[piece] += 1
            if self._deaths[piece] >= MAX_DEATHS:
                raise ModelError(
                    f"{MAX_DEATHS} workers died on piece {piece} ({first_line(error)}); finished pieces are kept: give "
                    "each worker more memory, or less to do at a time (a smaller batch_size, in a new folder)"
                ) from error
            return False
        return True
