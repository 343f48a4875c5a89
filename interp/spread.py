"""One trace over many GPUs or machines: Ray actors, each with a model of its own, write batches of one store.

The store is the only thing that they share. A batch belongs to one worker at a time, and counts when its mark is there:
a worker that dies is replaced, and its batch done again.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from interp.activations import Store, StoreError, weights_identity
from interp.families import ModelError, first_line
from interp.inputs import Prompt
from interp.prefix import shares_prefixes
from interp.running import Runner, Wanted
from interp.spots import TraceError
from interp.vlm import LLM, VLM

try:
    import ray
except ImportError as error:
    raise TraceError("tracing over several machines needs Ray: install vlm-guard[distributed]") from error

MOST_DEATHS = 3
"""Of workers over the same batch. After that it is not the machine's fault."""


@dataclass(frozen=True)
class _Job:
    """What every worker is given."""

    kind: type[VLM | LLM]
    loading: dict
    """What `from_pretrained` was told."""
    wanted: Wanted
    prompts: Sequence[Prompt]
    folder: str
    share_prefix: bool


class _Worker:
    """Lives in a process of its own, perhaps on another machine."""

    def __init__(self, job: _Job):
        self.job = job

    @cached_property
    def _store(self) -> Store:
        return Store(Path(self.job.folder))

    @cached_property
    def _run(self) -> Runner:
        model, theirs = self.job.kind.from_pretrained(**self.job.loading), self._store.header["about"]["weights"]
        if weights_identity(model) != theirs:
            raise StoreError(
                f"a worker loaded other weights ({weights_identity(model)}) than the store is made from ({theirs}); "
                "every machine must see the same checkpoint"
            )
        return Runner(model, self.job.wanted, self._store.fields, self.job.share_prefix)

    def do(self, batch: int) -> None:
        """Loads the model before the first batch: what goes wrong there is told like everything else."""
        self._store.write(batch, self._run(*self._store.plan.batch(batch, self.job.prompts)))


def spread(
    model: VLM | LLM,
    wanted: Wanted,
    prompts: Sequence[Prompt],
    store: Store,
    share_prefix: bool,
    address: str,
    cpus_per_worker: int,
    advance: Callable[[int], None],
    check: Callable[[], None],
) -> None:
    """Every batch that the store lacks.

    Args:
        model: loaded by each worker as it was loaded here.
        wanted, prompts, store, share_prefix: of `interp.trace`.
        address: of a Ray cluster, `auto`, or `local`.
        cpus_per_worker: where the cluster has no GPUs.
        advance: called with the number of prompts done after each batch.
        check: called between batches; raises to stop.

    Raises:
        TraceError: a model that was made by hand, no such cluster, or no room in it for a worker.
        ModelError: workers die over the same batch again and again.
    """
    if model.loading is None:
        raise TraceError(
            f"workers can't load {model.name!r}, made by hand: save model and processor with save_pretrained, "
            "and load that folder with from_pretrained"
        )
    missing = []
    for batch in range(store.plan.n_batches):
        if store.has(batch):
            advance(len(store.plan.rows(batch)))
        else:
            missing.append(batch)
    if not missing:
        return
    is_ours = _connect(address)
    try:
        needs = _needs(cpus_per_worker)
        folder = str(store.folder.absolute())
        # As here, but each on a device of its own; `auto` would be float32 on a CPU and something else on a GPU.
        loading = model.loading | {"dtype": model.model.dtype, "device": "auto"}
        if Path(loading["name_or_path"]).is_dir():
            loading["name_or_path"] = Path(loading["name_or_path"]).absolute()
        if share_prefix and any(store.plan.keys):
            shares_prefixes(model)  # a warning of a worker would be seen by nobody
        job = _Job(type(model), loading, wanted, prompts, folder, share_prefix)
        _Crew(job, needs, min(_room(needs), len(missing))).work(missing, store, advance, check)
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

    def __init__(self, job: _Job, needs: dict[str, int], size: int):
        self._job, self._deaths = ray.put(job), Counter()
        self._hire = lambda: ray.remote(_Worker).options(**needs, max_restarts=0).remote(self._job)
        self.idle = [self._hire() for _ in range(size)]
        self.at_work = {}

    def work(self, missing: list[int], store: Store, advance: Callable[[int], None], check: Callable[[], None]) -> None:
        """In the order of the plan: neighbouring batches share their prefixes."""
        waiting = missing[::-1]
        try:
            while waiting or self.at_work:
                check()
                while waiting and self.idle:
                    worker, batch = self.idle.pop(), waiting.pop()
                    self.at_work[worker.do.remote(batch)] = (worker, batch)
                finished, _ = ray.wait(list(self.at_work), num_returns=1, timeout=1.0)
                for result in finished:
                    worker, batch = self.at_work.pop(result)
                    self.idle.append(worker if self._lives(result, batch) else self._hire())
                    # One that dies may have written all of its batch before.
                    if store.has(batch):
                        advance(len(store.plan.rows(batch)))
                    else:
                        waiting.append(batch)
        except KeyboardInterrupt:
            # Nothing new is handed out; what is begun is finished.
            if self.at_work:
                ray.wait(list(self.at_work), num_returns=len(self.at_work))
            raise
        finally:
            for worker in self.idle + [worker for worker, _ in self.at_work.values()]:
                ray.kill(worker)

    def _lives(self, result: "ray.ObjectRef", batch: int) -> bool:
        """False where the worker died.

        Raises:
            ModelError: not the first time over this batch.
        """
        try:
            ray.get(result)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            # The process was killed, the memory of its machine ran out, or the machine is gone.
            self._deaths[batch] += 1
            if self._deaths[batch] >= MOST_DEATHS:
                raise ModelError(
                    f"{MOST_DEATHS} workers died over batch {batch} ({first_line(error)}); what is done is kept: try "
                    "a smaller batch_size in a new folder"
                ) from error
            return False
        return True
