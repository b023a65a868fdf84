"""Names of what lies in a run's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """A run's folder; `path` is absolute, since workers have other working directories."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.resolved.json"

    @property
    def provenance(self) -> Path:
        """Versions, commit, machine, command and fingerprints."""
        return self.path / "provenance.json"

    @property
    def stages(self) -> Path:
        """What each finished stage was made from."""
        return self.path / "stages.json"

    @property
    def cache(self) -> Path:
        """The teacher cache."""
        return self.path / "cache"

    @property
    def student_cache(self) -> Path:
        """The same text in the tokens of a student with its own tokenizer, see `student/retokenize.py`."""
        return self.path / "student_cache"

    @property
    def rejected(self) -> Path:
        """Rows that were not used, and why."""
        return self.cache / "rejected.jsonl"

    @property
    def metrics(self) -> Path:
        """One JSON object per line: a training step, or the state of the teacher fleet."""
        return self.path / "metrics.jsonl"

    @property
    def timings(self) -> Path:
        """One JSON object per line and call of a stage: how long it worked."""
        return self.path / "timings.jsonl"

    @property
    def untrained(self) -> Path:
        """The student before training, a model folder."""
        return self.path / "untrained"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of the student."""
        return self.path / "checkpoints"

    @property
    def rounds(self) -> Path:
        """What the student wrote in each round, and the teacher's scores of it."""
        return self.path / "rounds"

    @property
    def student(self) -> Path:
        """The result, a model folder."""
        return self.path / "student"

    @property
    def tune(self) -> Path:
        """Trials of `llmdistill tune`, their table and the winner's configuration."""
        return self.path / "tune"

    def baseline(self, name: str) -> Path:
        """Folder of a baseline: its checkpoints and its model folder."""
        return self.path / "baselines" / name

    @property
    def evaluation(self) -> Path:
        """The table of results."""
        return self.path / "evaluation.json"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.path / "report.html"

    @property
    def scratch(self) -> Path:
        """Files of Ray Train."""
        return self.path / ".ray"
