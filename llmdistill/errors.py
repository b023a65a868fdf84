"""Every error that llmdistill raises on purpose.

LLMDistillError                 exit status 1: failed while running
├── ConfigError                 exit status 2: the configuration or the call is wrong
├── DataError                   exit status 3: input data, a cache or a checkpoint is damaged or does not match
├── ClusterError                exit status 4: the cluster cannot give what was asked
├── EngineError                 exit status 1: a teacher engine failed or returned something impossible
└── TrainingError               exit status 1: training cannot go on
    └── WorkerDiedError         exit status 1: a training worker ended otherwise than by an error from this tree

An error says what is wrong, where, and how to fix it. Errors cross process borders (Ray pickles them), so they carry
plain strings only.
"""

from __future__ import annotations


class LLMDistillError(Exception):
    """Base of all intended errors.

    Args:
        what: the fault, in one sentence without a full stop at the end.
        where: the file, key, record or process concerned; may be empty.
        fix: what a person can do about it; may be empty.

    """

    exit_status = 1

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  fix: {self.fix}" if self.fix else head


class ConfigError(LLMDistillError):
    """The configuration or the call is wrong."""

    exit_status = 2


class DataError(LLMDistillError):
    """Input data, a cache or a checkpoint is damaged, or does not match what it is used with."""

    exit_status = 3


class ClusterError(LLMDistillError):
    """The cluster cannot give what was asked."""

    exit_status = 4


class EngineError(LLMDistillError):
    """A teacher engine failed, or returned something that cannot be right."""


class TrainingError(LLMDistillError):
    """Training cannot go on."""


class WorkerDiedError(TrainingError):
    """A training worker ended otherwise than by an error from this tree: worth another try."""
