"""A fitted guard, put on a model for the time of a `with` block."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from huggingface_hub import HfApi
from jaxtyping import Bool, Float
from torch import Tensor

from interp import guard_files
from interp.bare import bare, marked_as_guarded
from interp.directions import SafetyDirection, random_basis
from interp.families import ModelError
from interp.guard_hooks import GuardHooks
from interp.inputs import Prompt, collate, text_prompt
from interp.projection import (
    GATE_SCOPES,
    GATES,
    RULES,
    ProbeGate,
    RuleInputs,
    centred_cosine,
    check_rule,
    coordinates,
    rescaled,
    set_coordinates,
    sign_gate,
    target_coordinates,
)
from interp.tracing.forward import last_resid_post
from interp.vlm import LLM, VLM

REFERENCES = ("prompt_text", "transcription", "caption", "prompt_text+transcription", "prompt_text+caption", "oracle")
"""What the user wrote; what the VLM reads or sees in the picture; both texts, either way; the true request, a bound."""
SOURCES = ("vlm_text", "llm")
POSITIONS = ("last_prefill", "generated", "last", "text", "all")
CONTROLS = ("random", "sign_flipped", "full_state")


@dataclass(frozen=True)
class Guard:
    """Direction, layers, rule, gate, positions and strength: what is changed, where and when."""

    direction: SafetyDirection
    layers: tuple[int, ...]
    """Decoder blocks whose output is changed, counted from 0."""
    rule: str = "substitute"
    gate: str = "sign"
    positions: str = "last_prefill"
    strength: float = 1.0
    reference: str = "prompt_text"
    """The text that the aligned LLM is shown. Any but `prompt_text` has to be made before, and passed."""
    source: str = "vlm_text"
    """Whose states are read: the VLM's own without a picture, or the aligned checkpoint's (`llm`), which are passed."""
    direction_layer: int | None = None
    """Where the direction was fitted; by default the layer that it is applied at."""
    gate_scope: str = "change"
    """What a closed gate holds back: the `change`, or the `target` alone: coordinates are taken out all the same."""
    threshold: float = 0.0
    """Of the gate `threshold`: the border of the reference's first coordinate."""
    probe: ProbeGate | None = None
    """The gate `probe`. It and `threshold` are asked once, at the first guarded layer; `sign` at every layer."""
    keeps_norm: bool = False
    """Whether changed states get their old length back."""
    frozen_shift: bool = False
    """Whether the change is measured on the unguarded run, as in ShiftDC's released code: a guarded layer does not see
    what the layers before it have changed already. One layer alone is the same either way."""
    all_writes: bool = False
    """Whether what a block takes in, and what its attention and MLP add, is changed instead of what it puts out."""
    control: str | None = None
    """What the guard is held against. `random`: the change keeps its size and goes along a random vector.
    `sign_flipped`: it goes the other way. `full_state`: the reference's whole state is put in (V = I)."""
    control_seed: int = 0
    """Of `random`."""
    model: str = field(default="", compare=False)
    """Name of the model that it was loaded for, or chosen on."""
    validation: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Numbers that it was chosen by, by name."""

    def __post_init__(self):
        n_layers = len(self.direction.basis)
        check_rule(self.rule, self.direction.rank)
        for name, value, known in (
            ("gate", self.gate, GATES),
            ("gate_scope", self.gate_scope, GATE_SCOPES),
            ("positions", self.positions, POSITIONS),
            ("reference", self.reference, REFERENCES),
            ("source", self.source, SOURCES),
            ("control", self.control, (None, *CONTROLS)),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r} does not exist; expected one of {', '.join(filter(None, known))}")
        if not self.layers or not all(0 <= layer < n_layers for layer in self.layers):
            raise ValueError(f"layers {self.layers}; expected at least one, each from 0 to {n_layers - 1}")
        if len(set(self.layers)) != len(self.layers):
            raise ValueError(f"layers {self.layers}; expected each of them once")
        if not math.isfinite(self.strength):
            raise ValueError(f"strength {self.strength}; expected a finite number")
        if self.direction_layer is not None and not 0 <= self.direction_layer < n_layers:
            raise ValueError(f"direction_layer {self.direction_layer}; expected 0 to {n_layers - 1}")
        if (self.gate == "probe") != (self.probe is not None):
            raise ValueError(f"gate {self.gate!r} with probe={self.probe}; expected both, or neither")
        d_model = self.direction.basis.shape[-1]
        if self.probe is not None and len(self.probe.weight) != d_model:
            raise ValueError(f"a probe of width {len(self.probe.weight)} for states of width {d_model}")
        if {"harmful", "cosine"} & set(RULES[self.rule].needs) and self.direction.harmful is None:
            raise ValueError(f"rule {self.rule!r} needs the class means of a direction made by SafetyDirection.fit")
        if self.frozen_shift and self.positions != "last_prefill":
            raise ValueError(f"frozen_shift with positions {self.positions!r}; expected last_prefill")
        if self.all_writes and (self.rule, self.gate) != ("ablate", "always"):
            raise ValueError(f"all_writes with rule {self.rule!r}, gate {self.gate!r}; expected ablate, always")
        if self.all_writes and (self.frozen_shift or self.control or self.keeps_norm):
            raise ValueError("all_writes takes neither frozen_shift, control nor keeps_norm")
        if self.control == "full_state" and (self.rule, self.gate_scope) != ("substitute", "change"):
            raise ValueError(
                f"control full_state with rule {self.rule!r}, gate_scope {self.gate_scope!r}; "
                "expected substitute, change"
            )

    def basis(self, layer: int) -> Float[Tensor, "rank d_model"]:
        return self.direction.basis[self.fitted_at(layer)]

    def fitted_at(self, layer: int) -> int:
        """Where the direction of a guarded layer was fitted."""
        return layer if self.direction_layer is None else self.direction_layer

    @property
    def needs_reference(self) -> bool:
        return "reference" in RULES[self.rule].needs or self.gate != "always"

    def read(self, model: VLM | LLM, references: Sequence[str]) -> Float[Tensor, "batch layer d_model"]:
        """The model's own states, without a picture, at the last token of each reference in its chat template.

        No guard that is on the model changes them.
        """
        with bare(model.model):
            return last_resid_post(model, [text_prompt(text) for text in references])

    def opens(self, states: Float[Tensor, "batch layer d_model"], layer: int | None = None) -> Bool[Tensor, " batch"]:
        """Whether the gate opens, for references read by `read`.

        Args:
            states: of each reference.
            layer: a guarded one, by default the first: the gate `sign` is asked at each, as the paper prints it.
        """
        layer = self.layers[0] if layer is None else layer
        return self.opens_at(layer, {guarded: states[:, guarded] for guarded in self.layers})

    def opens_at(self, layer: int, references: Mapping[int, Float[Tensor, "batch d_model"]]) -> Bool[Tensor, " batch"]:
        """The same for references by layer."""
        at = layer if self.gate == "sign" else self.layers[0]
        return self._is_open(at, references[at])

    def save_pretrained(self, folder: str | Path, vlm: VLM, validation: Mapping[str, float] | None = None) -> None:
        """Writes safetensors, JSON and a guard card for people.

        Args:
            folder: is made.
            vlm: the model that the guard is for.
            validation: numbers that it was chosen by, by name; by default the guard's own.

        Raises:
            ValueError: a control is no guard to be kept.
        """
        guard_files.save(self, Path(folder), vlm, self.validation if validation is None else validation)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, vlm: VLM) -> "Guard":
        """From a folder, or a repository of the hub.

        Raises:
            GuardFileError: there is no guard, it is damaged, or it was made for another model.
        """
        return guard_files.load(cls, name_or_path, vlm)

    def push_to_hub(
        self, repo_id: str, vlm: VLM, validation: Mapping[str, float] | None = None, private: bool = True
    ) -> None:
        """`save_pretrained`, then uploaded as a model repository; needs a token of the hub."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, vlm, validation)
            hub = HfApi()
            hub.create_repo(repo_id, private=private, exist_ok=True)
            hub.upload_folder(repo_id=repo_id, folder_path=folder)

    def _is_open(self, layer: int, reference: Float[Tensor, "batch d_model"]) -> Bool[Tensor, " batch"]:
        if self.gate == "always":
            return torch.ones(len(reference), dtype=torch.bool, device=reference.device)
        if self.gate == "probe":
            return self.probe(reference.float())
        own = coordinates(reference.float(), self.basis(layer).to(reference.device))
        return sign_gate(own, self.threshold if self.gate == "threshold" else 0.0)

    @contextmanager
    def on(
        self,
        vlm: VLM,
        references: Sequence[str] | Float[Tensor, "batch layer d_model"] | None = None,
    ) -> Iterator[None]:
        """Guards every forward pass and `generate` of `vlm.model` inside the block; leaves nothing behind.

        Guards nest: each reads its references from the bare model; at the same layer the inner one acts first.
        Beams, sampling, streaming, batches, `pipeline("image-text-to-text")`, with and without a cache all go through
        it. Not thread-safe: hooks belong to the model, so a guarded model must not be used by two threads at once.
        Not supported, and refused where they show: compiled models, static caches, and passes of several tokens behind
        a cache (a chat that keeps its cache, prefill in chunks, assisted decoding).

        Args:
            vlm: the model.
            references: one text for each row of the batch that is about to run, or their states from `read`. By
                default the text of each prompt itself, taken out of its `input_ids` (reference `prompt_text`).
                `generate` may repeat rows (beams, several answers); their references are repeated too.

        Raises:
            ValueError: the direction or the references are of another shape than the model, or the guard's reference
                is none that it can read by itself.
            ModelError: a compiled model, whose hooks don't run; inside the block, where the text of a prompt can't be
                taken out of it, or a pass that is not supported.
        """
        with self._at_work(vlm, references, told=None):
            yield

    @contextmanager
    def _at_work(self, vlm: VLM, references: Sequence[str] | Tensor | None, told: list[dict] | None) -> Iterator[None]:
        basis = self.direction.basis
        if (len(basis), basis.shape[-1]) != (vlm.n_layers, vlm.d_model):
            raise ValueError(
                f"the direction has {len(basis)} layers of width {basis.shape[-1]}, {vlm.name!r} has {vlm.n_layers} "
                f"of width {vlm.d_model}; fit a direction on this model"
            )
        if any(module._compiled_call_impl is not None for module in vlm.model.modules()):
            raise ModelError(f"{vlm.name!r} is compiled, and its hooks would not run; guard the model uncompiled")
        own = self.reference == "prompt_text" and self.source == "vlm_text"
        if references is None and self.needs_reference and not own:
            raise ValueError(
                f"the guard's reference is {self.reference!r}, source {self.source!r}, which it can't read out of a "
                "prompt; make the texts first, and pass them or their states: guard.on(vlm, references=[...])"
            )
        if references is not None and not isinstance(references, Tensor):
            references = self.read(vlm, references)
        if references is not None and references.shape[1:] != (vlm.n_layers, vlm.d_model):
            raise ValueError(
                f"states of references of shape {tuple(references.shape)}; expected (rows, {vlm.n_layers}, "
                f"{vlm.d_model}), as guard.read gives"
            )
        work = GuardHooks(self, vlm, references, told)
        hooks = [vlm.model.register_forward_pre_hook(work.begin_pass, with_kwargs=True)]
        try:
            for layer in self.layers:
                hooks += work.hooks(layer)
            with marked_as_guarded(vlm.model):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def explain(self, vlm: VLM, prompt: Prompt, references: Sequence[str] | Tensor | None = None) -> pd.DataFrame:
        """What the guard does to one prompt at its last token, one row a guarded layer.

        Args:
            vlm: the model.
            prompt: is run once.
            references: as for `on`, of one row.

        Returns:
            Columns `layer coordinate reference_coordinate gate after delta_norm`: first coordinates, whether the gate
            is open, the first coordinate afterwards, and how far the state moved relative to its length. With positions
            that leave the last token of the prompt alone, nothing moves.

        Raises:
            ValueError: a guard of all writes, which does not act on one state of a layer.
        """
        if self.all_writes:
            raise ValueError("a guard of all writes can't be explained layer by layer; expected all_writes=False")
        told: list[dict] = []
        with self._at_work(vlm, references, told):
            vlm.model(**collate(vlm, [prompt]), use_cache=False)
        return pd.DataFrame(told)

    def change(
        self,
        resid: Float[Tensor, "batch pos d_model"],
        layer: int,
        reference: Float[Tensor, "batch d_model"] | None,
        mask: Bool[Tensor, "batch pos"],
        is_open: Bool[Tensor, " batch"] | None = None,
        unguarded: Float[Tensor, "batch d_model"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The states with the formula applied where the mask and the gate say so, in float32.

        Args:
            resid: what the layer puts out.
            layer: its number.
            reference: the state of each row's reference there; none where the rule needs none.
            mask: places that are to change.
            is_open: each row's gate, of `opens`; by default open.
            unguarded: the state that a frozen shift is measured on.
        """
        first = _first_place(mask)
        if first is None:
            return resid
        later = self._changed(resid[:, first:], layer, reference, mask[:, first:], is_open, unguarded)
        return torch.cat([resid[:, :first], later], dim=1) if first else later

    def _changed(
        self,
        resid: Tensor,
        layer: int,
        reference: Tensor | None,
        mask: Tensor,
        is_open: Tensor | None,
        unguarded: Tensor | None,
    ) -> Tensor:
        basis, precise, mask = self.basis(layer).to(resid.device), resid.float(), mask.to(resid.device)
        start = precise if unguarded is None else unguarded.to(resid.device).float()[:, None]
        known = self._known(layer, start, basis, reference)
        target = target_coordinates(self.rule, coordinates(start, basis), known, self.strength)
        if is_open is not None:
            is_open = is_open.to(resid.device)[:, None]
            if self.gate_scope == "change":
                mask = mask & is_open
            else:
                target = torch.where(is_open[..., None], target, 0)
        changed = set_coordinates(start, basis, target)
        if unguarded is not None:
            changed = precise + (changed - start)
        changed = self._controlled(changed, precise, layer, reference)
        if self.keeps_norm:
            changed = rescaled(changed, precise)
        return torch.where(mask[..., None], changed.to(resid.dtype), resid)

    @cached_property
    def _anywhere(self) -> Float[Tensor, "layer d_model"]:
        """Where the control `random` goes."""
        return random_basis(self.direction.basis[:, :1], self.control_seed)[:, 0]

    def _controlled(self, changed: Tensor, resid: Tensor, layer: int, reference: Tensor | None) -> Tensor:
        """What the control does instead."""
        if self.control == "sign_flipped":
            return resid - (changed - resid)
        if self.control == "full_state":
            return (self.strength * reference.to(resid.device).float()[:, None]).expand_as(resid)
        if self.control == "random":
            size = (changed - resid).norm(dim=-1, keepdim=True)
            return resid + size * self._anywhere[layer].to(resid.device)
        return changed

    def _known(self, layer: int, resid: Tensor, basis: Tensor, reference: Tensor | None) -> RuleInputs:
        """What the rule asks for."""
        needs, at, found = RULES[self.rule].needs, self.fitted_at(layer), {}
        if "reference" in needs and reference is not None:
            found["reference"] = coordinates(reference.to(resid.device).float(), basis)[:, None]
        if "harmful" in needs:
            found |= {"harmful": self.direction.harmful[at].to(resid.device)}
            found |= {"harmless": self.direction.harmless[at].to(resid.device)}
        if "cosine" in needs:
            found["length"] = resid.norm(dim=-1, keepdim=True)
            found["cosine"] = centred_cosine(resid, basis, self.direction.centre[at].to(resid.device))
        return RuleInputs(**found)

    def _repr_html_(self) -> str:
        from interp import cards

        return cards.of_guard(self)


def _first_place(mask: Bool[Tensor, "batch pos"]) -> int | None:
    """Before which nothing changes, so that a long prompt costs nothing; None where nothing changes at all.

    On an accelerator asking would take longer than changing: 0.
    """
    if mask.device.type != "cpu":
        return 0
    places = mask.any(0).nonzero()
    return int(places[0]) if len(places) else None
