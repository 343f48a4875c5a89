"""Prompts -> labelled activations: planned once, run batch by batch, kept in memory or in a store on disk."""

import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
import xarray as xr

from interp.activations import Memory, Store, labelled, open_store, prompt_record, provenance
from interp.batches import BatchPlan
from interp.inputs import Prompt, collate
from interp.pictures import PictureError
from interp.token_positions import ALL, Layers, Tokens, TraceError
from interp.tracing.forward import Remote
from interp.tracing.request import TraceRequest
from interp.tracing.runner import Runner
from interp.vlm import LLM, VLM

LARGEST_BATCH = {"cpu": 16}
"""Prompts. A CPU is slower with more of them, whose states don't fit into its caches."""
LARGEST_ELSEWHERE = 64
MEMORY_SHARE = 0.25
"""Of the memory that is free: what one pass may be expected to take."""
LARGEST_CHUNK = 2**30
"""Bytes of a batch of one layer: half of what the compressor takes."""
STORE_DTYPES = ("float32", "float16")

Advance = Callable[[int], None]


class PromptsLeftOut(UserWarning):
    """Prompts whose pictures can't be read, left out on request."""


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
    """States of the model at the sites, tokens and layers asked for.

    Prompts about the same picture are run together, and all that stands before their requests once (`interp.tracing.prefix`).
    Where the prefix of a family looks ahead, they are run in full, and a warning says so once.

    Args:
        model: its weights and outputs are left alone.
        prompts: any mixture of modalities.
        sites: of each decoder block `resid_pre`, `attn_out`, `mlp_out` (what they add to the stream) and `resid_post`;
            `vision_resid_post` of each vision block and `projector_out`, as means over all tokens of the pictures, a
            class token and padding of a family that has them included.
        tokens: `last`, `instruction`, `image_mean`, `text_mean`, places as numbers (negative from the end); or `all`.
            Prompts of which places before the end of the picture are read, or all, run in full.
        layers: decoder blocks; by default every one.
        out: folder of a store. What is already in it is not run again; without it, everything is kept in memory.
        batch_size: prompts between two marks in the store, and at most in one pass; by default what fits memory.
        share_prefix: False runs every prompt in full.
        dtype: of what is kept; `float32` or `float16`.
        skip_unreadable: leaves prompts out whose pictures can't be read, with a warning; else they are an error.
        ray: spreads the batches over the machines of a Ray cluster (extra `distributed`): its address, `auto` for the
            one that runs here, or `local` for workers on this machine alone. Each loads the model for itself, as this
            one was loaded. All of them must see the folder `out`.
        cpus_per_worker: of a cluster without GPUs; otherwise each worker has a GPU of its own.
        remote: True runs the passes on NDIF, through nnsight: with an account, its key in nnsight's configuration,
            and a model that is deployed there (`nnsight.is_model_running`). `VLM.from_pretrained(name, device="meta")`
            then needs no weights here. Nothing is shared between passes. `local` simulates that on this machine.
        advance: called with the number of prompts done after each batch.

    Returns:
        Decoder sites with dimensions `prompt layer token d_model` (NaN where a prompt has no such token), vision sites
        `prompt vision_layer d_vision` and `prompt d_model` (NaN without pictures), and coordinates for what is known of
        each prompt: `text harmful category pair split modality picture prompt_hash`, and `position` (`prompt token`;
        -1 for means), counted from the first token of the prompt. Loaded lazily where there is a store.

    Raises:
        TraceError: no prompts, or a site, token, layer or precision that does not exist.
        PictureError: pictures that can't be read; says of which prompts.
        StoreError: the store belongs to something else, or is damaged.
        KeyboardInterrupt: on Ctrl-C, after the current batch.
    """
    wanted = TraceRequest.of(model, sites, tokens, layers)
    if not prompts:
        raise TraceError("no prompts; expected at least one")
    if dtype not in STORE_DTYPES:
        raise TraceError(f"dtype {dtype!r}; expected one of {', '.join(STORE_DTYPES)}")
    if remote not in (True, False, "local"):
        raise TraceError(f"remote={remote!r}; expected True (NDIF), 'local' (a simulation of it) or False")
    if ray and remote:
        raise TraceError("ray and remote exclude each other; expected one of them")
    if ray and not out:
        raise TraceError("ray writes into a store that all workers see; expected a folder: out=...")
    prompts, known = _readable(prompts, skip_unreadable)
    asked = {**vars(wanted), "share_prefix": share_prefix, "stored_as": dtype, "remote": str(remote)}
    about = provenance(model, asked, identify=bool(out))
    sink = _sink(model, wanted, prompts, known, about, out, batch_size, dtype, remote)
    with _stopping_between_batches(is_kept=bool(out)) as check:
        if ray:
            _spread(model, wanted, prompts, sink, share_prefix, ray, cpus_per_worker, advance, check)
        else:
            run = Runner(model, wanted, sink.fields, share_prefix, remote)
            for batch in range(sink.plan.n_batches):
                check()
                if not sink.has(batch):
                    sink.write(batch, run(*sink.plan.batch(batch, prompts)))
                advance(len(sink.plan.rows(batch)))
        check()
    return open_store(out) if out else labelled(sink.dataset(), sink.plan, known, about)


def _spread(*args) -> None:
    """Imported late: Ray is an extra."""
    from interp.tracing.distributed import spread

    spread(*args)


def _sink(
    model: VLM | LLM,
    wanted: TraceRequest,
    prompts: Sequence[Prompt],
    known: Sequence[Mapping],
    about: Mapping,
    out: str | Path | None,
    batch_size: int | None,
    dtype: str,
    remote: Remote,
) -> Store | Memory:
    """Where batches go. A store that is already there keeps its plan."""
    if out and (found := Store.found(out, about, known)):
        return found
    plan = BatchPlan.of(prompts, [one["beginning"] for one in known], batch_size or _fitting(model, prompts, wanted))
    fields = wanted.fields(model, prompts, dtype, remote)
    return Store.create(out, about, known, plan, fields) if out else Memory(fields, plan)


def _readable(prompts: Sequence[Prompt], skip: bool) -> tuple[list[Prompt], list[dict]]:
    """Every picture is looked at before anything long begins.

    Raises:
        PictureError: some can't be read, and are not to be skipped.
    """
    kept, known, errors, seen = [], [], [], {}
    for i, prompt in enumerate(prompts):
        try:
            known.append(prompt_record(prompt, seen))
            kept.append(prompt)
        except PictureError as error:
            errors.append(f"prompt {i} ({prompt.query.text!r}): {error}")
    if errors:
        told = "\n".join(errors[:10] + [f"and {len(errors) - 10} more"] * (len(errors) > 10))
        if not kept:
            raise PictureError(f"{told}\nno prompt is left")
        if not skip:
            raise PictureError(f"{told}\nmend them, or leave these prompts out: skip_unreadable=True")
        warnings.warn(f"{len(errors)} of {len(prompts)} prompts are left out:\n{told}", PromptsLeftOut, stacklevel=3)
    return kept, known


@contextmanager
def _stopping_between_batches(is_kept: bool) -> Iterator[Callable[[], None]]:
    """Ctrl-C waits for the batch that is running; a second one does not."""
    pressed, before = [], signal.getsignal(signal.SIGINT)

    def take_note(number, frame):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    def check():
        if pressed:
            what = "run the same trace again to go on from there" if is_kept else "nothing is kept without `out`"
            raise KeyboardInterrupt(f"stopped after a whole batch; {what}")

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    signal.signal(signal.SIGINT, take_note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def _fitting(model: VLM | LLM, prompts: Sequence[Prompt], wanted: TraceRequest) -> int:
    """A batch size that leaves most of the free memory free: half of it again where a pass runs out all the same."""
    longest = max(prompts, key=lambda prompt: (len(prompt.pictures), len(prompt.text) + len(prompt.system)))
    n_tokens, config = collate(model, [longest])["input_ids"].shape[1], model.model.config.get_text_config()
    # Residual stream, queries, keys, values and both sides of the MLP, with room for what the vision tower needs.
    widest = 12 * config.hidden_size + 4 * getattr(config, "intermediate_size", 4 * config.hidden_size)
    n_read = n_tokens if wanted.tokens == ALL else len(wanted.tokens)
    chunk = n_read * model.d_model * 4
    # What is read is there several times: on the device, stacked, in the order asked for, and being written.
    per_prompt = 2 * n_tokens * widest * model.model.dtype.itemsize + 5 * len(wanted.sites) * len(wanted.layers) * chunk
    fits = max(1, int(min(MEMORY_SHARE * _free_memory(model.device) / per_prompt, LARGEST_CHUNK / chunk)))
    return min(LARGEST_BATCH.get(model.device.type, LARGEST_ELSEWHERE), 2 ** (fits.bit_length() - 1))


def _free_memory(device: torch.device) -> int:
    """With what torch keeps for itself, and would use first."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept
