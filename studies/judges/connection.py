"""A connection to a server that nobody vouches for: replies are bounded in time and size, and none leads elsewhere."""

import time
from collections.abc import Iterator

import httpx

MOST_BYTES = 8_000_000
"""Largest reply; a chat completion of a judge has a few kilobytes."""


def bounded_client(timeout: float, most_bytes: int = MOST_BYTES) -> httpx.Client:
    """Return a client that gives up on replies which take too long, as a whole, or are too large.

    It follows no redirects, which would send the prompt, and perhaps the key, to another server; and it accepts no
    compressed replies, whose size can't be known before they are unpacked.

    Args:
        timeout: seconds that one reply may take, from the connection to its last byte.
        most_bytes: its largest size.
    """
    transport = _Bounded(timeout, most_bytes)
    headers = {"accept-encoding": "identity"}
    return httpx.Client(transport=transport, timeout=timeout, follow_redirects=False, headers=headers)


def is_given_up(error: BaseException | None) -> bool:
    """Return whether an error of a client is about a reply that was given up."""
    return isinstance(error, httpx.DecodingError)


class _Bounded(httpx.HTTPTransport):
    def __init__(self, timeout: float, most_bytes: int):
        super().__init__()
        self._timeout, self._most_bytes = timeout, most_bytes

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        deadline = time.monotonic() + self._timeout
        response = super().handle_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            response.close()
            raise httpx.DecodingError("the reply is compressed, which was not asked for", request=request)
        response.stream = _BoundedStream(response.stream, request, deadline, self._most_bytes)
        return response


class _BoundedStream(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, request: httpx.Request, deadline: float, most_bytes: int):
        self._stream, self._request, self._deadline, self._most_bytes = stream, request, deadline, most_bytes

    def __iter__(self) -> Iterator[bytes]:
        n_bytes = 0
        for chunk in self._stream:
            n_bytes += len(chunk)
            if n_bytes > self._most_bytes:
                raise httpx.DecodingError(f"the reply has more than {self._most_bytes} bytes", request=self._request)
            if time.monotonic() > self._deadline:
                raise httpx.ReadTimeout("the reply took too long as a whole", request=self._request)
            yield chunk

    def close(self) -> None:
        self._stream.close()
