"""A trace request: the sites, tokens and layers to read of every prompt, checked before anything runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import index

import torch

from interp.activations import Field, Fields
from interp.inputs import Prompt, collate, collate_same_pictures
from interp.residual_stream import residual_stream
from interp.token_positions import ALL_TOKENS, MEANS, Layers, Token, TokenPositions, Tokens, TraceError, check_tokens
from interp.tracing.forward import DECODER_SITES, SITES, VISION_SITES, PassSpec, Remote, read
from interp.vlm import LLM, VLM


@dataclass(frozen=True)
class TraceRequest:
    """Sites, tokens and layers to read of every prompt."""

    sites: tuple[str, ...]
    tokens: tuple[Token, ...] | str
    layers: tuple[int, ...]

    @classmethod
    def of(cls, model: VLM | LLM, sites: Sequence[str], tokens: Tokens, layers: Layers | None) -> "TraceRequest":
        """Check the arguments of `interp.trace` against the model.

        Args:
            model: the model to trace.
            sites: names from `SITES`.
            tokens: token roles, positions, or `all`.
            layers: decoder blocks; None for all.

        Raises:
            TraceError: a site, token or layer does not exist.
            ModelError: the family has no such site.
        """
        unknown = sites if isinstance(sites, str) else [site for site in sites if site not in SITES]
        if unknown or not sites:
            raise TraceError(f"sites {unknown or sites!r}; expected some of {', '.join(SITES)}")
        tokens = check_tokens(tokens)
        # `index` accepts NumPy's integers too, such as the layers of another trace.
        layers = tuple(range(model.n_layers)) if layers is None else tuple(sorted({index(layer) for layer in layers}))
        if not layers or not all(0 <= layer < model.n_layers for layer in layers):
            raise TraceError(f"layers {layers}; {model.name!r} has layers 0 to {model.n_layers - 1}")
        if isinstance(model, LLM) and set(sites) & set(VISION_SITES):
            raise TraceError(f"{model.name!r} is a text-only model and has no {' and '.join(VISION_SITES)}")
        if set(sites) & set(DECODER_SITES):
            # Also refuses models whose blocks pass on something else than one state per token.
            stream = residual_stream(model)
            if {"attn_out", "mlp_out"} & set(sites):
                stream.check_parts(model.name, layers)
        return cls(tuple(sites), tokens, layers)

    @property
    def decoder_sites(self) -> tuple[str, ...]:
        """The requested sites of decoder blocks."""
        return tuple(site for site in self.sites if site in DECODER_SITES)

    @property
    def vision_sites(self) -> tuple[str, ...]:
        """The requested sites of the vision tower and the projector."""
        return tuple(site for site in self.sites if site in VISION_SITES)

    @property
    def token_order(self) -> list[int] | slice:
        """Indices that bring tokens from the order of a pass, where means come last, to the requested order."""
        if self.tokens == ALL_TOKENS:
            return slice(None)
        pass_order = sorted(range(len(self.tokens)), key=lambda i: self.tokens[i] in MEANS)
        return [pass_order.index(i) for i in range(len(self.tokens))]

    def fields(self, model: VLM | LLM, prompts: Sequence[Prompt], dtype: str, remote: Remote = False) -> Fields:
        """Return the arrays that a trace of these prompts fills.

        Args:
            model: the model to trace.
            prompts: all of them are checked for the requested tokens.
            dtype: precision of the arrays.
            remote: see `interp.trace`.

        Raises:
            TraceError: a prompt lacks a requested token, or vision sites are requested and no prompt has pictures.
        """
        n_tokens, fields = len(self.tokens), {}
        if self.tokens == ALL_TOKENS or not set(self.tokens) <= {"last", *MEANS}:
            n_tokens = self._check_positions(model, prompts)
        lengths = (len(self.layers), n_tokens, model.d_model)
        for site in self.decoder_sites:
            fields[site] = Field(("layer", "token", "d_model"), lengths, dtype)
        if self.decoder_sites:
            fields["position"] = Field(("token",), (n_tokens,), "int32")
        pictured = next((prompt for prompt in prompts if prompt.pictures), None)
        if self.vision_sites and pictured is None:
            raise TraceError(f"{' and '.join(self.vision_sites)} of prompts without pictures; expected some with")
        if self.vision_sites:
            # Measured, since configs name the width of a vision tower in too many ways.
            spec = PassSpec(self.vision_sites, (), torch.zeros(1, 0).long())
            states = read(model, collate(model, [pictured]), spec, remote=remote)
            dims = {"vision_resid_post": ("vision_layer", "d_vision"), "projector_out": ("d_model",)}
            fields |= {site: Field(dims[site], tuple(states[site].shape[1:]), dtype) for site in self.vision_sites}
        return fields

    def _check_positions(self, model: VLM | LLM, prompts: Sequence[Prompt]) -> int:
        """Look for the tokens in every prompt, and return the length of the token dimension.

        Raises:
            TraceError: a prompt lacks a token; names the prompt.
        """
        longest = 0
        for pictures, group in groupby(range(len(prompts)), key=lambda i: prompts[i].pictures):
            rows = list(group)
            alike = [prompts[i] for i in rows]
            if pictures:
                ids = collate_same_pictures(model, alike)[1]
            else:
                ids = [collate(model, [prompt])["input_ids"][0].cpu() for prompt in alike]
            for i, prompt, row in zip(rows, alike, ids, strict=True):
                try:
                    TokenPositions.of(model, prompt, row, self.tokens)
                except ValueError as error:
                    raise TraceError(f"prompt {i} ({prompt.query.text!r}): {error}") from error
            longest = max(longest, *map(len, ids))
        return longest if self.tokens == ALL_TOKENS else len(self.tokens)
