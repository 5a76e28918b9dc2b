"""A judge behind an HTTP endpoint that speaks OpenAI's chat completions; it reads text, not frames.

All cases of a call are asked at one time, so many at once, within one deadline: whatever has not come then is None. A
verdict is kept on disk by what was asked and is not asked for again. The key is read from the environment when it is
needed and stands in no message.
"""

import hashlib
import http.client
import json
import os
import queue
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from jvlmm.errors import ConfigError
from jvlmm.judges.verdict import Case, Verdict
from jvlmm.judges.wording import INSTRUCTION, Unreadable, facts, parse_verdict

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)  # statuses that may be others a moment later
_LONGEST_REPLY = 1 << 20  # bytes


class _Failed(Exception):
    """An attempt without a verdict. `again`: another one may have it."""

    def __init__(self, reason: str, again: bool):
        super().__init__(reason)
        self.again = again


def without_secrets(url: str) -> str:
    """Returns an address without user name, password, query and fragment, in which keys are handed over.

    All before the last @ counts as user name and password, which may hold any character.
    """
    scheme = re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", url)
    start = scheme[0] if scheme else ""
    return start + re.split(r"[?#]", url.removeprefix(start).rpartition("@")[2], maxsplit=1)[0]


@dataclass(frozen=True)
class EndpointOptions:
    """Where to ask, how many cases at once, and how long all of them may take."""

    base_url: str  # such as http://localhost:8000/v1
    model: str
    key_variable: str = "OPENAI_API_KEY"  # of the environment; no key is sent where it is not set
    concurrency: int = 8
    deadline_s: float = 30.0  # for all cases of a call, retries included
    attempts: int = 3  # of a case
    backoff_s: float = 0.5  # before the second attempt; doubles
    max_tokens: int = 512
    cache: str | None = None  # folder of verdicts
    optional: bool = False  # go on without verdicts where nobody answers

    def __post_init__(self) -> None:
        shown = without_secrets(self.base_url)
        if shown != self.base_url:
            # Options are written to config.json and the manifest: what must not be shown is not accepted.
            raise ConfigError(
                f"judge.base_url, the address {shown!r}, holds a user name, password or query, which are never sent; "
                f"give the address alone, and the key in the environment variable {self.key_variable} "
                "(judge.key_variable)"
            )
        try:
            parts = urlsplit(self.base_url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # of a port that is no number, or brackets that do not close
            valid = False
        if not valid:
            raise ConfigError(f"judge.base_url={shown!r} is no http or https address; give one with /v1")
        for name in ("concurrency", "deadline_s", "attempts", "max_tokens"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"judge.{name}={getattr(self, name)} must be above 0")
        if self.backoff_s < 0:
            raise ConfigError(f"judge.backoff_s={self.backoff_s} must be 0 or more")


@dataclass
class EndpointJudge:
    """`judge(cases) -> [Verdict | None]`; `failures` counts those that got none by reason, `seconds` all waiting."""

    options: EndpointOptions
    instruction: str = INSTRUCTION
    failures: Counter = field(default_factory=Counter)
    seconds: float = 0.0

    def check(self) -> None:
        """Raises ConfigError where nobody answers or the key is refused, unless the options call the judge optional."""
        if self.options.optional:
            return
        try:
            status, _ = self._request("GET", "/models", None, time.monotonic() + min(self.options.deadline_s, 10.0))
        except _Failed as error:
            raise ConfigError(
                f"the judge at {self.options.base_url} does not answer ({error}); start it, correct judge.base_url, or "
                "set judge.optional=true to go on without its verdicts"
            ) from None
        if status in (401, 403):
            raise ConfigError(
                f"the judge at {self.options.base_url} refuses the key (HTTP {status}); set {self.options.key_variable}"
            )

    def __call__(self, cases: Sequence[Case]) -> list[Verdict | None]:
        """Returns within the deadline, whatever the endpoint does."""
        begun = time.monotonic()
        deadline = begun + self.options.deadline_s
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Verdict | str]] = queue.SimpleQueue()
        for number in range(len(cases)):
            waiting.put(number)

        def work() -> None:
            while True:
                try:
                    number = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((number, self._verdict(cases[number], deadline)))
                except Exception as error:  # noqa: BLE001 - a case that cannot be judged costs its verdict alone
                    done.put((number, str(error) if isinstance(error, _Failed | Unreadable) else type(error).__name__))

        for _ in range(min(self.options.concurrency, len(cases))):
            threading.Thread(target=work, daemon=True).start()
        outcomes: dict[int, Verdict | str] = {}
        while len(outcomes) < len(cases) and (left := deadline - time.monotonic()) > 0:
            try:
                number, outcome = done.get(timeout=left)
            except queue.Empty:
                break
            outcomes[number] = outcome
        self.seconds += time.monotonic() - begun
        found = [outcomes.get(number, "deadline") for number in range(len(cases))]
        self.failures.update(outcome for outcome in found if isinstance(outcome, str))
        return [None if isinstance(outcome, str) else outcome for outcome in found]

    def _verdict(self, case: Case, deadline: float) -> Verdict:
        body = self._body(case)
        kept = self._kept(body)
        if kept is not None and kept.is_file():
            try:
                return parse_verdict(kept.read_text())
            except (Unreadable, OSError):
                pass  # a damaged file is asked for again
        for attempt in range(self.options.attempts):
            try:
                content = self._ask(body, deadline)
                verdict = parse_verdict(content)
            except (_Failed, Unreadable) as error:
                again = isinstance(error, Unreadable) or error.again
                pause = self.options.backoff_s * 2**attempt
                if not again or attempt + 1 == self.options.attempts or time.monotonic() + pause >= deadline:
                    raise
                time.sleep(pause)
                continue
            if kept is not None:
                _write(kept, content)
            return verdict
        raise AssertionError("unreachable")

    def _body(self, case: Case) -> bytes:
        messages = [
            {"role": "system", "content": self.instruction},
            {"role": "user", "content": facts(case)},
        ]
        asked = {"model": self.options.model, "messages": messages, "temperature": 0}
        asked |= {"max_tokens": self.options.max_tokens, "response_format": {"type": "json_object"}}
        return json.dumps(asked).encode()

    def _kept(self, body: bytes) -> Path | None:
        if self.options.cache is None:
            return None
        name = hashlib.sha256(self.options.base_url.encode() + b"\n" + body).hexdigest()
        return Path(self.options.cache) / f"{name}.json"

    def _ask(self, body: bytes, deadline: float) -> str:
        status, reply = self._request("POST", "/chat/completions", body, deadline)
        if status != 200:
            raise _Failed(f"HTTP {status}", status in _AGAIN)
        try:
            content = json.loads(reply)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise _Failed("no chat completion", True) from None
        if not isinstance(content, str):
            raise _Failed("no chat completion", True)
        return content

    def _request(self, method: str, path: str, body: bytes | None, deadline: float) -> tuple[int, bytes]:
        """(status, what was sent). The socket waits no longer than is left; who waits for it has a clock of his own."""
        parts = urlsplit(self.options.base_url)
        left = deadline - time.monotonic()
        if left <= 0:
            raise _Failed("deadline", False)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname, parts.port, timeout=left)
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.options.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        try:
            connection.request(method, parts.path.rstrip("/") + path, body, headers)
            response = connection.getresponse()
            reply = response.read(_LONGEST_REPLY + 1)
        except TimeoutError:
            raise _Failed("deadline", False) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _Failed(type(error).__name__, True) from None
        finally:
            connection.close()
        if len(reply) > _LONGEST_REPLY:
            raise _Failed("reply too long", False)
        return response.status, reply


def _write(path: Path, content: str) -> None:
    """Whole or not at all; a cache that cannot be written costs nothing but time."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as file:
            file.write(content)
        os.replace(file.name, path)
