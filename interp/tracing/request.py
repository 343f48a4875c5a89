"""What a trace asks of every prompt, checked before anything runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import index

import torch

from interp.activations import Field, Fields
from interp.families import ModelError
from interp.inputs import Prompt, collate, collate_alike
from interp.token_positions import ALL, MEANS, Layers, Token, TokenPositions, Tokens, TraceError, check_tokens
from interp.tracing.forward import DECODER_SITES, SITES, VISION_SITES, PassSpec, Remote, read
from interp.vlm import LLM, VLM


@dataclass(frozen=True)
class TraceRequest:
    """What is read of every prompt."""

    sites: tuple[str, ...]
    tokens: tuple[Token, ...] | str
    layers: tuple[int, ...]

    @classmethod
    def of(cls, model: VLM | LLM, sites: Sequence[str], tokens: Tokens, layers: Layers | None) -> "TraceRequest":
        """Raises:
        TraceError: a site, token or layer that does not exist.
        ModelError: the family has no such site.
        """
        strange = sites if isinstance(sites, str) else [site for site in sites if site not in SITES]
        if strange or not sites:
            raise TraceError(f"sites {strange or sites!r}; expected some of {', '.join(SITES)}")
        tokens = check_tokens(tokens)
        # Also NumPy's integers: layers of another trace, for instance.
        layers = tuple(range(model.n_layers)) if layers is None else tuple(sorted({index(layer) for layer in layers}))
        if not layers or not all(0 <= layer < model.n_layers for layer in layers):
            raise TraceError(f"layers {layers}; {model.name!r} has layers 0 to {model.n_layers - 1}")
        if isinstance(model, LLM) and set(sites) & set(VISION_SITES):
            raise TraceError(f"{model.name!r} is a text-only model and has no {' and '.join(VISION_SITES)}")
        if isinstance(model, VLM) and not model.family.is_sum and {"attn_out", "mlp_out"} & set(sites):
            raise ModelError(f"{model.name!r} scales what its attention puts out; attn_out and mlp_out can't be read")
        return cls(tuple(sites), tokens, layers)

    @property
    def decoder_sites(self) -> tuple[str, ...]:
        return tuple(site for site in self.sites if site in DECODER_SITES)

    @property
    def vision_sites(self) -> tuple[str, ...]:
        return tuple(site for site in self.sites if site in VISION_SITES)

    @property
    def order(self) -> list[int] | slice:
        """From single tokens first and means last to the order that was asked for."""
        if self.tokens == ALL:
            return slice(None)
        read_order = sorted(range(len(self.tokens)), key=lambda i: self.tokens[i] in MEANS)
        return [read_order.index(i) for i in range(len(self.tokens))]

    def fields(self, model: VLM | LLM, prompts: Sequence[Prompt], dtype: str, remote: Remote = False) -> Fields:
        """The arrays that this fills.

        Raises:
            TraceError: a token that a prompt does not have, or vision sites where there are no pictures.
        """
        n_tokens, fields = len(self.tokens), {}
        if self.tokens == ALL or not set(self.tokens) <= {"last", *MEANS}:
            n_tokens = self._check_tokens(model, prompts)
        lengths = (len(self.layers), n_tokens, model.d_model)
        for site in self.decoder_sites:
            fields[site] = Field(("layer", "token", "d_model"), lengths, dtype)
        if self.decoder_sites:
            fields["position"] = Field(("token",), (n_tokens,), "int32")
        pictured = next((prompt for prompt in prompts if prompt.pictures), None)
        if self.vision_sites and pictured is None:
            raise TraceError(f"{' and '.join(self.vision_sites)} of prompts without pictures; expected some with")
        if self.vision_sites:
            # Configs name the width of a vision tower in too many ways: it is measured.
            nothing_else = PassSpec(self.vision_sites, (), torch.zeros(1, 0).long())
            seen = read(model, collate(model, [pictured]), nothing_else, remote=remote)
            dims = {"vision_resid_post": ("vision_layer", "d_vision"), "projector_out": ("d_model",)}
            fields |= {site: Field(dims[site], tuple(seen[site].shape[1:]), dtype) for site in self.vision_sites}
        return fields

    def _check_tokens(self, model: VLM | LLM, prompts: Sequence[Prompt]) -> int:
        """Looks for the tokens in every prompt before anything is run. How long the token dimension is.

        Raises:
            TraceError: a prompt has no such token; says which.
        """
        longest = 0
        for pictures, group in groupby(range(len(prompts)), key=lambda i: prompts[i].pictures):
            rows = list(group)
            some = [prompts[i] for i in rows]
            if pictures:
                ids = collate_alike(model, some)[1]
            else:
                ids = [collate(model, [prompt])["input_ids"][0].cpu() for prompt in some]
            for i, prompt, row in zip(rows, some, ids, strict=True):
                try:
                    TokenPositions.of(model, prompt, row, self.tokens)
                except ValueError as error:
                    raise TraceError(f"prompt {i} ({prompt.query.text!r}): {error}") from error
            longest = max(longest, *map(len, ids))
        return longest if self.tokens == ALL else len(self.tokens)
