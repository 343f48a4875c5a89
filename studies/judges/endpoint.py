"""Judges behind an OpenAI-compatible endpoint, on any server, through the client `openai` (extra `endpoint`)."""

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import quote

from interp.errors import first_line
from studies.judges.replies import Replies, reply_key
from studies.judges.rubrics import Rubric, Turn
from studies.judges.verdicts import FAILED, UNPARSED, Case, Verdict

DELAYS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each retry; a longer `Retry-After` of the server is respected."""
LONGEST_DELAY = 60.0
GIVE_UP = 5
"""After this many cases in a row without a reply, the rest is not asked; likewise after this many rejected cases, if
the endpoint has never answered any."""
TEMPORARY = (408, 409, 429)
"""Statuses below 500 for which a retry may help; it may for all from 500 on."""
FATAL = (401, 403, 404)
"""Statuses that every other case would get too: no key, no permission, no such model."""
HIDDEN = "[hidden]"
LEAST_SECRET = 8
"""Letters of the shortest word that is hidden."""
FILTERED = "content_filter"
"""Error code of a rejection that is about the text of one case, and says nothing about others."""


class EndpointError(RuntimeError):
    """The endpoint can't be used at all; the message says why. Earlier replies are kept."""


class _NoReply(Exception):
    """One case gets no reply."""

    def __init__(self, message: str, is_rejected: bool = False, is_filtered: bool = False):
        super().__init__(message)
        self.is_rejected = is_rejected
        """True if the server rejected this case; it may still answer the next one."""
        self.is_filtered = is_filtered
        """True if a content filter rejected it."""


@dataclass(frozen=True)
class EndpointJudge:
    """A model behind an endpoint that is asked with a rubric."""

    rubric: Rubric
    model: str
    """The endpoint's name of the model; at one address, equal names are taken to be the same model."""
    client: object = field(repr=False)
    """`openai.OpenAI`; the only object that holds the key."""
    replies: Replies = field(default_factory=Replies, repr=False)
    settings: Mapping = field(default_factory=dict)
    """Request parameters, with any name that the server accepts. They are added to temperature 0 and the rubric's
    number of tokens; None leaves one of these out."""
    n_parallel: int = 4
    timeout: float = 60.0
    """Seconds that one reply may take, from the connection to its last byte."""
    delays: tuple[float, ...] = DELAYS

    @classmethod
    def connect(
        cls,
        rubric: Rubric,
        model: str,
        base_url: str,
        key_from: str | None = "OPENAI_API_KEY",
        timeout: float = 60.0,
        **options,
    ) -> "EndpointJudge":
        """Make a judge; nothing is sent yet.

        Args:
            rubric: how it is asked.
            model: see the field.
            base_url: address of the server.
            key_from: environment variable that holds the key; None for servers without one.
            timeout: seconds that one reply may take.
            options: any other fields.

        Raises:
            EndpointError: the client is not installed, or there is no key.
        """
        try:
            import openai
        except ImportError:
            raise EndpointError("the package openai is not installed; pip install 'vlm-guard[endpoint]'") from None
        key = os.environ.get(key_from, "") if key_from else "none"
        if not key:
            raise EndpointError(f"environment variable {key_from} is not set; expected the key of {base_url}")
        from studies.judges.connection import bounded_settings

        # Proxies and certificates are those of the client's own default. Retries are done here, not in it.
        http_client = openai.DefaultHttpxClient(timeout=timeout, **bounded_settings())
        client = openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=0, http_client=http_client)
        return cls(rubric, model, client, timeout=timeout, **options)

    @property
    def name(self) -> str:
        return f"{self.rubric.name}:{self.model.split('/')[-1]}"

    @property
    def url(self) -> str:
        """The address without user, password and query, which may hold keys."""
        url = self.client.base_url
        return f"{url.scheme}://{url.netloc.decode()}{url.path}".rstrip("/")

    def without_secrets(self, text: str) -> str:
        """Return a text of the server or the client without the key, and without what the address may hide.

        Servers echo requests, in replies and in errors, and these end in tables and messages. Words of a few letters
        are left: they hide nothing, and a reply may consist of one.
        """
        url = self.client.base_url
        # The client ends addresses with a slash, even those with a query.
        values = (value.rstrip("/") for _, value in url.params.multi_items())
        parts = (self.client.api_key, url.password, url.username, *values)
        secrets = {form for part in parts if part for form in (part, quote(part, safe="")) if len(part) >= LEAST_SECRET}
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return text

    @property
    def identity(self) -> str:
        """The full name of the model, the address, and the request parameters."""
        return f"{self.model} at {self.url} with {json.dumps(self._settings(), sort_keys=True)}"

    def verdicts(self, cases: Sequence[Case], advance: Callable[[int], None] = lambda n_cases: None) -> list[Verdict]:
        """Judge each case. Stored replies are not asked for again; cases without a reply are `failed`.

        A reply that can't be read (empty, cut, in another form) is `unparsed` and not stored: it is asked for again
        next time. Earlier versions have stored such replies; these are asked for again as well.

        Raises:
            EndpointError: the server can't be reached, or rejects every case (key, permission, model, settings).
        """
        turns = [self.rubric.turns(case) for case in cases]
        keys, unread = [self._key(conversation) for conversation in turns], {}
        times = Counter(keys)
        todo = {key: asked for key, asked in zip(keys, turns, strict=True) if not self._has_reply(key)}
        advance(sum(key not in todo for key in keys))
        for key, verdict in self._collected(todo):
            if verdict is not None:
                unread[key] = verdict
            advance(times[key])
        return [unread[key] if key in unread else self.rubric.read(self.replies.get(key)) for key in keys]

    def _has_reply(self, key: str) -> bool:
        said = self.replies.get(key)
        return said is not None and self.rubric.read(said).state != UNPARSED

    def _collected(self, todo: Mapping[str, list[Turn]]) -> Iterator[tuple[str, Verdict | None]]:
        """Yield each key, with a verdict if no reply was stored, as they come; the first case tests the connection."""
        run = _Run(self)
        for key in list(todo)[:1]:
            yield key, run.ask(key, todo[key], is_first=True)
        with ThreadPoolExecutor(self.n_parallel) as pool:
            try:
                pending = {pool.submit(run.ask, key, todo[key]): key for key in list(todo)[1:]}
                for future in as_completed(pending):
                    yield pending[future], future.result()
            finally:
                # On an error or Ctrl-C the pool waits for its threads, which this makes return at once.
                run.stopped.set()

    def _settings(self) -> dict:
        settings = {"temperature": 0.0, "max_tokens": self.rubric.max_new_tokens} | dict(self.settings)
        return {name: value for name, value in settings.items() if value is not None}

    def _key(self, turns: list[Turn]) -> str:
        return reply_key(judge=self.rubric.asked_as, model=self.identity, prompt=turns)

    def ask_once(self, turns: list[Turn]) -> tuple[str, str]:
        """Send one request; errors of the client are not caught.

        Returns:
            The reply, and why it ended (`stop`, `length`, `content_filter` ...; empty if the server does not say).

        Raises:
            ValueError: the reply is not a chat completion, or holds no text.
            TimeoutError: it took too long.
        """
        from studies.judges.connection import within

        # As part of the body: servers accept more names than the client does.
        create = partial(self.client.chat.completions.create, model=self.model, messages=turns)
        reply = within(self.timeout, partial(create, extra_body=self._settings()))
        choices = getattr(reply, "choices", None)
        if not isinstance(choices, list) or not choices or getattr(choices[0], "message", None) is None:
            raise ValueError(f"expected a chat completion, got {str(reply)[:80]!r}")
        message, ending = choices[0].message, getattr(choices[0], "finish_reason", None) or ""
        # The client passes on whatever the server has put there.
        said = message.content or getattr(message, "refusal", None) or ""
        if not isinstance(said, str) or not isinstance(ending, str):
            raise ValueError(f"expected text in a chat completion, got {str(said)[:80]!r} ({str(ending)[:20]!r})")
        # Halves of surrogate pairs can't be written to any file.
        return self.without_secrets(said.encode("utf-8", "replace").decode("utf-8")), ending


class _Run:
    """The cases of one call: retries, and when to give up."""

    def __init__(self, judge: EndpointJudge):
        self.judge = judge
        self.stopped = threading.Event()
        self._silent_in_a_row = 0
        self._n_rejected = 0
        self._has_answered = judge.replies.has_answered(judge.identity)
        self._lock = threading.Lock()

    def ask(self, key: str, turns: list[Turn], is_first: bool = False) -> Verdict | None:
        """Ask for one reply and store it; return a verdict if there is none (`failed`), or none that can be read.

        Args:
            key: the reply is stored by it.
            turns: the conversation.
            is_first: the first case of a call: if the server can't be reached, that is an error.

        Raises:
            EndpointError: no other case would get a reply either.
        """
        if self.stopped.is_set():
            return Verdict(state=FAILED, said=f"not asked: {GIVE_UP} cases in a row got no reply")
        try:
            said, ending = self._ask_with_retries(turns, is_first)
        except _NoReply as error:
            self._count(not error.is_rejected)
            self._check_rejections(error)
            return Verdict(state=FAILED, said=str(error))
        self._count(False)
        self._has_answered = True
        if self.judge.rubric.read(said).state == UNPARSED:
            return Verdict(state=UNPARSED, said=_with_ending(said, ending))
        self.judge.replies.keep(key, said, self.judge.name, self.judge.identity)
        return None

    def _count(self, is_silent: bool) -> None:
        with self._lock:
            self._silent_in_a_row = self._silent_in_a_row + 1 if is_silent else 0
            if self._silent_in_a_row >= GIVE_UP:
                self.stopped.set()

    def _check_rejections(self, error: _NoReply) -> None:
        """Raise an EndpointError if the server has rejected several cases and never answered any."""
        if not error.is_rejected or error.is_filtered:
            return
        with self._lock:
            self._n_rejected += 1
        if self._n_rejected >= GIVE_UP and not self._has_answered:
            self.stopped.set()
            raise EndpointError(
                f"{self.judge.url} has rejected {self._n_rejected} cases and answered none: {error}; if a setting is "
                "the cause, change it (--judge-setting NAME=VALUE) or leave it out (--judge-setting NAME=)"
            ) from error

    def _ask_with_retries(self, turns: list[Turn], is_first: bool) -> tuple[str, str]:
        """Return the reply and why it ended, see `EndpointJudge.ask_once`.

        Raises:
            EndpointError: no other case would get a reply either.
            _NoReply: there is none after all retries.
        """
        import openai

        from studies.judges.connection import is_given_up

        for delay in (*self.judge.delays, None):
            try:
                return self.judge.ask_once(turns)
            except (openai.APIError, TimeoutError, ValueError, RecursionError) as error:
                self._check(error)
                if delay is None or self.stopped.wait(max(delay, _retry_after(error))):
                    said = self._said(error)
                    # A reply that was given up comes as one that never came, but has another cause.
                    is_silent = type(error) is openai.APIConnectionError and not is_given_up(error.__cause__)
                    if is_first and is_silent:
                        raise EndpointError(f"no server answers at {self.judge.url}: {said}") from None
                    raise _NoReply(f"{type(error).__name__}: {said}") from None

    def _check(self, error: Exception) -> None:
        """Raise again what a retry would not change.

        Raises:
            EndpointError, _NoReply: see `_ask_with_retries`.
        """
        status = getattr(error, "status_code", None)
        if status is not None and 300 <= status < 400:
            self.stopped.set()
            raise EndpointError(
                f"{self.judge.url} sends requests on to another address ({status}), which would get the prompts and "
                "the key; if you trust it, give that address"
            ) from None
        if status in FATAL:
            self.stopped.set()
            raise EndpointError(
                f"{self.judge.url} rejects model {self.judge.model!r} ({status}: {self._said(error)}); "
                "check the key and the model's name"
            ) from None
        if status is not None and status < 500 and status not in TEMPORARY:
            is_filtered = getattr(error, "code", None) == FILTERED
            raise _NoReply(f"{status}: {self._said(error)}", True, is_filtered) from None

    def _said(self, error: Exception) -> str:
        """Return the first line of an error, with its cause where the client names none, and without secrets."""
        cause = f" ({first_line(error.__cause__)})" if error.__cause__ is not None else ""
        return self.judge.without_secrets(first_line(error) + cause)


def _with_ending(said: str, ending: str) -> str:
    """Return a reply that can't be read, and say so if it is empty or was cut."""
    if said.strip() and ending in ("", "stop"):
        return said
    kind = "cut" if said.strip() else "empty"
    return f"{said}({kind} reply, finish_reason {ending or 'unknown'})"


def _retry_after(error: Exception) -> float:
    """Return the seconds of the header `Retry-After`; 0 if there is none, or it is a date."""
    response = getattr(error, "response", None)
    try:
        return min(LONGEST_DELAY, float(response.headers["retry-after"]))
    except (AttributeError, KeyError, ValueError):
        return 0.0
