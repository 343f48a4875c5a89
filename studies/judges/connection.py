"""A connection to a server that nobody vouches for: replies are bounded in time and size, and none leads elsewhere."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLate
from typing import TypeVar

import httpx

T = TypeVar("T")
MOST_BYTES = 8_000_000
"""Largest reply; a chat completion of a judge has a few kilobytes."""


def bounded_settings(most_bytes: int = MOST_BYTES) -> dict:
    """Return the arguments of a client that gives up on replies which are too large.

    It follows no redirects, which would send the prompt, and perhaps the key, to another server; and it accepts no
    compressed replies, whose size can't be known before they are unpacked.

    Args:
        most_bytes: largest size of a reply.
    """

    def bound(response: httpx.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise httpx.DecodingError("the reply is compressed, which was not asked for", request=response.request)
        response.stream = _BoundedStream(response.stream, response.request, most_bytes)

    return {
        "follow_redirects": False,
        "headers": {"accept-encoding": "identity"},
        "event_hooks": {"response": [bound]},
    }


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what a call returns, if it does so in time.

    The client's own limit is for each read, so that a server which sends a byte now and then is never given up. The
    call goes on in a thread of its own that nobody waits for.

    Raises:
        TimeoutError: it does not.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:  # noqa: BLE001 (raised again where the result is awaited)
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return done.result(seconds)
    except TooLate:
        if done.done():
            raise
        raise TimeoutError(f"the reply took more than {seconds:g} seconds as a whole") from None


def is_given_up(error: BaseException | None) -> bool:
    """Return whether an error of a client is about a reply that was given up."""
    return isinstance(error, httpx.DecodingError)


class _BoundedStream(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, request: httpx.Request, most_bytes: int):
        self._stream, self._request, self._most_bytes = stream, request, most_bytes

    def __iter__(self) -> Iterator[bytes]:
        n_bytes = 0
        for chunk in self._stream:
            n_bytes += len(chunk)
            if n_bytes > self._most_bytes:
                raise httpx.DecodingError(f"the reply has more than {self._most_bytes} bytes", request=self._request)
            yield chunk

    def close(self) -> None:
        self._stream.close()
