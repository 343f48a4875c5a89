"""What is asked of every prompt, and batches of prompts run for it."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from interp.activations import Arrays, Fields
from interp.families import ModelError, first_line, is_out_of_memory
from interp.inputs import Prompt, collate, collate_alike
from interp.token_positions import ALL, TokenPositions
from interp.tracing.forward import PassSpec, Remote, read
from interp.tracing.prefix import CutPrompts, LastPrefix, Prefix, shares_prefixes
from interp.tracing.request import TraceRequest
from interp.vlm import LLM, VLM


class Runner:
    """Runs batches, and keeps the last shared prefix in case that the next one begins with it too."""

    def __init__(
        self, model: VLM | LLM, wanted: TraceRequest, fields: Fields, share_prefix: bool, remote: Remote = False
    ):
        self.model, self.wanted, self.fields, self.remote = model, wanted, fields, remote
        # What a server keeps of a pass can't be given to the next one.
        self._may_share = share_prefix and wanted.tokens != ALL and not remote
        self._kept: LastPrefix | None = None
        self._fits: int | None = None
        """Prompts in a pass, where more have not fitted."""

    @cached_property
    def _shares(self) -> bool:
        return self._may_share and shares_prefixes(self.model)

    def __call__(self, prompts: list[Prompt], keys: list[str]) -> Arrays:
        """States of one batch of the plan."""
        parts, start = [], 0
        shares = any(keys) and self._shares
        # Different numbers of pictures don't go into one pass.
        kinds = [(key if shares else "", len(prompt.pictures)) for key, prompt in zip(keys, prompts, strict=True)]
        for (key, _), some in groupby(kinds):
            group = prompts[start : (start := start + len(list(some)))]
            if self._kept and self._kept.key != key:
                self._kept = None
            size = self._fits or len(group)
            pieces = [self._in_memory(group[i : i + size], key) for i in range(0, len(group), size)]
            found = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
            parts.append(self._no_pictures(len(group)) | found)
        return {name: np.concatenate([part[name] for part in parts]) for name in self.fields}

    def _no_pictures(self, n: int) -> Arrays:
        return {site: np.full((n, *self.fields[site].lengths), np.nan, np.float32) for site in self.wanted.vision_sites}

    def _in_memory(self, prompts: list[Prompt], key: str) -> Arrays:
        """In halves where memory does not suffice."""
        try:
            return (self._shared(prompts, key) if key else None) or self._plain(prompts)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._kept = None
            if len(prompts) == 1:
                raise ModelError(
                    f"one prompt does not fit into memory beside {self.model.name!r}: {first_line(error)}"
                ) from error
        # Outside of the handler: what the error holds on to is free by now.
        middle = self._fits = len(prompts) // 2
        halves = [self._in_memory(half, key) for half in (prompts[:middle], prompts[middle:])]
        return {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}

    def _plain(self, prompts: list[Prompt]) -> Arrays:
        """All of each prompt, in one pass."""
        wanted, pictured = self.wanted, bool(prompts[0].pictures)
        sites = wanted.sites if pictured else wanted.decoder_sites
        if not sites:
            return {}
        if wanted.vision_sites and pictured and len(prompts) > 1:
            # Which of a batch's patches belong to which prompt is known to the families alone.
            alone = [self._plain([prompt]) for prompt in prompts]
            return {name: np.concatenate([one[name] for one in alone]) for name in alone[0]}
        batch = collate(self.model, prompts)
        masks = batch["attention_mask"].bool().cpu()
        ids = [row[mask] for row, mask in zip(batch["input_ids"].cpu(), masks, strict=True)]
        spots = self._spots(prompts, ids)
        padding = [int((~mask).sum()) for mask in masks]
        reading = _reading(wanted, sites, spots, padding, masks.shape[1])
        return self._arranged(read(self.model, batch, reading, remote=self.remote), spots)

    def _shared(self, prompts: list[Prompt], key: str) -> Arrays | None:
        """What stands before the requests once, then the requests; None where a single token before them is read."""
        wanted = self.wanted
        first, rows = collate_alike(self.model, prompts)
        shared = CutPrompts.of(self.model, first, rows)
        if shared is None:
            return None
        spots, n_prefix = self._spots(prompts, rows), shared.n_prefix
        if any(pick < n_prefix for spot in spots for pick in spot.picks):
            return None
        if self._kept is None or not self._kept.serves(key, shared):
            self._kept = None
            beginning = TokenPositions((), spots[0].means[:, :n_prefix])
            reading = _reading(wanted, wanted.sites, [beginning], [0], n_prefix)
            self._kept = LastPrefix(key, shared.prefix["input_ids"], Prefix.run(self.model, shared, reading))
        prefix = self._kept.prefix
        states = {
            site: prefix.states[site].expand(len(prompts), *[-1] * (prefix.states[site].ndim - 1))
            for site in wanted.vision_sites
        }
        if wanted.decoder_sites:
            ends = [spot.behind(n_prefix) for spot in spots]

            def behind(some: Sequence[int], n_pos: int) -> PassSpec:
                return _reading(wanted, wanted.decoder_sites, [ends[i] for i in some], [0] * len(some), n_pos)

            for site, values in prefix.read_suffixes(self.model, shared, behind).items():
                values[:, :, len(spots[0].picks) :] += prefix.states[site]
                states[site] = values
        return self._arranged(states, spots)

    def _spots(self, prompts: list[Prompt], ids: list[Tensor]) -> list[TokenPositions]:
        return [TokenPositions.of(self.model, *one, self.wanted.tokens) for one in zip(prompts, ids, strict=True)]

    def _arranged(self, states: Mapping[str, Tensor], spots: list[TokenPositions]) -> Arrays:
        """Sums divided to means, tokens in the order asked for; and the places of the single ones."""
        found = {site: states[site].numpy() for site in self.wanted.vision_sites if site in states}
        if not self.wanted.decoder_sites:
            return found
        n_picks, order = max(len(spot.picks) for spot in spots), self.wanted.order
        is_there = torch.tensor([[i < len(spot.picks) for i in range(n_picks)] for spot in spots], dtype=torch.bool)
        counts = torch.stack([spot.means.sum(1) for spot in spots])
        # A mean over nothing is no number: 0 / 0.
        divide = torch.cat([torch.where(is_there, 1.0, torch.nan), counts.float()], dim=1)
        places = np.full((len(spots), self.fields["position"].lengths[0]), -1, np.int32)
        for row, spot in enumerate(spots):
            places[row, : len(spot.picks)] = spot.picks
        for site in self.wanted.decoder_sites:
            values = (states[site] / divide[:, None, :, None])[:, :, order].numpy()
            missing = places.shape[1] - values.shape[2]
            found[site] = np.pad(values, [(0, 0), (0, 0), (0, missing), (0, 0)], constant_values=np.nan)
        return found | {"position": places[:, order]}


def _reading(
    wanted: TraceRequest, sites: tuple[str, ...], spots: list[TokenPositions], padding: list[int], n_pos: int
) -> PassSpec:
    """Where to read in a batch, whose rows begin with so much padding."""
    n_picks = max(len(spot.picks) for spot in spots)
    picks = torch.zeros(len(spots), n_picks, dtype=torch.long)
    weights = torch.zeros(len(spots), len(spots[0].means), n_pos)
    for row, (spot, before) in enumerate(zip(spots, padding, strict=True)):
        picks[row, : len(spot.picks)] = torch.tensor(spot.picks, dtype=torch.long) + before
        weights[row, :, before : before + spot.means.shape[1]] = spot.means.float()
    return PassSpec(sites, wanted.layers, picks, weights if weights.shape[1] else None)
