"""Book-keeping of an active guard: every guarded place has to change once in every pass."""

import threading
from collections.abc import Hashable, Iterable, Sequence

from torch.utils.hooks import RemovableHandle

from interp.errors import ModelError

CAUSES = "a compiled, replaced or wrapped forward pass skips hooks; guard the plain model, and run that"


def guard_was_off(model: str, places: Iterable[Hashable]) -> ModelError:
    """Return the error about guarded places that a pass left out."""
    return ModelError(
        f"the guard was off in a pass through {model!r}: layers {sorted(places, key=str)} did not run, or not through "
        f"their hooks; {CAUSES}"
    )


class PassLedger:
    """Counts what a guard did, and raises an error when something was left out, done twice, or done too late."""

    def __init__(self, model: str, places: Iterable[Hashable]):
        """Open the books.

        Args:
            model: name of the model, for messages.
            places: what has to change in each pass, such as layers.
        """
        self._model, self._places = model, frozenset(places)
        self._open: set[Hashable] | None = None
        """Places that have not changed yet in the current pass; None between passes."""
        self._n_passes = 0
        self._thread: int | None = None
        """The thread of the first pass; streaming, for one, generates in another thread than that of the block."""

    @property
    def is_foreign(self) -> bool:
        """True in another thread than that of the first pass."""
        return self._thread not in (None, threading.get_ident())

    def begin(self) -> None:
        """Note that a pass begins.

        Raises:
            ModelError: the last one has not ended, or another thread began this one.
        """
        if self.is_foreign:
            # Not of ours, so what is open stays open.
            raise ModelError(
                f"a pass through {self._model!r} from another thread than the one that is guarded: hooks belong to the "
                "model, so its answers would be guarded too; let one thread at a time use a guarded model"
            )
        self._thread = threading.get_ident()
        if self._open is not None:
            # Neither can be trusted; the next one can.
            self._open = None
            raise ModelError(f"a pass through {self._model!r} began before the last one had ended")
        self._open = set(self._places)
        self._n_passes += 1

    def record(self, place: Hashable) -> None:
        """Note that a place changes.

        Raises:
            ModelError: it has changed before in this pass, or there is no pass.
        """
        if self._open is None or self.is_foreign:
            raise ModelError(
                f"blocks of {self._model!r} run outside of its own forward pass, so the positions of its tokens are "
                "unknown: it generates in another way, or gradient checkpointing runs blocks again; only its forward "
                "pass can be guarded"
            )
        if place not in self._open:
            raise ModelError(f"layer {place} of {self._model!r} ran twice in one pass; the guard can't count on that")
        self._open.discard(place)

    def end(self, is_complete: bool) -> None:
        """Note that a pass has ended.

        Args:
            is_complete: whether it returned something; one that failed has nothing to answer for.

        Raises:
            ModelError: a guarded place did not change, or the pass never began.
        """
        missing, self._open = self._open, None
        if not is_complete:
            return
        if missing is None:
            raise ModelError(f"a pass through {self._model!r} ended that had not begun")
        if missing:
            raise guard_was_off(self._model, missing)

    def close(self, handles: Sequence[RemovableHandle]) -> None:
        """Check the books at the end of a block.

        Args:
            handles: hooks that were put on the model, and must still be there.

        Raises:
            ModelError: hooks are gone, a pass has not ended, or no pass was seen at all.
        """
        hooks = [handle.hooks_dict_ref() for handle in handles]
        if any(found is None or handle.id not in found for found, handle in zip(hooks, handles, strict=True)):
            raise ModelError(
                f"hooks of the guard on {self._model!r} were removed inside the block; it may have been off"
            )
        if self._open is not None:
            raise ModelError(f"a pass through {self._model!r} has not ended inside the block; the guard may be off")
        if not self._n_passes:
            raise ModelError(f"no pass ran through {self._model!r} inside the block: {CAUSES}")
