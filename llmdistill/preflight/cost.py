"""What teacher and training cost in FLOPs, seconds and memory, by a roofline: the slower of arithmetic and memory.

A token's forward pass takes 2 · parameters + 4 · layers · heads · width · context FLOPs (`ModelSize.forward_flops`).

scoring      time = tokens · FLOPs at half the length / (peak · utilisation)
generating   prompts as scoring; then steps in which every sequence of a batch gets a token: the larger of
             batch · FLOPs / (peak · utilisation) and
             (weights + batch · KV cache of half the length) / (bandwidth · utilisation)
training     three times a forward pass per token and epoch (forward once, backward twice); twice where adapters alone
             are trained, since the other weights get no gradient
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmdistill.config.run import RunConfig
from llmdistill.preflight.hardware import Hardware
from llmdistill.preflight.parameters import ModelSize
from llmdistill.preflight.volume import Volume
from llmdistill.trainer.memory import activation_bytes, model_state_bytes

WEIGHT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_BATCHED_TOKENS = 2048
_HEAD_BUFFERS = 2 * 256 * 2**20
"""Logits of a group of rows and float32 of a chunk."""
_LOGPROB_BYTES = 6
"""Of a scheduled token and vocabulary entry: bf16 logits and their float32 log-softmax."""


@dataclass(frozen=True)
class Utilisation:
    """Shares of the data sheet that a well-fed program reaches."""

    scoring: float = 0.4
    """Of the peak FLOP/s, in prefill and scoring."""
    decoding: float = 0.6
    """Of the memory bandwidth, in generating."""
    training: float = 0.35
    """Of the peak FLOP/s."""


def scoring_flops(model: ModelSize, tokens: float, length: float) -> float:
    """FLOPs of a forward pass over so many tokens in sequences of a mean length."""
    return tokens * model.forward_flops(length / 2)


def teacher_seconds(
    config: RunConfig, model: ModelSize, volume: Volume, hardware: Hardware, utilisation: Utilisation
) -> float:
    """Seconds of one accelerator for the whole teacher stage."""
    length = volume.tokens_per_record
    speed = hardware.flops * utilisation.scoring
    if config.prompts.mode == "score":
        return scoring_flops(model, volume.tokens, length) / speed
    prompt = volume.prompt_tokens / max(volume.records, 1)
    prefill = scoring_flops(model, volume.prompt_tokens, prompt) / speed
    context = prompt + (length - prompt) / 2
    batch = decoding_batch(config, model, hardware, context)
    arithmetic = batch * model.forward_flops(context) / speed
    # A large batch reads every expert of a mixture.
    reading = model.weight_bytes(WEIGHT_BYTES[config.teacher.dtype]) + batch * context * model.kv_bytes()
    step = max(arithmetic, reading / (hardware.bandwidth * utilisation.decoding))
    return prefill + volume.response_tokens / batch * step


def decoding_batch(config: RunConfig, model: ModelSize, hardware: Hardware, context: float) -> float:
    """Sequences that a replica decodes at once: those it is given, as far as its KV cache holds them.

    The replica has `teacher.tensor_parallel` accelerators, or twice as many, … until the weights leave room.
    """
    weights = model.weight_bytes(WEIGHT_BYTES[config.teacher.dtype])
    room = config.teacher.tensor_parallel * hardware.memory * config.teacher.gpu_memory_utilization
    while room < 1.02 * weights:
        room *= 2
    held = (room - weights) / (context * model.kv_bytes())
    return max(min(config.teacher.requests_per_shard * config.teacher.units_in_flight, held), 1)


def training_flops(config: RunConfig, student: ModelSize, volume: Volume) -> float:
    """FLOPs of the student's training, all epochs or rounds; the baseline costs as much again."""
    tokens = volume.tokens * (1 - config.prompts.held_out) * config.train.selected_share * config.train.epochs
    if config.rounds is not None:
        tokens = float(config.rounds.total_steps * config.train.tokens_per_step)
    return (2 if student.adapters else 3) * scoring_flops(student, tokens, volume.tokens_per_record)


@dataclass(frozen=True)
class TeacherMemory:
    """Bytes per GPU of a replica."""

    weights: float
    kv_cache: float
    """Of all requests that it may hold at once, each of `max_model_len` tokens."""
    one_request: float
    """Of a single one: without that much nothing runs."""
    logprobs: float
    """Logits and log-probabilities of the tokens that are scheduled at once; outside of vLLM's own memory profile."""

    def fits(self, memory: float, utilisation: float) -> bool:
        """Whether a GPU of so many bytes can hold it."""
        return self.weights + self.one_request <= memory * utilisation and self.logprobs <= memory * (1 - utilisation)


def teacher_memory(config: RunConfig, model: ModelSize, tensor_parallel: int) -> TeacherMemory:
    """Memory of one GPU at a tensor-parallel size."""
    teacher = config.teacher
    item = WEIGHT_BYTES[teacher.dtype]
    request = teacher.max_model_len * model.kv_bytes(tensor_parallel, item)
    return TeacherMemory(
        model.weight_bytes(item) / tensor_parallel,
        request * teacher.requests_per_shard * teacher.units_in_flight,
        request,
        max(_BATCHED_TOKENS, teacher.max_model_len) * model.vocabulary * _LOGPROB_BYTES,
    )


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes per GPU (or process) of the training."""

    model_states: int
    activations: int
    head: int
    """The chunked head's logits and gradients (objectives/chunked_head.py)."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.model_states + self.activations + self.head


def training_memory(config: RunConfig, student: ModelSize, shape: Mapping[str, Any], stage: int) -> TrainingMemory:
    """Memory of one worker at a ZeRO stage.

    Args:
        config: the run.
        student: its counts.
        shape: its config.json.
        stage: 0 … 3.

    """
    train = config.train
    item = 4 if train.precision == "fp32" else 2
    return TrainingMemory(
        model_state_bytes(
            student.trained,
            student.largest_layer,
            stage,
            train.workers,
            train.precision,
            student.parameters if student.adapters else 0,
        ),
        activation_bytes(shape, train.micro_batch_size * train.sequence_length),
        _HEAD_BUFFERS + item * student.vocabulary * student.hidden,
    )


def tensor_parallel_fault(heads: int, kv_heads: int, size: int) -> str:
    """Why a model cannot be split so; empty: it can. Both kinds of heads are dealt out whole."""
    if heads % size:
        return f"{heads} attention heads are not a multiple of {size}"
    if kv_heads % size and size % kv_heads:
        return f"{kv_heads} KV heads and {size} are no multiple of one another"
    return ""


def possible_sizes(heads: int, kv_heads: int, most: int) -> list[int]:
    """Tensor-parallel sizes up to `most`."""
    return [size for size in range(1, most + 1) if not tensor_parallel_fault(heads, kv_heads, size)]
