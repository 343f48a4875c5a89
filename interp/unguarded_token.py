"""The unguarded run of one token per prompt, from which every guard continues at its own first change.

Below the first layer that a guard changes, its states are those of the unguarded model. So these blocks run once for
all guards: their outputs, keys and values are recorded, and played back instead of being computed for each guard.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from jaxtyping import Float
from torch import Tensor, nn
from transformers.cache_utils import Cache

from interp.errors import is_out_of_memory
from interp.vlm import LLM, VLM

PLAYBACK_TOLERANCE = 1e-3
"""Largest difference between logits that were computed in full and with blocks played back, relative to the largest."""
_PLAYS_BACK: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class UnguardedToken:
    """One token after each prompt, run without a guard."""

    outputs: Sequence[Tensor | tuple]
    """Output of each block, for one position."""
    keys: Sequence[Float[Tensor, "batch head 1 d_head"]]
    """Keys of this token, by layer of the cache; `values` likewise."""
    values: Sequence[Float[Tensor, "batch head 1 d_head"]]
    logits: Float[Tensor, "batch 1 d_vocab"]

    @classmethod
    def record(cls, vlm: VLM | LLM, cache: Cache, run: Callable[[], Tensor]) -> "UnguardedToken":
        """Run the token and keep what the pass computes.

        Args:
            vlm: the model, without guards.
            cache: a preallocated cache, which the pass continues.
            run: runs the pass and returns its logits.
        """
        outputs: list[Tensor | tuple] = []
        hooks = [block.register_forward_hook(lambda *args: outputs.append(args[-1])) for block in vlm.blocks]
        try:
            logits = run()
        finally:
            for hook in hooks:
                hook.remove()
        written = [(layer, slice(layer.n_kept, layer.n_kept + 1)) for layer in cache.layers]
        keys = [layer.keys[:, :, column].clone() for layer, column in written]
        values = [layer.values[:, :, column].clone() for layer, column in written]
        return cls(outputs, keys, values, logits)

    @contextmanager
    def played_back(self, vlm: VLM | LLM, cache: Cache, n_guards: int, layer: int) -> Iterator[None]:
        """Play back the blocks up to and including `layer`, for `n_guards` copies of the token, inside the block.

        Args:
            vlm: the model.
            cache: the cache that the pass continues.
            n_guards: tokens of the pass.
            layer: the last layer that is played back; -1 for none.
        """
        for cached, keys, values in zip(cache.layers[: layer + 1], self.keys, self.values, strict=False):
            columns = slice(cached.n_kept, cached.n_kept + n_guards)
            cached.keys[:, :, columns], cached.values[:, :, columns] = keys, values
        blocks = vlm.blocks[: layer + 1]
        own = [vars(block).get("forward") for block in blocks]
        # Before any block is touched: this may not fit into memory.
        returning = [_returning(_repeated(output, n_guards)) for output in self.outputs[: layer + 1]]
        for block, forward in zip(blocks, returning, strict=True):
            block.forward = forward
        try:
            yield
        finally:
            for block, forward in zip(blocks, own, strict=True):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward

    def plays_back(
        self, vlm: VLM | LLM, cache: Cache, run: Callable[[], Tensor], run_other: Callable[[], Tensor]
    ) -> bool:
        """Return whether blocks can be left out on this model: tested once, as the name of a family proves nothing.

        Args:
            vlm: the model.
            cache: the cache that `run` continues.
            run: the pass that was recorded.
            run_other: the same pass for other tokens.
        """
        if vlm.model not in _PLAYS_BACK:
            _PLAYS_BACK[vlm.model] = self._tested(vlm, cache, run, run_other)
            if not _PLAYS_BACK[vlm.model]:
                # The test has left another pass's keys and values where this token's belong.
                run()
        return _PLAYS_BACK[vlm.model]

    def _tested(self, vlm: VLM | LLM, cache: Cache, run: Callable[[], Tensor], run_other: Callable[[], Tensor]) -> bool:
        n = len(vlm.blocks)
        if len(cache.layers) != n:
            # Some blocks use the keys and values of others.
            return False
        # Later blocks that still see the last pass of earlier ones must not see that of the same token.
        run_other()
        try:
            for layer in {n // 2, max(0, n - 2)}:
                with self.played_back(vlm, cache, 1, layer):
                    difference = (run() - self.logits).abs().max() / self.logits.abs().max()
                if not difference <= PLAYBACK_TOLERANCE:
                    return False
        except (ValueError, RuntimeError, AttributeError, TypeError, KeyError, IndexError) as error:
            if is_out_of_memory(error):
                raise
            return False
        return True


def _returning(output: Tensor | tuple) -> Callable[..., Tensor | tuple]:
    return lambda *args, **kwargs: output


def _repeated(output: Tensor | tuple, n: int) -> Tensor | tuple:
    """Repeat the states of one position, the first entry where a block returns several."""
    if isinstance(output, tuple):
        return _repeated(output[0], n), *output[1:]
    return output.expand(-1, n, -1).contiguous()
