"""One trace over many GPUs or machines: workers write batches of one store."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from interp.activations import Store, StoreError, weights_identity
from interp.inputs import Prompt
from interp.tracing import cluster
from interp.tracing.prefix import shares_prefixes
from interp.tracing.request import TraceRequest
from interp.tracing.runner import Runner
from interp.vlm import LLM, VLM


@dataclass(frozen=True)
class _TraceJob:
    """What every worker is given."""

    kind: type[VLM | LLM]
    loading: dict
    """What `from_pretrained` was told."""
    wanted: TraceRequest
    prompts: Sequence[Prompt]
    folder: str
    share_prefix: bool

    @cached_property
    def _store(self) -> Store:
        return Store(Path(self.folder))

    @cached_property
    def _run(self) -> Runner:
        model, theirs = self.kind.from_pretrained(**self.loading), self._store.header["about"]["weights"]
        if weights_identity(model) != theirs:
            raise StoreError(
                f"a worker loaded other weights ({weights_identity(model)}) than the store is made from ({theirs}); "
                "every machine must see the same checkpoint"
            )
        return Runner(model, self.wanted, self._store.fields, self.share_prefix)

    def do(self, batch: int) -> None:
        """Loads the model before the first batch: what goes wrong there is told like everything else."""
        self._store.write(batch, self._run(*self._store.plan.batch(batch, self.prompts)))


def spread(
    model: VLM | LLM,
    wanted: TraceRequest,
    prompts: Sequence[Prompt],
    store: Store,
    share_prefix: bool,
    address: str,
    cpus_per_worker: int,
    advance: Callable[[int], None],
    check: Callable[[], None],
) -> None:
    """Every batch that the store lacks, in the order of the plan: neighbouring batches share their prefixes.

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
    loading = cluster.loading_elsewhere(model)
    done = lambda batch: advance(len(store.plan.rows(batch)))  # noqa: E731
    missing = [batch for batch in range(store.plan.n_batches) if not store.has(batch)]
    for batch in set(range(store.plan.n_batches)) - set(missing):
        done(batch)
    if missing and share_prefix and any(store.plan.keys):
        shares_prefixes(model)  # a warning of a worker would be seen by nobody
    job = _TraceJob(type(model), loading, wanted, prompts, str(store.folder.absolute()), share_prefix)
    cluster.work(job, missing, store.has, done, address, cpus_per_worker, check)
