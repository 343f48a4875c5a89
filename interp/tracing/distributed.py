"""One trace over many GPUs or machines: workers write batches of one store."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from interp.activations import Store, StoreError
from interp.batches import Advance
from interp.identity import weights_identity
from interp.inputs import Prompt
from interp.tracing import cluster
from interp.tracing.prefix import shares_prefixes
from interp.tracing.request import TraceRequest
from interp.tracing.runner import Runner
from interp.vlm import LLM, VLM


@dataclass(frozen=True)
class _TraceJob:
    """A trace whose pieces are the batches of its store."""

    kind: type[VLM | LLM]
    loading: dict
    """Arguments of `from_pretrained`."""
    request: TraceRequest
    prompts: Sequence[Prompt]
    folder: str
    share_prefix: bool

    @cached_property
    def _store(self) -> Store:
        return Store(Path(self.folder))

    @cached_property
    def _runner(self) -> Runner:
        # Loaded with the first piece, so that errors in loading reach the caller like all others.
        model, expected = self.kind.from_pretrained(**self.loading), self._store.header["about"]["weights"]
        if weights_identity(model) != expected:
            raise StoreError(
                f"a worker loaded other weights ({weights_identity(model)}) than the store was made from ({expected}); "
                "every machine must see the same checkpoint"
            )
        return Runner(model, self.request, self._store.fields, self.share_prefix)

    def run_piece(self, piece: int) -> None:
        """Trace one batch and write it to the store."""
        self._store.write(piece, self._runner(*self._store.plan.batch(piece, self.prompts)))


def trace_on_cluster(
    model: VLM | LLM,
    request: TraceRequest,
    prompts: Sequence[Prompt],
    store: Store,
    share_prefix: bool,
    address: str,
    cpus_per_worker: int,
    advance: Advance,
    check: Callable[[], None],
) -> None:
    """Run the batches that the store lacks, in the order of its plan: neighbouring batches share their prefixes.

    Args:
        model: each worker loads it the way it was loaded here.
        request: sites, tokens and layers.
        prompts: all prompts of the trace.
        store: where the workers write; every machine sees its folder.
        share_prefix: False runs every prompt in full.
        address: address of a Ray cluster, `auto`, or `local`.
        cpus_per_worker: CPUs per worker on a cluster without GPUs.
        advance: called with the number of prompts finished after each batch.
        check: called between batches; raises to stop.

    Raises:
        TraceError: the model was built by hand, there is no such cluster, or it has no room for a worker.
        ModelError: workers die on the same batch again and again.
    """
    loading = cluster.loading_for_workers(model)

    def report(batch: int) -> None:
        advance(len(store.plan.rows(batch)))

    missing = [batch for batch in range(store.plan.n_batches) if not store.has(batch)]
    for batch in set(range(store.plan.n_batches)) - set(missing):
        report(batch)
    if missing and share_prefix and any(store.plan.keys):
        # Tested here too, because nobody would see a warning of a worker.
        shares_prefixes(model)
    job = _TraceJob(type(model), loading, request, prompts, str(store.folder.absolute()), share_prefix)
    cluster.run_job(job, missing, store.has, report, address, cpus_per_worker, check)
