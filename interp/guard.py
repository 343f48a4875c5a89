"""The guard: a value that says what is changed in a model's states, where and when, and that is put on a model."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import display, guard_change, guard_files, guard_hooks
from interp.bare import bare
from interp.directions import SafetyDirection, random_basis
from interp.inputs import Prompt, text_prompt
from interp.projection import GATE_SCOPES, GATES, ProbeGate, check_rule, coordinates, rule_named, sign_gate
from interp.stage_times import stage
from interp.tracing.forward import last_resid_post
from interp.vlm import LLM, VLM

REFERENCES = ("prompt_text", "transcription", "caption", "prompt_text+transcription", "prompt_text+caption", "oracle")
"""The user's text; the VLM's transcription or caption of the picture; both texts; the true request, an upper bound."""
SOURCES = ("vlm_text", "llm")
"""The VLM itself without a picture; the original aligned checkpoint."""
POSITIONS = ("last_prefill", "generated", "last", "text", "all")
"""The last prompt token; generated tokens that are fed back; both; prompt tokens except pictures; all but padding."""
CONTROLS = ("random", "sign_flipped", "full_state")
"""Changes that a guard is compared with; see `Guard.control`."""


def is_layer(layer: object, n_layers: int) -> bool:
    """Return whether this is the number of a layer."""
    return isinstance(layer, Integral) and 0 <= layer < n_layers


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
    """The text that is shown to the aligned LLM. All but `prompt_text` have to be made beforehand and passed."""
    source: str = "vlm_text"
    """Model whose states are read: the VLM itself without a picture, or the aligned checkpoint (`llm`; pass states)."""
    direction_layer: int | None = None
    """Layer at which the direction was fitted; by default the layer where it is applied."""
    gate_scope: str = "change"
    """Effect of a closed gate: the `change` is not made, or only the `target` is 0 and states are still projected."""
    threshold: float = 0.0
    """Border of the reference's first coordinate for the gate `threshold`."""
    probe: ProbeGate | None = None
    """Probe of the gate `probe`. It and `threshold` are read at the first guarded layer, `sign` at every layer."""
    keeps_norm: bool = False
    """True if changed states are scaled back to their norm."""
    frozen_shift: bool = False
    """True if the change is measured on the unguarded run, as in ShiftDC's released code: a guarded layer then does not
    see the changes at the layers before it. For a single layer this makes no difference."""
    all_writes: bool = False
    """True if a block's input and the outputs of its attention and MLP are changed, instead of the block's output."""
    control: str | None = None
    """A control to compare the guard with. `random`: a change of the same size along a random vector. `sign_flipped`:
    the opposite change. `full_state`: the whole state of the reference is inserted (V = I)."""
    control_seed: int = 0
    """Seed of the control `random`."""
    model: str = field(default="", compare=False)
    """Name of the model that the guard was loaded for, or chosen on."""
    chosen_by: str | None = field(default=None, compare=False)
    """Name of the rule that chose the guard on validation."""
    validation: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Numbers on validation, by name."""

    def __post_init__(self):
        check_rule(self.rule, self.direction.rank)
        self._check_words()
        self._check_numbers()
        self._check_combinations()

    def _check_words(self) -> None:
        for name, value, allowed in (
            ("gate", self.gate, GATES),
            ("gate_scope", self.gate_scope, GATE_SCOPES),
            ("positions", self.positions, POSITIONS),
            ("reference", self.reference, REFERENCES),
            ("source", self.source, SOURCES),
            ("control", self.control, (None, *CONTROLS)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} {value!r} does not exist; expected one of {', '.join(filter(None, allowed))}")

    def _check_numbers(self) -> None:
        n_layers, _, d_model = self.direction.basis.shape
        if not self.layers or not all(is_layer(layer, n_layers) for layer in self.layers):
            raise ValueError(f"layers {self.layers}; expected at least one, each from 0 to {n_layers - 1}")
        if len(set(self.layers)) != len(self.layers):
            raise ValueError(f"layers {self.layers}; expected each layer once")
        for name in ("strength", "threshold"):
            if not math.isfinite(value := getattr(self, name)):
                raise ValueError(f"{name} {value}; expected a finite number")
        if self.direction_layer is not None and not is_layer(self.direction_layer, n_layers):
            raise ValueError(f"direction_layer {self.direction_layer}; expected 0 to {n_layers - 1}")
        if self.probe is not None and len(self.probe.weight) != d_model:
            raise ValueError(f"a probe of width {len(self.probe.weight)} for states of width {d_model}")
        if self.probe is not None and not self.probe.is_finite:
            raise ValueError("the probe holds numbers that are not finite; fit it again")
        for layer in dict.fromkeys(map(self.fitted_at, self.layers)):
            self.direction.check_usable(layer)

    def _check_combinations(self) -> None:
        if (self.gate == "probe") != (self.probe is not None):
            raise ValueError(f"gate {self.gate!r} with probe={self.probe}; expected both, or neither")
        # `adaptive` rules need the centre, which is fitted together with the class means.
        needs = set(rule_named(self.rule).needs)
        if {"harmful", "cosine"} & needs and self.direction.harmful is None:
            raise ValueError(f"rule {self.rule!r} needs the class means of a direction made by SafetyDirection.fit")
        if "readout" in needs and (self.direction.readout is None or self.direction.centre is None):
            raise ValueError(
                f"rule {self.rule!r} needs a direction with a readout and a centre, as alpha_steer, null_steer and "
                "re_gap of interp.related_methods fit it"
            )
        # The unguarded run gives one state per prompt, that of its last token.
        if self.frozen_shift and self.positions != "last_prefill":
            raise ValueError(f"frozen_shift with positions {self.positions!r}; expected last_prefill")
        # A reference has one state per layer, which its separate writes cannot be compared with.
        if self.all_writes and (self.rule, self.gate) != ("ablate", "always"):
            raise ValueError(f"all_writes with rule {self.rule!r}, gate {self.gate!r}; expected ablate, always")
        if self.all_writes and (self.frozen_shift or self.control or self.keeps_norm):
            raise ValueError("all_writes can't be combined with frozen_shift, control or keeps_norm; drop one of them")
        if self.control == "full_state" and (self.rule, self.gate_scope) != ("substitute", "change"):
            raise ValueError(
                f"control full_state with rule {self.rule!r}, gate_scope {self.gate_scope!r}; "
                "expected substitute, change"
            )

    def basis(self, layer: int) -> Float[Tensor, "rank d_model"]:
        """Return the basis that is used at a guarded layer."""
        return self.direction.basis[self.fitted_at(layer)]

    def fitted_at(self, layer: int) -> int:
        """Return the layer at which the direction of a guarded layer was fitted."""
        return layer if self.direction_layer is None else self.direction_layer

    @property
    def needs_reference(self) -> bool:
        """True if the rule or the gate uses the state of a reference."""
        return "reference" in rule_named(self.rule).needs or self.gate != "always"

    @property
    def reads_prompts(self) -> bool:
        """True if the guard can read its references from the prompts themselves; otherwise they have to be passed."""
        return self.reference == "prompt_text" and self.source == "vlm_text"

    def random_direction(self, layer: int) -> Float[Tensor, " d_model"]:
        """Return the unit vector along which the control `random` moves the states of a guarded layer."""
        return self._random_directions[layer]

    @cached_property
    def _random_directions(self) -> Float[Tensor, "layer d_model"]:
        return random_basis(self.direction.basis[:, :1], self.control_seed)[:, 0]

    def read(self, model: VLM | LLM, references: Sequence[str]) -> Float[Tensor, "batch layer d_model"]:
        """Read the model's states, without a picture, at the last token of each reference in its chat template.

        The model runs bare: no guard that is on it changes these states.
        """
        with bare(model.model), stage("reference"):
            return last_resid_post(model, [text_prompt(text) for text in references])

    def opens(self, states: Float[Tensor, "batch layer d_model"], layer: int | None = None) -> Bool[Tensor, " batch"]:
        """Return whether the gate opens for each reference.

        Args:
            states: states of the references, from `read`.
            layer: a guarded layer, by default the first. Only the gate `sign` depends on it, as in the paper.
        """
        layer = self.layers[0] if layer is None else layer
        return self.opens_at(layer, {guarded: states[:, guarded] for guarded in self.layers})

    def opens_at(self, layer: int, references: Mapping[int, Float[Tensor, "batch d_model"]]) -> Bool[Tensor, " batch"]:
        """Return whether the gate opens for each reference, given their states by layer."""
        # As in the paper, `sign` decides at each layer; thresholds and probes are calibrated at the first one.
        gate_layer = layer if self.gate == "sign" else self.layers[0]
        reference = references[gate_layer]
        if self.gate == "always":
            return torch.ones(len(reference), dtype=torch.bool, device=reference.device)
        if self.gate == "probe":
            return self.probe(reference.float())
        own = coordinates(reference.float(), self.basis(gate_layer).to(reference.device))
        return sign_gate(own, self.threshold if self.gate == "threshold" else 0.0)

    def change(
        self,
        resid: Float[Tensor, "batch pos d_model"],
        layer: int,
        reference: Float[Tensor, "batch d_model"] | None,
        mask: Bool[Tensor, "batch pos"],
        is_open: Bool[Tensor, " batch"] | None = None,
        unguarded: Float[Tensor, "batch d_model"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the states with the formula applied, in float32, where the mask is True and the gate is open.

        Args:
            resid: the output of the layer.
            layer: the guarded layer.
            reference: the state of each row's reference at that layer; None if the rule needs none.
            mask: positions that may change.
            is_open: the gate of each row, from `opens`; open by default.
            unguarded: the state on which a frozen shift is measured.
        """
        return guard_change.change(self, resid, layer, reference, mask, is_open, unguarded)

    def on(
        self,
        vlm: VLM | LLM,
        references: Sequence[str] | Float[Tensor, "batch layer d_model"] | None = None,
        prompt_lengths: Sequence[int] | Int[Tensor, " batch"] | None = None,
    ) -> AbstractContextManager[None]:
        """Guard every forward pass and `generate` of `vlm.model` inside a `with` block; nothing is left behind.

        Guards nest: each reads its references from the bare model, and at the same layer the inner one acts first.
        Beams, sampling, streaming, batches and `pipeline("image-text-to-text")` are guarded, with and without a cache.
        Hooks belong to the model, so all passes in a block have to come from one thread, whichever it is; a pass from
        another one is an error, in that thread.

        A guard that is off somewhere raises an error: at the end of a pass in which a guarded layer did not run, or ran
        twice, and at the end of a block through whose model no pass went (a compiled copy skips hooks).

        A prompt ends where its pass ends. Passes that go on with an answer (log-likelihoods), passes of several tokens
        after a cache (cached chats, chunked prefill, assisted decoding), static caches, batches that are padded on the
        right and embeddings in place of `input_ids` need `prompt_lengths`.

        Args:
            vlm: the model.
            references: one text for each row of the next batch, or their states from `read`. By default the guard
                reads the text of each prompt from its `input_ids` (reference `prompt_text`). Where `generate` repeats
                rows (beams, several answers), their references are repeated too. They hold for one batch of prompts.
            prompt_lengths: the number of tokens of each row's prompt, padding not counted; by default a prompt is what
                its first pass holds. They too hold for one batch of prompts.

        Raises:
            ValueError: the direction or the references do not have the shape of the model, or the guard needs
                references that it can't read from the prompts.
            ModelError: the model is compiled, so its hooks would not run; inside the block: the text of a prompt
                can't be recovered, the place of its last token is not known, or the guard was off.
        """
        return guard_hooks.attached(self, vlm, references, prompt_lengths)

    def explain(self, vlm: VLM | LLM, prompt: Prompt, references: Sequence[str] | Tensor | None = None) -> pd.DataFrame:
        """Run one prompt and return what the guard does at its last token.

        Args:
            vlm: the model.
            prompt: run once.
            references: a single row; see `on`.

        Returns:
            One row per guarded layer, columns `layer coordinate reference_coordinate gate after delta_norm`: first
            coordinates, whether the gate is open, the first coordinate afterwards, and the size of the change relative
            to the state. Positions other than the last prompt token change nothing here.

        Raises:
            ValueError: the guard changes all writes, so a layer has no single state.
        """
        return guard_hooks.explain(self, vlm, prompt, references)

    def save_pretrained(
        self, folder: str | Path, vlm: VLM | LLM, validation: Mapping[str, float] | None = None
    ) -> None:
        """Save the guard as safetensors and JSON, with a guard card for people.

        Args:
            folder: created if it does not exist.
            vlm: the model that the guard is for.
            validation: numbers on validation, by name; by default its own.

        Raises:
            ValueError: the guard is a control.
        """
        if self.control is not None:
            raise ValueError(f"control guards can't be saved, got control {self.control!r}; use control=None")
        settings = {name: getattr(self, name) for name in guard_files.GUARD_SETTINGS}
        settings |= {"chosen_by": self.chosen_by} if self.chosen_by else {}
        validation = self.validation if validation is None else validation
        guard_files.write(Path(folder), vlm, self.direction, settings, self.probe, validation)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, vlm: VLM | LLM) -> "Guard":
        """Load a guard from a folder, or from a repository on the Hugging Face Hub.

        Raises:
            GuardFileError: no guard is found, it is damaged, or it was made for another model.
        """
        # Inside the block, so that settings which the constructor rejects are reported as a damaged file.
        with guard_files.opened(name_or_path, vlm) as saved:
            return cls(**saved)

    def push_to_hub(
        self, repo_id: str, vlm: VLM | LLM, validation: Mapping[str, float] | None = None, private: bool = True
    ) -> None:
        """Save the guard and upload it as a model repository; needs a token of the Hugging Face Hub.

        Args:
            repo_id: name of the repository, created if it does not exist.
            vlm: the model that the guard is for.
            validation: see `save_pretrained`.
            private: whether a new repository is private.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, vlm, validation)
            guard_files.upload(Path(folder), repo_id, private)

    _repr_html_ = display.html
