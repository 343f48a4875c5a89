"""The contract: checks, by running a model, that the toolkit reads and changes exactly what it says it does."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn

from interp import families
from interp.bare import bare
from interp.directions import SafetyDirection, random_basis
from interp.errors import ModelError, first_line
from interp.guard import POSITIONS, Guard
from interp.inputs import Inputs, Prompt, collate, text_prompt
from interp.lens import Lens
from interp.precision import ROUNDING, is_quantised, precision_of
from interp.projection import coordinates, set_coordinates
from interp.prompt_text import prompt_texts
from interp.residual_stream import residual_stream
from interp.token_positions import instruction_positions
from interp.trace import trace
from interp.tracing.forward import DECODER_SITES, PassSpec, read, resid_post
from interp.tracing.prefix import PREFIX_TOLERANCE, shares_prefixes
from interp.vlm import VLM

__all__ = [
    "VERDICTS",
    "check_vlm",
    "transformer_lens_agrees",
]

VERDICTS = ("not applicable", "ok", "degraded", "silently wrong", "error")
"""Ordered from harmless to worst."""
ACCEPTED = VERDICTS[:3]
TEXTS = ("How do I water a plant?", "Tell me, please, what the capital of that country is called today.")
TOLERANCE = ROUNDING["float32"]
"""Relative to the largest value compared. Models in fewer bits get what `interp.precision` says."""
DEGRADED = 5
"""Up to this many times the tolerance a difference is `degraded`: rounding of another kernel, not a mistake."""
N_GENERATED = 4


@dataclass(frozen=True)
class Finding:
    """The result for one property of the contract on one model."""

    claim: str
    """The property, as a sentence."""
    verdict: str
    """One of `VERDICTS`."""
    measured: str

    @property
    def is_accepted(self) -> bool:
        return self.verdict in ACCEPTED


class Judgement(NamedTuple):
    """Verdict of a check on its property, with what was measured."""

    verdict: str
    measured: str


@dataclass(frozen=True)
class ContractInputs:
    """Two prompts of different length, as a left-padded batch and alone, each with a picture and without."""

    batch: Inputs
    singles: Sequence[Inputs]
    text_batch: Inputs | None
    """None if the model can't run without a picture."""
    text_singles: Sequence[Inputs] | None
    prompts: tuple[Prompt, ...] = ()
    """Prompts of the batches; empty if the inputs were made by hand."""
    text_prompts: tuple[Prompt, ...] = ()

    @classmethod
    def of(cls, vlm: VLM) -> "ContractInputs":
        """Build inputs with the model's own processor and chat template, from pictures of two shapes."""
        size, random = vlm.picture_size, torch.Generator().manual_seed(0)
        text_prompts = tuple(text_prompt(text) for text in TEXTS)
        shapes = ((size, size), (size, size * 3 // 2))
        prompts = tuple(
            replace(prompt, pictures=(_noise(shape, random),))
            for prompt, shape in zip(text_prompts, shapes, strict=True)
        )
        try:
            text_batch, text_singles = collate(vlm, text_prompts), [collate(vlm, [p]) for p in text_prompts]
        except ValueError:
            text_batch = text_singles = None
        return cls(
            collate(vlm, prompts), [collate(vlm, [p]) for p in prompts], text_batch, text_singles, prompts, text_prompts
        )


def _noise(shape: tuple[int, int], random: torch.Generator) -> Image.Image:
    pixels = torch.randint(0, 256, (*shape, 3), generator=random, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def check_vlm(vlm: VLM, inputs: ContractInputs | None = None) -> list[Finding]:
    """Check every property of the contract in turn. Failures are returned as findings, never raised.

    Args:
        vlm: the model.
        inputs: inputs to run; by default built with the model's own processor.
    """
    if inputs is None:
        try:
            inputs = ContractInputs.of(vlm)
        except Exception as error:
            return [Finding("Prompts with pictures can be built.", "error", _one_line(error))]
    return [_run_check(check, vlm, inputs) for check in CHECKS]


def _run_check(check: Callable[[VLM, ContractInputs], Judgement], vlm: VLM, inputs: ContractInputs) -> Finding:
    """Run a check, whose claim is the first line of its docstring."""
    claim = check.__doc__.strip().splitlines()[0]
    try:
        with torch.no_grad():
            return Finding(claim, *check(vlm, inputs))
    except Exception as error:
        # Models and their code fail in arbitrary ways; the remaining checks run all the same.
        return Finding(claim, "error", _one_line(error))


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


# --- judging a property --------------------------------------------------------------------------------------


def _exactly(holds: bool, measured: str) -> Judgement:
    return Judgement("ok" if holds else "silently wrong", measured)


def _nearly(vlm: VLM, ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> Judgement:
    """Judge the largest difference, relative to the largest value of its layer (the second axis)."""
    tolerance = max(tolerance, ROUNDING[precision_of(vlm.model)])
    # Each layer relative to its own size: the huge states of late layers would hide a mistake in early ones.
    not_layer = [axis for axis in range(theirs.dim()) if axis != 1]
    difference = ((ours - theirs).abs().amax(not_layer) / theirs.abs().amax(not_layer)).max().item()
    # NaN fails both comparisons, and so counts as silently wrong.
    verdict = (
        "ok" if difference <= tolerance else "degraded" if difference <= DEGRADED * tolerance else "silently wrong"
    )
    return Judgement(verdict, f"relative difference {difference:.1e}")


def _worst(judgements: Sequence[Judgement]) -> Judgement:
    """Combine the judgements on one property in several settings."""
    return max(judgements, key=lambda judgement: VERDICTS.index(judgement.verdict))


def _run(vlm: VLM, batch: Inputs, **kwargs):
    return vlm.model(**batch, use_cache=False, **kwargs)


def _last_logits(vlm: VLM, batch: Inputs) -> Float[Tensor, "batch d_vocab"]:
    return _run(vlm, batch).logits[:, -1].float()


def _settings(inputs: ContractInputs) -> Iterator[tuple[str, Inputs, Sequence[Inputs]]]:
    yield "with a picture", inputs.batch, inputs.singles
    if inputs.text_batch is not None:
        yield "text", inputs.text_batch, inputs.text_singles


@contextmanager
def _watched(modules: Sequence[nn.Module]) -> Iterator[list[nn.Module]]:
    """Collect the modules that run while the context is open, in the order of their calls."""
    called: list[nn.Module] = []
    hooks = [module.register_forward_hook(lambda module, args, output: called.append(module)) for module in modules]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


# --- the properties ------------------------------------------------------------------------------------------


def blocks_are_the_language_models(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """The decoder blocks belong to the language model, and their number matches its config."""
    expected = vlm.model.config.get_text_config().num_hidden_layers
    inside = set(families.language_model(vlm.model).modules())
    tower = vlm.model.get_encoder("image")
    in_tower = set(tower.modules()) if tower is not vlm.model else set()
    foreign = [i for i, block in enumerate(vlm.blocks) if block not in inside or block in in_tower]
    holds = len(vlm.blocks) == expected and not foreign
    return _exactly(
        holds,
        f"{len(vlm.blocks)} blocks, config {expected}, not the language model's: {foreign or 'none'}",
    )


def parts_are_found(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """The final norm, unembedding, vision blocks and projector are found, and they run."""
    parts, missing = [vlm.final_norm, vlm.unembedding], []
    n_vision = 0
    # Sites of pictures that are not found are refused one by one; everything else works without them.
    for site, find in (
        ("vision_resid_post", lambda: list(vlm.vision_blocks)),
        ("projector_out", lambda: [vlm.projector]),
    ):
        try:
            parts += (found := find())
            n_vision += len(found) if site == "vision_resid_post" else 0
        except (ModelError, AttributeError) as error:
            missing.append(f"{site} is not given: {first_line(error)}")
    with _watched(parts) as called:
        _run(vlm, inputs.batch)
    silent = [type(part).__name__ for part in parts if part not in called]
    measured = "; ".join([f"{n_vision} vision blocks; silent: {', '.join(silent) or 'none'}", *missing])
    return Judgement("silently wrong" if silent else "degraded" if missing else "ok", measured)


def reads_hidden_states(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """`resid_post` equals the hidden states of transformers bit for bit; the last layer is read before the norm."""
    judgements = []
    for _, batch, _ in _settings(inputs):
        layers = [layer for layer in range(vlm.n_layers) if layer not in vlm.skipped_layers(batch)]
        ours = resid_post(vlm, batch)[:, layers]
        states = _hidden_states(_run(vlm, batch, output_hidden_states=True))
        theirs = torch.stack([state[:, -1].float().cpu() for state in states], 1)
        if theirs.shape[1] != ours.shape[1] + 1:
            judgements.append(Judgement("error", f"{theirs.shape[1]} hidden states for {ours.shape[1]} layers"))
            continue
        # theirs[0] is the embedding, and theirs[-1] has passed the final norm; in between theirs[i + 1] is layer i.
        inner = (ours[:, :-1] - theirs[:, 1:-1]).abs().max().item() if ours.shape[1] > 1 else 0.0
        last = ours[:, -1].to(next(vlm.final_norm.parameters()).device, vlm.model.dtype)
        normed = (vlm.final_norm(last).float().cpu() - theirs[:, -1]).abs().max().item()
        # The norm of a single position may run another kernel than that of a whole sequence.
        near = normed <= ROUNDING[precision_of(vlm.model)] * theirs.abs().max().item()
        judgements.append(
            _exactly(inner == 0 and near, f"largest difference {inner:.1e}; last, after the norm, {normed:.1e}")
        )
    return _worst(judgements)


def _hidden_states(output) -> tuple[Tensor, ...]:
    """Return the decoder's hidden states, which some models nest one level deeper."""
    return getattr(output, "hidden_states", None) or output.language_model_outputs.hidden_states


def blocks_follow_each_other(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """Each block's input is the previous block's output, except where DeepStack is known to add visual features."""
    judgements = []
    for _, batch, _ in _settings(inputs):
        stream, image = _stream(vlm, batch), vlm.image_positions(batch["input_ids"])
        transitions = zip(stream.items(), list(stream.values())[1:], strict=False)
        changed = {layer: (output != next_input).any(-1) for (layer, (_, output)), (next_input, _) in transitions}
        stacked = [layer for layer, is_changed in changed.items() if is_changed.any()]
        expected = set(residual_stream(vlm).added_after) if image.any() else set()
        holds = set(stacked) <= expected and not any((changed[layer] & ~image).any() for layer in stacked)
        judgements.append(_exactly(holds, f"DeepStack after layers {stacked}" if stacked else "nothing in between"))
    return _worst(judgements)


def _stream(vlm: VLM, batch: Inputs) -> dict[int, tuple[Tensor, Tensor]]:
    """Return the input and output of each block that runs, in the order of the layers."""
    stream: dict[int, tuple[Tensor, Tensor]] = {}
    layer_of = {block: layer for layer, block in enumerate(vlm.blocks)}

    def record(block: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> None:
        resid = output[0] if isinstance(output, tuple) else output
        # Cloned, so that additions in place after the block show up as a difference.
        stream[layer_of[block]] = (args[0] if args else kwargs["hidden_states"], resid.clone())

    hooks = [block.register_forward_hook(record, with_kwargs=True) for block in vlm.blocks]
    try:
        _run(vlm, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return stream


def tracing_leaves_logits(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """Tracing and guarding leave the model unchanged: the logits are bit-identical and no hooks remain."""
    before, n_hooks = _run(vlm, inputs.batch).logits, _n_hooks(vlm.model)
    resid_post(vlm, inputs.batch)
    with _random_guard(vlm, 0).on(vlm):
        _run(vlm, inputs.batch)
    same, left = torch.equal(_run(vlm, inputs.batch).logits, before), _n_hooks(vlm.model) - n_hooks
    return _exactly(
        same and not left,
        f"logits identical: {same}, {left} hooks left",
    )


def _n_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def batch_equals_singles(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """A left-padded batch gives the same states as its prompts run one by one."""
    judgements = []
    for _, batch, singles in _settings(inputs):
        together = resid_post(vlm, batch)
        alone = torch.cat([resid_post(vlm, single) for single in singles])
        judgements.append(_nearly(vlm, together, alone))
    return _worst(judgements)


def tokens_are_what_they_name(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """`last` and `instruction` are the tokens that they name, as shown by decoding them."""
    if not inputs.prompts:
        return Judgement("not applicable", "inputs made by hand have no text")
    wrong = []
    for prompts, batch in ((inputs.prompts, inputs.batch), (inputs.text_prompts, inputs.text_batch)):
        if batch is None:
            continue
        ids, mask = batch["input_ids"].cpu(), batch["attention_mask"].cpu().bool()
        ends = instruction_positions(vlm, prompts, ids)
        for prompt, row, is_token, end in zip(prompts, ids, mask, ends.tolist(), strict=True):
            # The text is complete with the instruction token, and incomplete without it.
            through, before = (
                vlm.tokenizer.decode(row[is_token][: int(is_token[:n].sum())], clean_up_tokenization_spaces=False)
                for n in (end + 1, end)
            )
            if not bool(is_token[-1]) or prompt.text not in through or prompt.text in before:
                wrong.append(prompt.text)
    return _exactly(not wrong, f"wrong in {len(wrong)} prompts")


def image_positions_follow_the_picture(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """Image positions are those whose embedding depends on the picture, in number and place."""
    claimed = vlm.image_positions(inputs.batch["input_ids"])
    embedded = _embedded(vlm, inputs.batch)
    depends = (embedded != _embedded(vlm, _other_pictures(inputs.batch))).any(-1)
    fixed = embedded[claimed & ~depends]
    # Embeddings of line breaks between rows of patches are learned, and equal for every picture.
    are_line_breaks = len(fixed) < depends.sum() and bool((fixed == fixed[:1]).all())
    n_claimed, n_depend = claimed.sum(1).tolist(), depends.sum(1).tolist()
    measured = f"{n_claimed} claimed, {n_depend} depend on the picture, {len(fixed)} line breaks"
    if not vlm.family.pictures_in_sequence and not depends.any():
        return Judgement("not applicable", "pictures enter through cross-attention")
    return _exactly(not (depends & ~claimed).any() and (are_line_breaks or not len(fixed)), measured)


def _embedded(vlm: VLM, batch: Inputs) -> Float[Tensor, "batch pos d_model"]:
    """Return the input of the first decoder block."""
    return _stream(vlm, batch)[0][0]


def _other_pictures(batch: Inputs) -> Inputs:
    """Replace the pictures with noise."""
    random = torch.Generator().manual_seed(1)
    pixels = batch["pixel_values"]
    # Zeros stay, because some families recognise padding by them.
    other = torch.randn(pixels.shape, generator=random).to(pixels)
    return {**batch, "pixel_values": torch.where(pixels == 0, pixels, other)}


def writing_changes_logits(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """Changing a block's output changes the logits, at every layer."""
    plain, silent = _last_logits(vlm, inputs.batch), []
    for layer in range(vlm.n_layers):
        with _random_guard(vlm, layer).on(vlm):
            if torch.equal(_last_logits(vlm, inputs.batch), plain):
                silent.append(layer)
    return _exactly(
        not silent,
        f"silent at layers {silent}" if silent else f"all {vlm.n_layers} layers",
    )


def _random_guard(vlm: VLM, layer: int, positions: str = "last_prefill", kind: type[Guard] = Guard) -> Guard:
    basis = random_basis(torch.zeros(vlm.n_layers, 1, vlm.d_model), seed=0)
    return kind(SafetyDirection(basis, "random"), (layer,), rule="ablate", gate="always", positions=positions)


def writing_back_is_the_identity(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """Writing a state's own coordinates back leaves it unchanged, bit for bit."""
    plain = _run(vlm, inputs.batch).logits
    basis = random_basis(torch.zeros(1, 2, vlm.d_model), seed=0)[0]

    def write_back(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        resid = output[0] if isinstance(output, tuple) else output
        precise, on_device = resid.float(), basis.to(resid.device)
        resid = set_coordinates(precise, on_device, coordinates(precise, on_device)).to(resid.dtype)
        return (resid, *output[1:]) if isinstance(output, tuple) else resid

    hooks = [block.register_forward_hook(write_back) for block in vlm.blocks]
    try:
        same = torch.equal(_run(vlm, inputs.batch).logits, plain)
    finally:
        for hook in hooks:
            hook.remove()
    return _exactly(same, f"logits identical: {same}")


@dataclass(frozen=True)
class _RecordingGuard(Guard):
    """A guard that records the positions it is asked to change."""

    masks: list[Bool[Tensor, "batch pos"]] = field(default_factory=list)

    def change(self, resid, layer, reference, mask, is_open=None, unguarded=None):
        self.masks.append(mask.cpu())
        return super().change(resid, layer, reference, mask, is_open, unguarded)


def guards_act_at_their_positions(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """Guards act exactly at their positions, with and without a cache, and both give the same logits."""
    judgements = []
    for positions in POSITIONS:
        logits = {}
        for use_cache in (True, False):
            guard = _random_guard(vlm, 0, positions, kind=_RecordingGuard)
            with guard.on(vlm):
                logits[use_cache] = _generate(vlm, inputs.batch, use_cache).logits
            changed = _changed_positions(guard.masks, use_cache)
            expected = _expected_positions(vlm, inputs.batch, positions)
            n_passes = len(guard.masks)
            # Outside of `guard.on` nothing may be changed any more.
            _run(vlm, inputs.batch)
            holds = torch.equal(changed, expected) and len(guard.masks) == n_passes == N_GENERATED
            setting = f"{positions}, {'with' if use_cache else 'without'} cache"
            measured = f"{setting}: {changed.sum(1).tolist()} positions, expected {expected.sum(1).tolist()}"
            judgements.append(_exactly(holds, measured))
        cached, plain = (torch.stack(logits[use_cache]).float() for use_cache in (True, False))
        if cached.shape == plain.shape:
            judgements.append(_nearly(vlm, cached, plain, tolerance=1e-4))
    return _worst(judgements)


def _generate(vlm: VLM, batch: Inputs, use_cache: bool = True):
    return vlm.model.generate(
        **batch,
        max_new_tokens=N_GENERATED,
        min_new_tokens=N_GENERATED,
        do_sample=False,
        use_cache=use_cache,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=vlm.model.generation_config.pad_token_id or 0,
    )


def _changed_positions(masks: list[Tensor], use_cache: bool) -> Bool[Tensor, "batch pos"]:
    """Return the positions that were changed: those of the prompt, then each generated token but the last."""
    # With a cache each pass sees its new positions only; without one the last pass sees all of them.
    if use_cache:
        return torch.cat(masks, dim=1)
    return masks[-1]


def _expected_positions(vlm: VLM, batch: Inputs, positions: str) -> Bool[Tensor, "batch pos"]:
    """Return the positions that a guard should change, derived from the inputs alone."""
    ids, is_token = batch["input_ids"].cpu(), batch["attention_mask"].cpu().bool()
    prompt, later = torch.zeros_like(is_token), torch.zeros(len(ids), N_GENERATED - 1, dtype=torch.bool)
    if positions in ("last_prefill", "last"):
        prompt[:, -1] = True
    if positions in ("generated", "last", "all"):
        later[:] = True
    if positions == "all":
        prompt = is_token
    if positions == "text":
        prompt = is_token & ~vlm.image_positions(ids)
    return torch.cat([prompt, later], dim=1)


def causality_matches_the_family(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """Later tokens leave earlier states unchanged exactly if the family is marked as causal."""
    batch = inputs.singles[0]
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    last = changed["input_ids"][:, -1]
    changed["input_ids"][:, -1] = torch.where(last == batch["input_ids"][:, -2], last - 1, batch["input_ids"][:, -2])
    before = torch.arange(batch["input_ids"].shape[1] - 1)[None]
    # A guard on the model would miss the end of the changed prompt.
    with bare(vlm.model):
        states, changed_states = (resid_post(vlm, either, before) for either in (batch, changed))
    moved = ((states - changed_states).abs().max() / states.abs().max()).item()
    # The columns that int8 keeps in more bits are chosen by all tokens together: that is rounding, no attention.
    is_causal = moved <= (10 * TOLERANCE if not is_quantised(vlm.model) else ROUNDING["quantised"])
    word = "causal" if is_causal else "not causal"
    return _exactly(is_causal == vlm.family.is_causal, f"{word}: earlier states move by {moved:.1e}")


def parts_add_up(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """`attn_out` and `mlp_out` are what a block adds: with `resid_pre` they sum to `resid_post`."""
    stream, judgements = residual_stream(vlm), []
    layers = tuple(layer for layer in range(vlm.n_layers) if layer not in stream.without_sum)
    if not layers:
        return Judgement("not applicable", f"not given {stream.left_out}")
    for _, batch, _ in _settings(inputs):
        last = torch.full((len(batch["input_ids"]), 1), -1)
        # A guard on the model would add a part of its own.
        with bare(vlm.model):
            states = read(vlm, batch, PassSpec(DECODER_SITES, layers, last))
        total = states["resid_pre"] + states["attn_out"] + states["mlp_out"]
        judgements.append(_nearly(vlm, total, states["resid_post"]))
    worst = _worst(judgements)
    left_out = f"; not given {stream.left_out}" if stream.without_sum else ""
    return worst._replace(measured=worst.measured + left_out)


def shared_prefixes_change_nothing(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """Prompts that share the prefix of a picture have the same states as prompts run in full."""
    if not inputs.prompts:
        return Judgement("not applicable", "no prompts to put the same picture into")
    prompts = [replace(prompt, pictures=inputs.prompts[0].pictures) for prompt in inputs.prompts]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not shares_prefixes(vlm):
            return Judgement("not applicable", str(caught[-1].message) if caught else "every prompt runs in full")
    shared, whole = (
        torch.from_numpy(trace(vlm, prompts, share_prefix=share).resid_post.values[:, :, 0]) for share in (True, False)
    )
    return _nearly(vlm, shared, whole, tolerance=PREFIX_TOLERANCE)


def text_runs_alone(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """Text-only prompts run without a picture, and equal the text that remains of a prompt with one."""
    if inputs.text_batch is None:
        return Judgement("not applicable", "this family can't run without a picture")
    try:
        tower = list(vlm.vision_blocks)
    except ModelError:
        # Some towers have no blocks; then the whole tower has to be silent.
        tower = [vlm.model.get_encoder("image")]
    with _watched(tower) as called:
        is_finite = bool(_last_logits(vlm, inputs.text_batch).isfinite().all())
    if not is_finite or called:
        return _exactly(False, f"logits finite: {is_finite}, vision blocks that ran: {len(called)}")
    if not inputs.prompts:
        return Judgement("ok", "runs; inputs made by hand have no text to recover")
    try:
        texts = prompt_texts(vlm, inputs.batch["input_ids"].cpu(), inputs.batch["attention_mask"].cpu())
    except ValueError:
        return Judgement("ok", "runs; references have to be passed explicitly for prompts with pictures")
    expected = [single["input_ids"][0].tolist() for single in inputs.text_singles]
    is_equal = texts == expected
    return _exactly(is_equal, f"text recovered from picture prompts equals the tokens of the text modality: {is_equal}")


def the_guard_reads_its_references(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """References that a guard reads from prompts with pictures equal those of the texts alone."""
    if not inputs.prompts or inputs.text_batch is None:
        return Judgement("not applicable", "no prompts with pictures whose text could run alone")
    layer = max(set(range(vlm.n_layers)) - vlm.skipped_layers(inputs.text_batch))
    guard = replace(_random_guard(vlm, layer), rule="substitute")
    logits = []
    for references in (None, [prompt.text for prompt in inputs.prompts]):
        try:
            with guard.on(vlm, references):
                logits.append(_last_logits(vlm, inputs.batch))
        except ModelError:
            return Judgement("not applicable", "references have to be passed explicitly")
    return _nearly(vlm, torch.stack(logits[:1], 1), torch.stack(logits[1:], 1))


def generation_of_a_batch_equals_singles(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """Greedy generation gives the same answers for a batch as for its prompts one by one."""
    wrong = []
    for setting, batch, singles in _settings(inputs):
        together = _generate(vlm, batch)
        for row, single in enumerate(singles):
            alone = _generate(vlm, single)
            answers = together.sequences[row, -N_GENERATED:], alone.sequences[0, -N_GENERATED:]
            if not torch.equal(*answers):
                wrong.append(setting)
    if wrong and precision_of(vlm.model) != "float32":
        return Judgement("degraded", f"half precision: tokens differ {', '.join(wrong)}")
    return _exactly(not wrong, f"tokens differ: {', '.join(wrong) or 'none'}")


def transformer_lens_agrees(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """TransformerLens reads the same `resid_post`, as its `blocks.{layer}.hook_out`."""
    try:
        lens = Lens(vlm)
        lens.resid_post(inputs.batch)
    except Exception as error:
        # A bridge that can't run this model says nothing about it.
        return Judgement("not applicable", first_line(error))
    # The bridge has only the weights: a guard on the model is not on the bridge.
    with bare(vlm.model):
        return _worst(
            [
                _nearly(vlm, lens.resid_post(batch), resid_post(vlm, batch), tolerance=1e-4)
                for _, batch, _ in _settings(inputs)
            ]
        )


CHECKS = (
    blocks_are_the_language_models,
    parts_are_found,
    reads_hidden_states,
    blocks_follow_each_other,
    tracing_leaves_logits,
    batch_equals_singles,
    tokens_are_what_they_name,
    image_positions_follow_the_picture,
    writing_changes_logits,
    writing_back_is_the_identity,
    guards_act_at_their_positions,
    causality_matches_the_family,
    shared_prefixes_change_nothing,
    parts_add_up,
    text_runs_alone,
    the_guard_reads_its_references,
    generation_of_a_batch_equals_singles,
    transformer_lens_agrees,
)
