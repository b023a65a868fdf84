"""What a fleet has done so far, for progress lines, the ledger of rejected rows and the tests."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from llmdistill.prompts.rejects import RejectedRow
from llmdistill.teacher.passed_over import PassedOver
from llmdistill.teacher.replica import UnitResult
from llmdistill.types import Request


@dataclass
class FleetReport:
    """What a job did."""

    records: int = 0
    tokens: int = 0
    rows: int = 0
    bytes: int = 0
    deaths: list[str] = field(default_factory=list)
    """Why engines or replicas were replaced: they died or hung."""
    lost: int = 0
    """Replicas that went with their nodes."""
    seconds: float = 0.0
    """From the first replica being ready to the last record."""
    start_seconds: float = 0.0
    """Of the slowest engine that was started for this job."""
    push_seconds: float = 0.0
    """Of the slowest engine that took weights for this job."""
    rejected: list[RejectedRow] = field(default_factory=list)
    """Requests that the engine refuses or dies of."""
    filtered: list[RejectedRow] = field(default_factory=list)
    """Responses that the filters dropped."""
    passed_over: list[PassedOver] = field(default_factory=list)
    """What later calls must not ask again."""
    tokens_of_replica: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def restarts(self) -> int:
        """Engines or replicas that were replaced."""
        return len(self.deaths)

    def add(self, replica: int, result: UnitResult, filters: str) -> None:
        """Count a finished unit; `filters` is the fingerprint of the filters."""
        self.records += result.records
        self.tokens += result.tokens
        self.rows += result.rows
        self.bytes += result.bytes
        self.rejected.extend(result.rejected)
        self.filtered.extend(row for _, row in result.filtered)
        self.passed_over.extend(PassedOver(key, row, filters) for key, row in result.filtered)
        self.tokens_of_replica[replica] += result.tokens

    def quarantine(self, request: Request, reason: str) -> None:
        """Give a request up."""
        row = RejectedRow(request.source, f"quarantined, the engine dies of it: {reason}")
        self.rejected.append(row)
        self.passed_over.append(PassedOver(request.key, row))

    def figures(self) -> dict[str, int | float]:
        """The counts so far; `tokens_per_second` is since the first replica was ready."""
        return {
            "records": self.records,
            "tokens": self.tokens,
            "rows": self.rows,
            "bytes": self.bytes,
            "rejected": len(self.rejected),
            "filtered": len(self.filtered),
            "restarts": self.restarts,
            "replicas_lost": self.lost,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens / self.seconds, 1) if self.seconds else 0.0,
        }

    def note(self) -> str:
        """Figures for the progress line."""
        if not self.seconds:
            return "loading the engines"
        rates = [f"{tokens / self.seconds:.0f}" for _, tokens in sorted(self.tokens_of_replica.items())]
        parts = [f"{self.rows} rows", f"{self.tokens / self.seconds:.0f} tokens/s"]
        if len(rates) > 1:
            parts[-1] += f" ({' + '.join(rates) if len(rates) <= 8 else f'{len(rates)} replicas'})"
        counts = (
            ("restarts", self.restarts),
            ("replicas lost", self.lost),
            ("rejected", len(self.rejected)),
            ("filtered", len(self.filtered)),
        )
        return "  ".join([*parts, *(f"{count} {name}" for name, count in counts if count)])
