"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server; `kind` is draw or speak."""

    def __init__(self) -> None:
        one = self.registry = CollectorRegistry()
        self.requests = Counter("harmon_requests", "Answered requests.", ["route", "status"], registry=one)
        self.seconds = Histogram(
            "harmon_request_seconds",
            "From a request's arrival to its last byte.",
            ["route"],
            buckets=SECONDS,
            registry=one,
        )
        self.waiting = Gauge("harmon_waiting", "Pictures or answers in the queue.", ["kind"], registry=one)
        self.running = Gauge("harmon_running", "Pictures or answers in the batch.", ["kind"], registry=one)
        self.wait_seconds = Histogram(
            "harmon_wait_seconds", "From a job's arrival to its first step.", ["kind"], buckets=SECONDS, registry=one
        )
        self.batch_rows = Histogram(
            "harmon_batch_rows", "Rows of one AR step or of one token.", ["kind"], buckets=ROWS, registry=one
        )
        self.step_seconds = Histogram(
            "harmon_step_seconds", "Of one AR step or one token of a batch.", ["kind"], buckets=SECONDS, registry=one
        )
        self.ended = Counter(
            "harmon_jobs", "Pictures and answers by how they ended: done, cancelled, failed, refused.", ["kind", "how"],
            registry=one,
        )  # fmt: skip
        self.prompt_tokens = Counter("harmon_prompt_tokens", "Tokens read, image slots among them.", registry=one)
        self.answer_tokens = Counter("harmon_answer_tokens", "Tokens spoken.", registry=one)
        self.pictures = Counter("harmon_pictures", "Pictures drawn.", registry=one)
