"""Batches of prompts run for a trace request: with a shared prefix where possible, in halves where memory runs out."""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from interp.activations import Arrays, Fields
from interp.errors import NO_NUMBERS, ModelError, if_it_fits
from interp.inputs import Prompt, collate, collate_same_pictures
from interp.token_positions import ALL_TOKENS, TokenPositions
from interp.tracing.forward import PassSpec, Remote, read
from interp.tracing.prefix import CutPrompts, LastPrefix, Prefix, shares_prefixes
from interp.tracing.request import TraceRequest
from interp.vlm import LLM, VLM


class Runner:
    """Runs batches for one request; keeps the last shared prefix in case the next batch begins with it too."""

    def __init__(
        self, model: VLM | LLM, request: TraceRequest, fields: Fields, share_prefix: bool, remote: Remote = False
    ):
        """Prepare a runner; nothing runs yet.

        Args:
            model: left unchanged.
            request: sites, tokens and layers.
            fields: the arrays that the batches fill, from `TraceRequest.fields`.
            share_prefix: False runs every prompt in full.
            remote: see `interp.trace`.
        """
        self.model, self.request, self.fields, self.remote = model, request, fields, remote
        # The keys and values of a pass on a server can't be passed on to the next pass.
        self._may_share = share_prefix and request.tokens != ALL_TOKENS and not remote
        self._last_prefix: LastPrefix | None = None
        self._max_prompts: int | None = None
        """Prompts in one pass, once more of them have not fitted into memory."""

    @cached_property
    def _shares(self) -> bool:
        return self._may_share and shares_prefixes(self.model)

    def __call__(self, prompts: list[Prompt], keys: list[str]) -> Arrays:
        """Return the states of one batch of the plan."""
        parts, start = [], 0
        shares = any(keys) and self._shares
        # Prompts with different numbers of pictures don't go into one pass.
        kinds = [(key if shares else "", len(prompt.pictures)) for key, prompt in zip(keys, prompts, strict=True)]
        for (key, _), members in groupby(kinds):
            group = prompts[start : (start := start + len(list(members)))]
            if self._last_prefix and self._last_prefix.key != key:
                self._last_prefix = None
            size = self._max_prompts or len(group)
            passes = [self._run_in_memory(group[i : i + size], key) for i in range(0, len(group), size)]
            parts.append(self._no_pictures(len(group)) | _concatenated(passes))
        return {name: np.concatenate([part[name] for part in parts]) for name in self.fields}

    def _no_pictures(self, n: int) -> Arrays:
        """Return the vision sites of prompts without pictures: NaN."""
        sites = self.request.vision_sites
        return {site: np.full((n, *self.fields[site].lengths), np.nan, np.float32) for site in sites}

    def _run_in_memory(self, prompts: list[Prompt], key: str) -> Arrays:
        """Run prompts in one pass, or in halves if memory does not suffice."""
        arrays = if_it_fits(partial(self._run_at_once, prompts, key), len(prompts), self.model.name)
        if arrays is not None:
            return arrays
        self._last_prefix = None
        middle = self._max_prompts = len(prompts) // 2
        return _concatenated([self._run_in_memory(half, key) for half in (prompts[:middle], prompts[middle:])])

    def _run_at_once(self, prompts: list[Prompt], key: str) -> Arrays:
        return (self._run_shared(prompts, key) if key else None) or self._run_whole(prompts)

    def _run_whole(self, prompts: list[Prompt]) -> Arrays:
        """Run each prompt in full, all of them in one pass."""
        request, has_pictures = self.request, bool(prompts[0].pictures)
        sites = request.sites if has_pictures else request.decoder_sites
        if not sites:
            return {}
        if request.vision_sites and has_pictures and len(prompts) > 1:
            # Only the family's own code knows which patches of a batch belong to which prompt.
            return _concatenated([self._run_whole([prompt]) for prompt in prompts])
        batch = collate(self.model, prompts)
        masks = batch["attention_mask"].bool().cpu()
        ids = [row[mask] for row, mask in zip(batch["input_ids"].cpu(), masks, strict=True)]
        positions = self._positions(prompts, ids)
        padding = [int((~mask).sum()) for mask in masks]
        spec = _pass_spec(request, sites, positions, padding, masks.shape[1])
        return self._arrange(read(self.model, batch, spec, remote=self.remote), positions)

    def _run_shared(self, prompts: list[Prompt], key: str) -> Arrays | None:
        """Run what all prompts begin with once, then their suffixes; None if a token before the cut is requested."""
        request = self.request
        first, rows = collate_same_pictures(self.model, prompts)
        cut = CutPrompts.of(self.model, first, rows)
        if cut is None:
            return None
        positions, n_prefix = self._positions(prompts, rows), cut.n_prefix
        if any(pick < n_prefix for position in positions for pick in position.picks):
            return None
        prefix = self._prefix_of(key, cut, positions[0])
        states = {
            site: prefix.states[site].expand(len(prompts), *[-1] * (prefix.states[site].ndim - 1))
            for site in request.vision_sites
        }
        if request.decoder_sites:
            in_suffix = [position.after(n_prefix) for position in positions]

            def spec_of(chosen: Sequence[int], n_pos: int) -> PassSpec:
                in_chosen = [in_suffix[i] for i in chosen]
                return _pass_spec(request, request.decoder_sites, in_chosen, [0] * len(chosen), n_pos)

            for site, values in prefix.read_suffixes(self.model, cut, spec_of).items():
                # Means run over prefix and suffix: their sums are added here and divided in `_arrange`.
                values[:, :, len(positions[0].picks) :] += prefix.states[site]
                states[site] = values
        return self._arrange(states, positions)

    def _prefix_of(self, key: str, cut: CutPrompts, positions: TokenPositions) -> Prefix:
        """Return the prefix of cut prompts, which is run unless it was the last one."""
        if self._last_prefix is None or not self._last_prefix.serves(key, cut):
            # Freed before the next one is made.
            self._last_prefix = None
            sums_only = TokenPositions((), positions.means[:, : cut.n_prefix])
            spec = _pass_spec(self.request, self.request.sites, [sums_only], [0], cut.n_prefix)
            self._last_prefix = LastPrefix(key, cut.prefix["input_ids"], Prefix.run(self.model, cut, spec))
        return self._last_prefix.prefix

    def _positions(self, prompts: list[Prompt], ids: list[Tensor]) -> list[TokenPositions]:
        pairs = zip(prompts, ids, strict=True)
        return [TokenPositions.of(self.model, prompt, row, self.request.tokens) for prompt, row in pairs]

    def _arrange(self, states: Mapping[str, Tensor], positions: list[TokenPositions]) -> Arrays:
        """Divide sums into means and bring tokens into the requested order; add the positions of single tokens."""
        arrays = {site: states[site].numpy() for site in self.request.vision_sites if site in states}
        if not self.request.decoder_sites:
            return arrays
        n_picks, order = max(len(position.picks) for position in positions), self.request.token_order
        exists = torch.tensor([[i < len(position.picks) for i in range(n_picks)] for position in positions]).bool()
        counts = torch.stack([position.means.sum(1) for position in positions])
        # Tokens that a prompt lacks become NaN; so do means over no tokens: 0 / 0.
        divisor = torch.cat([torch.where(exists, 1.0, torch.nan), counts.float()], dim=1)
        places = np.full((len(positions), self.fields["position"].lengths[0]), -1, np.int32)
        for row, position in enumerate(positions):
            places[row, : len(position.picks)] = position.picks
        for site in self.request.decoder_sites:
            self._check_finite(site, states[site], (divisor > 0)[:, None])
            values = (states[site] / divisor[:, None, :, None])[:, :, order].numpy()
            n_missing = places.shape[1] - values.shape[2]
            arrays[site] = np.pad(values, [(0, 0), (0, 0), (0, n_missing), (0, 0)], constant_values=np.nan)
        return arrays | {"position": places[:, order]}

    def _check_finite(self, site: str, states: Tensor, is_there: Tensor) -> None:
        """Check that states of tokens which a prompt has are numbers.

        Raises:
            ModelError: some are not.
        """
        is_wrong = ((~states.isfinite()).any(-1) & is_there).any(-1).any(0)
        if is_wrong.any():
            layers = [layer for layer, wrong in zip(self.request.layers, is_wrong.tolist(), strict=True) if wrong]
            raise ModelError(
                f"{self.model.name!r} has states that are no finite numbers, {site} at layers {layers}: {NO_NUMBERS}"
            )


def _concatenated(parts: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _pass_spec(
    request: TraceRequest, sites: tuple[str, ...], positions: list[TokenPositions], padding: list[int], n_pos: int
) -> PassSpec:
    """Return what to read in a batch.

    Args:
        request: its layers are read.
        sites: the sites to read.
        positions: token positions of each row, counted without padding.
        padding: number of padding tokens on the left of each row.
        n_pos: length of the rows.
    """
    n_picks = max(len(position.picks) for position in positions)
    picks = torch.zeros(len(positions), n_picks, dtype=torch.long)
    weights = torch.zeros(len(positions), len(positions[0].means), n_pos)
    for row, (position, n_before) in enumerate(zip(positions, padding, strict=True)):
        picks[row, : len(position.picks)] = torch.tensor(position.picks, dtype=torch.long) + n_before
        weights[row, :, n_before : n_before + position.means.shape[1]] = position.means.float()
    return PassSpec(sites, request.layers, picks, weights if weights.shape[1] else None)
