"""What the checks judge: facts about models, corpus, machine and output folder, gathered elsewhere.

Nothing here looks anything up, so a test can make any machine and any model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class TokenizerFacts:
    """What decides ids and the end of a response."""

    ids: Mapping[str, int]
    """Every token, added ones included."""
    size: int
    """`len(tokenizer)`: ids are below this."""
    end_id: int | None
    """Its end-of-sequence token."""
    template: str | None
    """The chat template."""

    def token(self, number: int | None) -> str:
        """The token of an id, for messages."""
        found = next((token for token, value in self.ids.items() if value == number), None)
        return "none" if number is None else f"{number} ({found!r})"


@dataclass(frozen=True)
class WeightFile:
    """A file of weights, of which only the header was read."""

    name: str
    bytes: int
    fault: str = ""
    """Why it cannot be loaded; empty: header and length fit."""


@dataclass(frozen=True)
class ModelFacts:
    """A model as its small files describe it; the weights were not loaded."""

    name: str
    """As the configuration names it."""
    config: Mapping[str, Any]
    """config.json; of models that hold several, the text model's."""
    tokenizer: TokenizerFacts | None
    generation_ends: tuple[int, ...] = ()
    """`eos_token_id` of generation_config.json or of config.json."""
    weights: tuple[WeightFile, ...] = ()
    """Empty where they are not here yet."""
    local: bool = True
    """A folder that the configuration names, into which nobody will fetch anything."""


@dataclass(frozen=True)
class CorpusFacts:
    """A sample of the corpus, rendered with the teacher's tokenizer."""

    rows: int
    """Rows of the corpus."""
    exact: bool
    """Whether all rows were counted; else `rows` follows from the sample and the size of the files."""
    sampled: int
    """Rows of the sample."""
    lengths: tuple[int, ...]
    """Tokens of each usable row of the sample: the prompt, and in `score` mode the response."""
    supervised: tuple[int, ...]
    """Of these, tokens that get a row of the teacher's now: 0 in `generate` mode."""
    sources: tuple[str, ...]
    """`file:line` of each usable row."""
    rejected: tuple[tuple[str, str], ...] = ()
    """`file:line` and reason of each row of the sample that cannot be used."""
    teachers: tuple[str, ...] = ()
    """Who will answer each usable row; empty: one teacher answers all."""

    def of_teacher(self, name: str) -> CorpusFacts:
        """The same with those usable rows alone that one teacher answers."""
        if not self.teachers:
            return self
        kept = [index for index, teacher in enumerate(self.teachers) if teacher == name]
        return replace(
            self,
            lengths=tuple(self.lengths[index] for index in kept),
            supervised=tuple(self.supervised[index] for index in kept),
            sources=tuple(self.sources[index] for index in kept),
            teachers=(name,) * len(kept),
        )

    @property
    def usable_rows(self) -> int:
        """Rows of the whole corpus that make a request, if the sample is like the rest."""
        return round(self.rows * len(self.lengths) / self.sampled) if self.sampled else 0


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class MachineFacts:
    """Where the run will happen."""

    where: str
    """`this machine`, or the cluster and its address."""
    nodes: tuple[Node, ...]
    memory_bytes: int
    """Of this machine."""
    shared_memory_bytes: int
    """Size of /dev/shm of this machine; -1: it has none."""
    disk_path: str
    """Existing folder at or above the run's output."""
    disk_free_bytes: int
    gpu_names: tuple[str, ...] = ()
    """GPUs of this machine."""
    gpu_bytes: int = 0
    """Memory of the smallest of them."""
    tools: Mapping[str, bool] = field(default_factory=dict)
    """Whether nvcc, ninja and a C++ compiler are found."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Versions of the installed packages that matter here."""

    @property
    def gpus(self) -> int:
        """Of all nodes."""
        return sum(node.gpus for node in self.nodes)

    @property
    def cpus(self) -> int:
        """Of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def resource(self) -> str:
        """What a run counts its processes in: GPUs where there are any, cores elsewhere."""
        return "GPU" if self.gpus else "CPU"

    def has(self, resource: str) -> int:
        """How many of them all nodes have."""
        return self.gpus if resource == "GPU" else self.cpus

    def largest_node(self, resource: str) -> int:
        """How many of them the largest node has."""
        return max((node.gpus if resource == "GPU" else node.cpus for node in self.nodes), default=0)


@dataclass(frozen=True)
class OutputFacts:
    """What lies in the run's folder already."""

    path: str
    config: Mapping[str, Any] | None = None
    """The resolved configuration of the run that made it."""
    shards: int = 0
    checkpoints: int = 0
    fault: str = ""
    """Why nothing can be written there; empty: it can."""


@dataclass(frozen=True)
class Facts:
    """Everything; None where it could not be found out, and then a finding of the gathering says why."""

    teacher: ModelFacts | None
    student: ModelFacts | None
    """Of `student.from_teacher`: the teacher's tokenizer and its config with fewer layers."""
    corpus: CorpusFacts | None
    machine: MachineFacts | None
    output: OutputFacts
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    """The dictionary that DeepSpeed will get."""
    further: Mapping[str, ModelFacts] = field(default_factory=dict)
    """Name → teachers besides `teacher`, as far as something could be found out."""
