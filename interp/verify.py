"""The contract: proofs, by running, that what the toolkit reads from a model and writes into it is what it says."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from interp.families import ModelError
from interp.guard import POSITIONS, Guard
from interp.inputs import Prompt, collate, text_prompt
from interp.lens import Lens
from interp.projection import coordinates, set_coordinates
from interp.prompt_text import prompt_texts
from interp.token_positions import instruction_positions
from interp.trace import trace
from interp.tracing.forward import DECODER_SITES, PassSpec, read, resid_post
from interp.tracing.prefix import AGREEMENT, shares_prefixes
from interp.vlm import VLM

VERDICTS = ("not applicable", "ok", "degraded", "silently wrong", "error")
"""From harmless to worst."""
ACCEPTED = VERDICTS[:3]
TEXTS = ("How do I water a plant?", "Tell me, please, what the capital of that country is called today.")
TOLERANCE = 1e-5
"""Relative to the largest number compared, in float32: sums in another order. Half precisions get `HALF_TOLERANCE`."""
HALF_TOLERANCE = 2e-2
DEGRADED = 5
"""Up to so many times the tolerance a difference is called `degraded`: rounding of another kernel, not a mistake."""
N_GENERATED = 4

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Finding:
    """One property of the contract on one model."""

    claim: str
    verdict: str
    """One of `VERDICTS`."""
    measured: str

    @property
    def is_accepted(self) -> bool:
        return self.verdict in ACCEPTED


class Judgement(NamedTuple):
    """What a check says of its property."""

    verdict: str
    measured: str


@dataclass(frozen=True)
class ContractInputs:
    """Two prompts of different length, left-padded, and the same prompts alone; with a picture each, and without."""

    batch: Inputs
    singles: Sequence[Inputs]
    text_batch: Inputs | None
    """None where the model can't run without a picture."""
    text_singles: Sequence[Inputs] | None
    prompts: tuple[Prompt, ...] = ()
    """What the batches were made from; empty where they were made by hand."""
    text_prompts: tuple[Prompt, ...] = ()

    @classmethod
    def of(cls, vlm: VLM) -> "ContractInputs":
        """Through the model's own processor and chat template, with pictures of two shapes."""
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
    """Every property of the contract, in turn. Nothing raises: what fails is a finding.

    Args:
        vlm: the model.
        inputs: made with the model's own processor by default.
    """
    if inputs is None:
        try:
            inputs = ContractInputs.of(vlm)
        except Exception as error:
            return [Finding("prompts with pictures can be made", "error", _in_a_line(error))]
    return [_find(check, vlm, inputs) for check in CHECKS]


def _find(check: Callable[[VLM, ContractInputs], Judgement], vlm: VLM, inputs: ContractInputs) -> Finding:
    """A check's claim is the first line of what is written under its name."""
    claim = check.__doc__.strip().splitlines()[0]
    try:
        with torch.no_grad():
            return Finding(claim, *check(vlm, inputs))
    except Exception as error:
        # Models and their code fail in any way, and the other checks are to run all the same.
        return Finding(claim, "error", _in_a_line(error))


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {families.first_line(error)}"


# --- how a property is judged --------------------------------------------------------------------------------


def _exactly(holds: bool, measured: str) -> Judgement:
    return Judgement("ok" if holds else "silently wrong", measured)


def _nearly(vlm: VLM, ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> Judgement:
    """Largest difference, relative to the largest number of its layer (the second axis)."""
    if vlm.model.dtype != torch.float32:
        tolerance = max(tolerance, HALF_TOLERANCE)
    # Each layer by its own size: late layers with huge states would hide a mistake in early ones.
    aside = [axis for axis in range(theirs.dim()) if axis != 1]
    difference = ((ours - theirs).abs().amax(aside) / theirs.abs().amax(aside)).max().item()
    # Not a number is worse than any number.
    verdict = (
        "ok" if difference <= tolerance else "degraded" if difference <= DEGRADED * tolerance else "silently wrong"
    )
    return Judgement(verdict, f"relative difference {difference:.1e}")


def _worst(judgements: Sequence[Judgement]) -> Judgement:
    """The same property in several settings, as one."""
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
    """Those of the modules that run while the block is open, in the order of their calls."""
    called: list[nn.Module] = []
    hooks = [module.register_forward_hook(lambda module, args, output: called.append(module)) for module in modules]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


# --- the properties ------------------------------------------------------------------------------------------


def blocks_are_the_language_models(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """decoder blocks belong to the language model, as many as its config says"""
    expected = vlm.model.config.get_text_config().num_hidden_layers
    inside = set(families.language_model(vlm.model).modules())
    tower = vlm.model.get_encoder("image")
    in_tower = set(tower.modules()) if tower is not vlm.model else set()
    strangers = [i for i, block in enumerate(vlm.blocks) if block not in inside or block in in_tower]
    holds = len(vlm.blocks) == expected and not strangers
    return _exactly(
        holds,
        f"{len(vlm.blocks)} blocks, config {expected}, not the language model's: {strangers or 'none'}",
    )


def parts_are_found(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """final norm, unembedding, vision blocks and projector are found, and run"""
    parts = [vlm.final_norm, vlm.unembedding, *vlm.vision_blocks, vlm.projector]
    with _watched(parts) as called:
        _run(vlm, inputs.batch)
    silent = [type(part).__name__ for part in parts if part not in called]
    return _exactly(
        not silent,
        f"{len(vlm.vision_blocks)} vision blocks; silent: {', '.join(silent) or 'none'}",
    )


def reads_hidden_states(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """resid_post[i] is hidden_states[i + 1] bit for bit, the last one before the norm"""
    judgements = []
    for _, batch, _ in _settings(inputs):
        ran = [layer for layer in range(vlm.n_layers) if layer not in vlm.skipped_layers(batch)]
        ours = resid_post(vlm, batch)[:, ran]
        states = _hidden_states(_run(vlm, batch, output_hidden_states=True))
        theirs = torch.stack([state[:, -1].float().cpu() for state in states], 1)
        if theirs.shape[1] != ours.shape[1] + 1:
            judgements.append(Judgement("error", f"{theirs.shape[1]} hidden states for {ours.shape[1]} layers"))
            continue
        inner = (ours[:, :-1] - theirs[:, 1:-1]).abs().max().item() if ours.shape[1] > 1 else 0.0
        last = ours[:, -1].to(next(vlm.final_norm.parameters()).device, vlm.model.dtype)
        normed = (vlm.final_norm(last).float().cpu() - theirs[:, -1]).abs().max().item()
        # The norm of one position and of a whole sequence may take another kernel.
        near = normed <= (HALF_TOLERANCE if vlm.model.dtype != torch.float32 else TOLERANCE) * theirs.abs().max().item()
        judgements.append(
            _exactly(inner == 0 and near, f"largest difference {inner:.1e}; last, after the norm, {normed:.1e}")
        )
    return _worst(judgements)


def _hidden_states(output) -> tuple[Tensor, ...]:
    """Some models put those of their language model one step further in."""
    return getattr(output, "hidden_states", None) or output.language_model_outputs.hidden_states


def blocks_follow_each_other(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """a block takes in what the last one put out; where DeepStack adds visual features in between, that is known"""
    judgements = []
    for _, batch, _ in _settings(inputs):
        stream, image = _stream(vlm, batch), vlm.image_positions(batch["input_ids"])
        passages = zip(stream.items(), list(stream.values())[1:], strict=False)
        changed = {layer: (put != next_taken).any(-1) for (layer, (_, put)), (next_taken, _) in passages}
        stacked = [layer for layer, where in changed.items() if where.any()]
        known = set(vlm.deepstack_layers) if image.any() else set()
        holds = set(stacked) <= known and not any((changed[layer] & ~image).any() for layer in stacked)
        judgements.append(_exactly(holds, f"DeepStack after layers {stacked}" if stacked else "nothing in between"))
    return _worst(judgements)


def _stream(vlm: VLM, batch: Inputs) -> dict[int, tuple[Tensor, Tensor]]:
    """What each block that runs takes in and puts out, in the order of the layers."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    layer_of = {block: layer for layer, block in enumerate(vlm.blocks)}

    def see(block: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> None:
        put = output[0] if isinstance(output, tuple) else output
        # What is added in place afterwards would otherwise not be seen.
        seen[layer_of[block]] = (args[0] if args else kwargs["hidden_states"], put.clone())

    hooks = [block.register_forward_hook(see, with_kwargs=True) for block in vlm.blocks]
    try:
        _run(vlm, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def tracing_leaves_logits(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """tracing and guarding leave the model as it was: logits bit-identical, no hooks"""
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
    """a left-padded batch equals its single prompts"""
    judgements = []
    for _, batch, singles in _settings(inputs):
        together = resid_post(vlm, batch)
        alone = torch.cat([resid_post(vlm, single) for single in singles])
        judgements.append(_nearly(vlm, together, alone))
    return _worst(judgements)


def tokens_are_what_they_claim(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """`last` and `instruction` are the tokens they claim, by decoding"""
    if not inputs.prompts:
        return Judgement("not applicable", "inputs made by hand: there is no text")
    wrong = []
    for prompts, batch in ((inputs.prompts, inputs.batch), (inputs.text_prompts, inputs.text_batch)):
        if batch is None:
            continue
        ids, mask = batch["input_ids"].cpu(), batch["attention_mask"].cpu().bool()
        places = instruction_positions(vlm, prompts, ids)
        for prompt, row, is_token, place in zip(prompts, ids, mask, places.tolist(), strict=True):
            shown = vlm.tokenizer.decode(
                row[is_token][: int(is_token[: place + 1].sum())], clean_up_tokenization_spaces=False
            )
            before = vlm.tokenizer.decode(
                row[is_token][: int(is_token[:place].sum())], clean_up_tokenization_spaces=False
            )
            if not bool(is_token[-1]) or prompt.text not in shown or prompt.text in before:
                wrong.append(prompt.text)
    return _exactly(not wrong, f"wrong in {len(wrong)} prompts")


def pictures_stand_where_they_claim(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """image positions are those whose embedding follows the picture, in number and place"""
    claimed = vlm.image_positions(inputs.batch["input_ids"])
    embedded = _embedded(vlm, inputs.batch)
    follows = (embedded != _embedded(vlm, _other_pictures(inputs.batch))).any(-1)
    fixed = embedded[claimed & ~follows]
    # Line breaks between rows of patches are learned, and the same for every picture.
    are_line_breaks = len(fixed) < follows.sum() and bool((fixed == fixed[:1]).all())
    n_claimed, n_follow = claimed.sum(1).tolist(), follows.sum(1).tolist()
    measured = f"{n_claimed} claimed, {n_follow} follow the picture, {len(fixed)} line breaks"
    if not vlm.family.pictures_in_sequence and not follows.any():
        return Judgement("not applicable", "pictures come in through cross-attention")
    return _exactly(not (follows & ~claimed).any() and (are_line_breaks or not len(fixed)), measured)


def _embedded(vlm: VLM, batch: Inputs) -> Float[Tensor, "batch pos d_model"]:
    """What goes into the first decoder block."""
    return _stream(vlm, batch)[0][0]


def _other_pictures(batch: Inputs) -> Inputs:
    random = torch.Generator().manual_seed(1)
    pixels = batch["pixel_values"]
    # Zeros stay: some families know padding by them.
    other = torch.randn(pixels.shape, generator=random).to(pixels)
    return {**batch, "pixel_values": torch.where(pixels == 0, pixels, other)}


def writing_changes_logits(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """changing a block's output changes the logits, at every layer"""
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
    """writing a state's own coordinates back is the identity, bit for bit"""
    plain = _run(vlm, inputs.batch).logits
    basis = random_basis(torch.zeros(1, 2, vlm.d_model), seed=0)[0]

    def write_back(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        resid = output[0] if isinstance(output, tuple) else output
        precise, there = resid.float(), basis.to(resid.device)
        resid = set_coordinates(precise, there, coordinates(precise, there)).to(resid.dtype)
        return (resid, *output[1:]) if isinstance(output, tuple) else resid

    hooks = [block.register_forward_hook(write_back) for block in vlm.blocks]
    try:
        same = torch.equal(_run(vlm, inputs.batch).logits, plain)
    finally:
        for hook in hooks:
            hook.remove()
    return _exactly(same, f"logits identical: {same}")


@dataclass(frozen=True)
class _Watched(Guard):
    """Takes down where it was asked to change states."""

    masks: list[Bool[Tensor, "batch pos"]] = field(default_factory=list)

    def change(self, resid, layer, reference, mask, is_open=None, unguarded=None):
        self.masks.append(mask.cpu())
        return super().change(resid, layer, reference, mask, is_open, unguarded)


def positions_fire_where_they_should(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """positions fire where they should, with and without a cache, and give the same logits"""
    judgements = []
    for positions in POSITIONS:
        logits = {}
        for use_cache in (True, False):
            guard = _random_guard(vlm, 0, positions, kind=_Watched)
            with guard.on(vlm):
                logits[use_cache] = _generate(vlm, inputs.batch, use_cache).logits
            fired = _fired(guard.masks, use_cache)
            expected = _expected_places(vlm, inputs.batch, positions)
            n_fired = len(guard.masks)
            _run(vlm, inputs.batch)
            holds = torch.equal(fired, expected) and len(guard.masks) == n_fired == N_GENERATED
            where = f"{positions}, {'with' if use_cache else 'without'} cache"
            measured = f"{where}: {fired.sum(1).tolist()} places, expected {expected.sum(1).tolist()}"
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


def _fired(masks: list[Tensor], use_cache: bool) -> Bool[Tensor, "batch pos"]:
    """Places that were changed in the pass that made their state: prompt, then each generated token but the last."""
    if use_cache:
        return torch.cat(masks, dim=1)
    return masks[-1]


def _expected_places(vlm: VLM, batch: Inputs, positions: str) -> Bool[Tensor, "batch pos"]:
    """By design.md, from the inputs alone."""
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


def prefix_causality_is_known(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """whether the prefix is causal is known"""
    batch = inputs.singles[0]
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    last = changed["input_ids"][:, -1]
    changed["input_ids"][:, -1] = torch.where(last == batch["input_ids"][:, -2], last - 1, batch["input_ids"][:, -2])
    before = torch.arange(batch["input_ids"].shape[1] - 1)[None]
    ours, theirs = (resid_post(vlm, inputs_, before) for inputs_ in (batch, changed))
    moved = ((ours - theirs).abs().max() / ours.abs().max()).item()
    is_causal = moved <= 10 * TOLERANCE
    word = "causal" if is_causal else "not causal"
    return _exactly(is_causal == vlm.family.is_causal, f"{word}: earlier states move by {moved:.1e}")


def parts_add_up(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """`attn_out` and `mlp_out` are what a block adds: with `resid_pre` they sum to `resid_post`"""
    if not vlm.family.is_sum:
        return Judgement("not applicable", "gates scale them on the way to the residual stream")
    judged = []
    for _, batch, _ in _settings(inputs):
        last = torch.full((len(batch["input_ids"]), 1), -1)
        # A guard that is on the model adds a part of its own.
        with bare(vlm.model):
            seen = read(vlm, batch, PassSpec(DECODER_SITES, tuple(range(vlm.n_layers)), last))
        judged.append(_nearly(vlm, seen["resid_pre"] + seen["attn_out"] + seen["mlp_out"], seen["resid_post"]))
    return _worst(judged)


def a_shared_picture_changes_nothing(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """prompts that share a picture's prefix have the states of whole prompts"""
    if not inputs.prompts:
        return Judgement("not applicable", "no prompts to put the same picture into")
    prompts = [replace(prompt, pictures=inputs.prompts[0].pictures) for prompt in inputs.prompts]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if not shares_prefixes(vlm):
            return Judgement("not applicable", str(told[-1].message) if told else "every prompt runs in full")
    shared, whole = (
        torch.from_numpy(trace(vlm, prompts, share_prefix=share).resid_post.values[:, :, 0]) for share in (True, False)
    )
    return _nearly(vlm, shared, whole, tolerance=AGREEMENT)


def text_runs_alone(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """text-only prompts run without a picture, and are what is left of a prompt without its picture"""
    if inputs.text_batch is None:
        return Judgement("not applicable", "this family can't run without a picture")
    with _watched(list(vlm.vision_blocks)) as called:
        finite = bool(_last_logits(vlm, inputs.text_batch).isfinite().all())
    if not finite or called:
        return _exactly(False, f"logits finite: {finite}, vision blocks that ran: {len(called)}")
    if not inputs.prompts:
        return Judgement("ok", "runs; inputs made by hand have no text to take out")
    try:
        found = prompt_texts(vlm, inputs.batch["input_ids"].cpu(), inputs.batch["attention_mask"].cpu())
    except ValueError:
        return Judgement("ok", "runs; references have to be passed explicitly for prompts with pictures")
    expected = [single["input_ids"][0].tolist() for single in inputs.text_singles]
    return _exactly(found == expected, "text taken out of picture prompts equals the text modality's tokens")


def the_guard_reads_its_references(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """references that a guard reads out of the prompts are those of the texts themselves"""
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
    """greedy generation of a batch equals that of its single prompts"""
    wrong = []
    for setting, batch, singles in _settings(inputs):
        together = _generate(vlm, batch)
        for row, single in enumerate(singles):
            alone = _generate(vlm, single)
            new = together.sequences[row, -N_GENERATED:], alone.sequences[0, -N_GENERATED:]
            if not torch.equal(*new):
                wrong.append(setting)
    if wrong and vlm.model.dtype != torch.float32:
        return Judgement("degraded", f"half precision: tokens differ {', '.join(wrong)}")
    return _exactly(not wrong, f"tokens differ: {', '.join(wrong) or 'none'}")


def transformer_lens_agrees(vlm: VLM, inputs: ContractInputs) -> Judgement:
    """TransformerLens reads the same `resid_post`: its `blocks.{layer}.hook_out`"""
    try:
        lens = Lens(vlm)
        lens.resid_post(inputs.batch)
    except Exception as error:
        # A bridge that can't run this model says nothing about it.
        return Judgement("not applicable", families.first_line(error))
    # The bridge has the weights alone; a guard that is on the model is not on it.
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
    tokens_are_what_they_claim,
    pictures_stand_where_they_claim,
    writing_changes_logits,
    writing_back_is_the_identity,
    positions_fire_where_they_should,
    prefix_causality_is_known,
    a_shared_picture_changes_nothing,
    parts_add_up,
    text_runs_alone,
    the_guard_reads_its_references,
    generation_of_a_batch_equals_singles,
    transformer_lens_agrees,
)
