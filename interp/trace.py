"""Prompts to labelled activations: planned once, run batch by batch, kept in memory or in a store on disk."""

import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
import torch
import xarray as xr

from interp import families
from interp.activations import MemoryStore, Store, labelled, open_store
from interp.batches import Advance, BatchPlan
from interp.control_tokens import check_prompts
from interp.evaluation_mode import evaluation_mode
from interp.identity import prompt_record, provenance
from interp.inputs import Prompt, collate
from interp.pictures import PictureError
from interp.token_positions import ALL_TOKENS, Layers, Tokens, TraceError
from interp.tracing.forward import Remote
from interp.tracing.request import TraceRequest
from interp.tracing.runner import Runner
from interp.vlm import LLM, VLM

MAX_BATCH = {"cpu": 16}
"""Prompts in a batch, by device. A CPU is slower with larger batches, whose states don't fit into its caches."""
MAX_BATCH_ELSEWHERE = 64
MEMORY_SHARE = 0.25
"""Share of the free memory that one pass may be expected to take."""
MAX_CHUNK_BYTES = 2**30
"""Size of one layer of a batch: half of what the compressor accepts."""
STORE_DTYPES = ("float32", "float16")


class PromptsLeftOut(UserWarning):
    """Prompts whose pictures can't be read were left out on request."""


def trace(
    model: VLM | LLM,
    prompts: Sequence[Prompt],
    sites: Sequence[str] = ("resid_post",),
    tokens: Tokens = ("last",),
    layers: Layers | None = None,
    out: str | Path | None = None,
    batch_size: int | None = None,
    share_prefix: bool = True,
    dtype: str = "float32",
    skip_unreadable: bool = False,
    ray: str | None = None,
    cpus_per_worker: int = 1,
    remote: Remote = False,
    advance: Advance = lambda n_prompts: None,
) -> xr.Dataset:
    """Read the states of a model at the requested sites, tokens and layers.

    Prompts about the same picture are run together, and everything before their requests is run only once
    (`interp.tracing.prefix`). If the prefix of a family looks ahead, its prompts are run in full, with one warning.

    Args:
        model: its weights and outputs are left unchanged; in training mode, it is read in evaluation mode.
        prompts: any mixture of modalities.
        sites: of each decoder block `resid_pre`, `attn_out`, `mlp_out` (what they add to the stream) and `resid_post`;
            `vision_resid_post` of each vision block and `projector_out`, as means over all tokens of the pictures,
            including class token and padding in families that have them.
        tokens: `last`, `instruction`, `image_mean`, `text_mean`, positions as numbers (negative from the end); or
            `all`. With `all`, or with positions before the end of the picture, prompts are run in full.
        layers: decoder blocks; by default all.
        out: folder of a store. What is already in it is not run again; without it, everything is kept in memory.
        batch_size: prompts between two marks in the store, and at most in one pass; by default what fits memory.
        share_prefix: False runs every prompt in full.
        dtype: precision of the stored states, `float32` or `float16`.
        skip_unreadable: leave out prompts whose pictures can't be read, with a warning, instead of raising.
        ray: address of a Ray cluster that the batches are spread over (extra `distributed`), `auto` for the one that
            runs here, or `local` for workers on this machine only. Each worker loads the model the way this one was
            loaded, and must see the folder `out`.
        cpus_per_worker: CPUs per worker on a cluster without GPUs; otherwise each worker has its own GPU.
        remote: True runs the passes on NDIF, through nnsight. That needs an account, its key in nnsight's
            configuration, and a model that is deployed there (`nnsight.is_model_running`).
            `VLM.from_pretrained(name, device="meta")` then needs no weights here. Nothing is shared between passes.
            `local` simulates NDIF on this machine.
        advance: called with the number of prompts finished after each batch.

    Returns:
        Decoder sites have dimensions `prompt layer token d_model` (NaN where a prompt lacks a token), vision sites
        `prompt vision_layer d_vision` and `prompt d_model` (NaN without pictures). Coordinates are the labels of the
        prompts, `text harmful category pair split modality picture prompt_hash`, and `position` (`prompt token`; -1
        for means), counted from the first token of the prompt. Loaded lazily if there is a store.

    Raises:
        TraceError: no prompts, or a site, token, layer or precision does not exist.
        ModelError: prompts hold control tokens of the model; names the first.
        PictureError: pictures can't be read; names the prompts.
        StoreError: the store belongs to something else, or is damaged.
        KeyboardInterrupt: on Ctrl-C, after the current batch.
    """
    request = TraceRequest.of(model, sites, tokens, layers)
    if not prompts:
        raise TraceError("no prompts; expected at least one")
    if isinstance(model, LLM) and (n_with := sum(bool(prompt.pictures) for prompt in prompts)):
        raise TraceError(
            f"{n_with} of {len(prompts)} prompts have a picture, and {model.name!r} accepts no pictures; expected "
            "prompts of text alone"
        )
    check_prompts(model, prompts)
    if dtype not in STORE_DTYPES:
        raise TraceError(f"dtype {dtype!r}; expected one of {', '.join(STORE_DTYPES)}")
    if remote not in (True, False, "local"):
        raise TraceError(f"remote={remote!r}; expected True (NDIF), 'local' (a simulation of it) or False")
    if ray and remote:
        raise TraceError("ray and remote exclude each other; expected one of them")
    if ray and not out:
        raise TraceError("ray writes into a store that all workers see; expected a folder: out=...")
    prompts, records = _readable(prompts, skip_unreadable)
    settings = {**vars(request), "share_prefix": share_prefix, "stored_as": dtype, "remote": str(remote)}
    origin = provenance(model, settings, identify=bool(out))
    store = _store(model, request, prompts, records, origin, out, batch_size, dtype, remote)
    is_complete = all(store.has(batch) for batch in range(store.plan.n_batches))
    # A store that has everything is only read.
    writing = nullcontext() if is_complete else store.written()
    with writing, _stopping_between_batches(is_kept=bool(out)) as check, evaluation_mode(model.model):
        if ray:
            _trace_on_cluster(model, request, prompts, store, share_prefix, ray, cpus_per_worker, advance, check)
        else:
            run = Runner(model, request, store.fields, share_prefix, remote)
            for batch in range(store.plan.n_batches):
                check()
                if not store.has(batch):
                    store.write(batch, run(*store.plan.batch(batch, prompts)))
                advance(len(store.plan.rows(batch)))
        check()
    return open_store(out) if out else labelled(store.dataset(), store.plan, records, origin)


def _trace_on_cluster(*args) -> None:
    # Imported late: Ray is an extra.
    from interp.tracing.distributed import trace_on_cluster

    trace_on_cluster(*args)


def _store(
    model: VLM | LLM,
    request: TraceRequest,
    prompts: Sequence[Prompt],
    records: Sequence[Mapping],
    origin: Mapping,
    out: str | Path | None,
    batch_size: int | None,
    dtype: str,
    remote: Remote,
) -> Store | MemoryStore:
    """Return where the batches are written. A store that exists already keeps its plan."""
    if out and (store := Store.existing(out, origin, records)):
        return store
    beginnings = [record["beginning"] for record in records]
    plan = BatchPlan.of(prompts, beginnings, batch_size or _fitting_batch_size(model, prompts, request))
    fields = request.fields(model, prompts, dtype, remote)
    return Store.create(out, origin, records, plan, fields) if out else MemoryStore(fields, plan)


def _readable(prompts: Sequence[Prompt], skip: bool) -> tuple[list[Prompt], list[dict]]:
    """Open every picture before anything long begins, and return readable prompts with their records.

    Raises:
        PictureError: some can't be read and are not to be skipped, or none can be read.
    """
    readable, records, errors, digests = [], [], [], {}
    for i, prompt in enumerate(prompts):
        try:
            records.append(prompt_record(prompt, digests))
            readable.append(prompt)
        except PictureError as error:
            errors.append(f"prompt {i} ({prompt.query.text!r}): {error}")
    if errors:
        message = "\n".join(errors[:10] + [f"and {len(errors) - 10} more"] * (len(errors) > 10))
        if not readable:
            raise PictureError(f"{message}\nno prompt is left")
        if not skip:
            raise PictureError(f"{message}\nrepair the pictures, or leave these prompts out: skip_unreadable=True")
        warnings.warn(f"{len(errors)} of {len(prompts)} prompts are left out:\n{message}", PromptsLeftOut, stacklevel=3)
    return readable, records


@contextmanager
def _stopping_between_batches(is_kept: bool) -> Iterator[Callable[[], None]]:
    """Make Ctrl-C wait until the current batch is finished; a second Ctrl-C stops at once."""
    pressed, previous_handler = [], signal.getsignal(signal.SIGINT)

    def on_ctrl_c(number, frame):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    def check():
        if pressed:
            advice = "run the same trace again to resume" if is_kept else "nothing is kept without `out`"
            raise KeyboardInterrupt(f"stopped after a whole batch; {advice}")

    # Python handles signals in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    signal.signal(signal.SIGINT, on_ctrl_c)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, previous_handler)


def _fitting_batch_size(model: VLM | LLM, prompts: Sequence[Prompt], request: TraceRequest) -> int:
    """Return a batch size, a power of 2, that leaves most of the free memory free.

    It is an estimate: the runner halves a pass that runs out of memory all the same.
    """
    longest = max(prompts, key=lambda prompt: (len(prompt.pictures), prompt.n_characters))
    n_tokens, config = collate(model, [longest])["input_ids"].shape[1], model.model.config.get_text_config()
    # Numbers per token: residual stream, queries, keys, values, both sides of the MLP; some for the vision tower.
    widest = 12 * config.hidden_size + 4 * families.largest(config, "intermediate_size", 4 * config.hidden_size)
    n_read = n_tokens if request.tokens == ALL_TOKENS else len(request.tokens)
    chunk = n_read * model.d_model * 4
    # States that are read exist five times: on the device, copied, stacked, in the requested order, and being written.
    kept = 5 * len(request.sites) * len(request.layers) * chunk
    per_prompt = 2 * n_tokens * widest * model.model.dtype.itemsize + kept
    fits = max(1, int(min(MEMORY_SHARE * _free_memory(model.device) / per_prompt, MAX_CHUNK_BYTES / chunk)))
    return min(MAX_BATCH.get(model.device.type, MAX_BATCH_ELSEWHERE), 2 ** (fits.bit_length() - 1))


def _free_memory(device: torch.device) -> int:
    """Return the free memory in bytes, including what torch has reserved and would use first."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserved
