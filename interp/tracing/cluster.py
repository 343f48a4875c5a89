"""Work in pieces over many GPUs or machines: Ray actors, each with a model of its own.

A folder that all of them see is the only thing that they share. A piece belongs to one worker at a time, and counts
when it is there: a worker that dies is replaced, and its piece done again.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from interp.families import ModelError, first_line
from interp.token_positions import TraceError
from interp.vlm import LLM, VLM

try:
    import ray
except ImportError as error:
    raise TraceError("work over several machines needs Ray: install vlm-guard[distributed]") from error

MOST_DEATHS = 3
"""Of workers over the same piece. After that it is not the machine's fault."""


@runtime_checkable
class Job(Protocol):
    """Sent to every worker; what it makes there stays there."""

    def do(self, piece: int) -> None:
        """Does one piece, and leaves it where `is_done` finds it."""


class _Worker:
    """Lives in a process of its own, perhaps on another machine."""

    def __init__(self, job: Job):
        self.job = job

    def do(self, piece: int) -> None:
        self.job.do(piece)


def loading_elsewhere(model: VLM | LLM) -> dict:
    """What `from_pretrained` needs to make the same model again in another process.

    Raises:
        TraceError: a model that was made by hand.
    """
    if model.loading is None:
        raise TraceError(
            f"workers can't load {model.name!r}, made by hand: save model and processor with save_pretrained, "
            "and load that folder with from_pretrained"
        )
    # As here, but each on a device of its own; `auto` would be float32 on a CPU and something else on a GPU.
    loading = model.loading | {"dtype": model.model.dtype, "device": "auto"}
    if Path(loading["name_or_path"]).is_dir():
        loading["name_or_path"] = Path(loading["name_or_path"]).absolute()
    return loading


def work(
    job: Job,
    missing: Sequence[int],
    is_done: Callable[[int], bool],
    advance: Callable[[int], None],
    address: str,
    cpus_per_worker: int,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Every piece that is missing.

    Args:
        job: what a worker does.
        missing: numbers of pieces, in the order that they are handed out in.
        is_done: whether a piece is there.
        advance: called with each piece when it is.
        address: of a Ray cluster, `auto`, or `local`.
        cpus_per_worker: where the cluster has no GPUs.
        check: called between pieces; raises to stop.

    Raises:
        TraceError: no such cluster, or no room in it for a worker.
        ModelError: workers die over the same piece again and again.
    """
    if not missing:
        return
    is_ours = _connect(address)
    try:
        needs = _needs(cpus_per_worker)
        _Crew(job, needs, min(_room(needs), len(missing))).work(missing, is_done, advance, check)
    finally:
        if is_ours:
            ray.shutdown()


def _connect(address: str) -> bool:
    """Whether the connection was made here.

    Raises:
        TraceError: nothing answers.
    """
    if ray.is_initialized():
        return False
    # Ray reports on a cluster that it starts to its makers, unless told otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    alone = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=False, **alone)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise TraceError(
            f"no Ray cluster answers at {address!r} ({first_line(error)}); start one with `ray start --head`, or give "
            "'local' for workers on this machine alone"
        ) from error
    return True


def _needs(cpus_per_worker: int) -> dict[str, int]:
    """Of one worker."""
    has_gpus = ray.cluster_resources().get("GPU", 0) >= 1
    return {"num_gpus": 1, "num_cpus": 1} if has_gpus else {"num_cpus": cpus_per_worker}


def _room(needs: dict[str, int]) -> int:
    """How many workers the cluster holds.

    Raises:
        TraceError: none.
    """
    there = ray.cluster_resources()
    n = min(int(there.get(name.removeprefix("num_").removesuffix("s").upper(), 0) // n) for name, n in needs.items())
    if n < 1:
        raise TraceError(f"the Ray cluster has no room for a worker, which needs {needs}; it has {there}")
    return n


class _Crew:
    """Workers, and what each of them is at."""

    def __init__(self, job: Job, needs: dict[str, int], size: int):
        self._job, self._deaths = ray.put(job), Counter()
        self._hire = lambda: ray.remote(_Worker).options(**needs, max_restarts=0).remote(self._job)
        self.idle = [self._hire() for _ in range(size)]
        self.at_work = {}

    def work(
        self,
        missing: Sequence[int],
        is_done: Callable[[int], bool],
        advance: Callable[[int], None],
        check: Callable[[], None],
    ) -> None:
        """In their order."""
        waiting = list(missing)[::-1]
        try:
            while waiting or self.at_work:
                check()
                while waiting and self.idle:
                    worker, piece = self.idle.pop(), waiting.pop()
                    self.at_work[worker.do.remote(piece)] = (worker, piece)
                finished, _ = ray.wait(list(self.at_work), num_returns=1, timeout=1.0)
                for result in finished:
                    worker, piece = self.at_work.pop(result)
                    self.idle.append(worker if self._lives(result, piece) else self._hire())
                    # One that dies may have written all of its piece before.
                    if is_done(piece):
                        advance(piece)
                    else:
                        waiting.append(piece)
        except KeyboardInterrupt:
            # Nothing new is handed out; what is begun is finished.
            if self.at_work:
                ray.wait(list(self.at_work), num_returns=len(self.at_work))
            raise
        finally:
            for worker in self.idle + [worker for worker, _ in self.at_work.values()]:
                ray.kill(worker)

    def _lives(self, result: "ray.ObjectRef", piece: int) -> bool:
        """False where the worker died.

        Raises:
            ModelError: not the first time over this piece.
        """
        try:
            ray.get(result)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            # The process was killed, the memory of its machine ran out, or the machine is gone.
            self._deaths[piece] += 1
            if self._deaths[piece] >= MOST_DEATHS:
                raise ModelError(
                    f"{MOST_DEATHS} workers died over piece {piece} ({first_line(error)}); what is done is kept: give "
                    "each worker more memory, or less to do at once (of a trace a smaller batch_size, in a new folder)"
                ) from error
            return False
        return True
