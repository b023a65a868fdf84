"""One training: what it reads, what it optimises and where it writes. Plain data, so that it travels to workers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdistill.config.objectives import AnyObjective
from llmdistill.config.student import LoRAConfig
from llmdistill.config.train import FREE_TO_CHANGE, TrainConfig
from llmdistill.trainer.rounds import Round


@dataclass(frozen=True)
class TrainJob:
    """A training of one model."""

    name: str
    """`student`, or the name of a baseline; stands in the metrics."""
    cache: Path
    held_out: float
    init: Path
    """Model folder with the first weights."""
    checkpoints: Path
    metrics: Path
    objectives: tuple[AnyObjective, ...]
    """What it is trained on, as configured."""
    train: TrainConfig
    teacher: Path | None = None
    """Model folder of the live teacher, where one is needed."""
    round: Round | None = None
    """The round that is trained, where the training has rounds."""
    lora: LoRAConfig | None = None
    """Adapters, where they alone are trained."""
    pause: int | None = None
    """Optimizer steps after which it ends before its time, with a checkpoint from which it goes on; None: none."""

    @property
    def tensorboard(self) -> Path:
        """Folder of the TensorBoard curves, beside the metrics."""
        return self.metrics.parent / "tensorboard" / self.name

    @property
    def signs(self) -> Path:
        """Folder in which the workers say what they do, and what stopped them."""
        return self.metrics.parent / ".signs" / self.name

    def identity(self, records: str) -> dict[str, Any]:
        """What must be equal for a checkpoint to be continued.

        Args:
            records: a hash that says which records it is trained on.

        """
        settings = {key: value for key, value in self.train.model_dump().items() if key not in FREE_TO_CHANGE}
        if not settings["source_weights"]:
            del settings["source_weights"]  # as in checkpoints of versions that had no weights
        return {
            "objectives": [objective.model_dump(mode="json") for objective in self.objectives],
            "records": records,
            **(
                {}
                if self.round is None
                else {"rounds": self.round.config.model_dump(mode="json", exclude={"replicas"})}
            ),
            "student.lora": None if self.lora is None else self.lora.model_dump(mode="json"),
            **{f"train.{key}": value for key, value in json.loads(json.dumps(settings)).items()},
        }
