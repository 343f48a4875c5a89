"""Replies of judges, stored by a hash of everything that they depend on, so that nothing is asked twice."""

import hashlib
import json
import threading
from pathlib import Path

from interp.json_text import parse_json


def reply_key(**question) -> str:
    """Hash a question: judge, model, prompt, generation settings."""
    return hashlib.sha256(json.dumps(question, sort_keys=True, default=str).encode()).hexdigest()


class Replies:
    """An append-only JSONL file with one reply a line; without a path, replies are kept in memory only.

    Threads may share it. Half a line, left by a run that was killed while writing, and lines that hold no reply are
    ignored, and those replies are asked for again.
    """

    def __init__(self, path: str | Path | None = None):
        self.path = Path(path) if path else None
        self._replies: dict[str, str] = {}
        self._answered: set[str] = set()
        self._lock = threading.Lock()
        if self.path and self.path.exists():
            self._read(self.path.read_bytes())

    def _read(self, content: bytes) -> None:
        for line in content.split(b"\n"):
            try:
                entry = parse_json(line)
                key, said, identity = entry["key"], entry["said"], entry.get("identity", "")
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            if all(isinstance(each, str) for each in (key, said, identity)):
                self._replies[key] = said
                self._answered.add(identity)
        if content and not content.endswith(b"\n"):
            with self.path.open("ab") as file:
                file.write(b"\n")

    @property
    def n_kept(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> str | None:
        """Return the reply; None if the question was never asked, or not answered."""
        return self._replies.get(key)

    def has_answered(self, identity: str) -> bool:
        """Return whether this judge has ever replied."""
        return identity in self._answered

    def keep(self, key: str, said: str, judge: str, identity: str) -> None:
        """Store a reply; it is written to the file when this returns.

        Args:
            key: see `reply_key`.
            said: the reply.
            judge: name of the judge, for people who read the file.
            identity: identity of the judge, see `has_answered`.
        """
        line = json.dumps({"key": key, "said": said, "judge": judge, "identity": identity}) + "\n"
        # Not every file system appends whole lines atomically.
        with self._lock:
            self._replies[key] = said
            self._answered.add(identity)
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(line)
