"""The way of one link through its redirects and further attempts; standard library alone, for every engine."""

from dataclasses import dataclass

from pipelines.rules import FetchError, Link, Rules

MAX_REDIRECTS = 5


@dataclass
class Course:
    """Where a link stands: each step asks one host once, so that each host's own limits hold."""

    rules: Rules
    first: Link
    link: Link
    """What is asked next."""
    left: float
    """Seconds of being connected that are left."""
    hops: int = 0
    attempt: int = 0

    @classmethod
    def begin(cls, rules: Rules, link: Link) -> "Course":
        """At its first step."""
        return cls(rules, link, link, rules.max_seconds)

    def redirect(self, link: Link, seconds: float) -> None:
        """A step of `seconds` led on to `link`. Raises FetchError where it has led too far or taken too long."""
        self.left -= seconds
        self.hops += 1
        if self.hops > MAX_REDIRECTS:
            raise FetchError("redirects", f"more than {MAX_REDIRECTS} redirects")
        if self.left <= 0:
            raise FetchError("timeout", "not finished in time")
        self.link = link

    def retry(self, error: FetchError, seconds: float) -> float:
        """A step of `seconds` failed: seconds to wait before the next attempt. Raises `error` where there is none."""
        self.left -= seconds
        pause = self.rules.pause_after(error, self.attempt)
        if pause is None or self.left <= 0:
            raise error
        self.attempt, self.hops, self.link = self.attempt + 1, 0, self.first
        return pause
