"""Waiting where the hub says that it was asked too often.

huggingface_hub does so when it fetches a file, and not when it asks what a repository holds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

_T = TypeVar("_T")

TOO_MANY_REQUESTS = 429
_LONGEST_SECONDS = 600.0
"""In all; the hub counts requests over five minutes."""
_FIRST_PAUSE = 2.0
_WINDOW = re.compile(r";\s*t=(\d+)")
"""Seconds to the end of the window in a RateLimit header (IETF draft-ietf-httpapi-ratelimit-headers)."""


def patiently(action: Callable[[], _T]) -> _T:
    """Run `action`, again after the seconds that a refusal with status 429 names.

    Raises:
        HfHubHTTPError: the hub fails in another way, or refuses for longer than ten minutes.

    """
    from huggingface_hub.errors import HfHubHTTPError

    waited, pause = 0.0, _FIRST_PAUSE
    while True:
        try:
            return action()
        except HfHubHTTPError as error:
            if error.response.status_code != TOO_MANY_REQUESTS:
                raise
            seconds = seconds_named(error.response.headers) or pause
            if waited + seconds > _LONGEST_SECONDS:
                raise
        time.sleep(seconds)
        waited, pause = waited + seconds, 2 * pause


def seconds_named(headers: Mapping[str, str]) -> float | None:
    """Seconds that a refusal says to wait: `Retry-After`, or the rest of the hub's window; None: it says neither."""
    named = headers.get("retry-after", "")
    if named.isdigit():
        return float(named)
    window = _WINDOW.search(headers.get("ratelimit", ""))
    return None if window is None else float(window.group(1)) + 1
