"""From a DeepSpeed checkpoint to a plain Hugging Face folder."""

from __future__ import annotations

import contextlib
import io
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from llmdistill.config.export import ExportConfig
from llmdistill.config.student import LoRAConfig
from llmdistill.errors import DataError
from llmdistill.export.average import average_file, averaged_checkpoint, has_average, training_identity
from llmdistill.export.gguf_file import write_gguf
from llmdistill.export.verify import verify_export
from llmdistill.student.adapters import add_adapters, merge_adapters, trained_names
from llmdistill.student.folder import copy_tokenizer, generation_config

_PREFIX = "student."
"""What `trainer/model.py` puts before the student's own names."""


def export_student(
    checkpoint: Path,
    init: Path,
    folder: Path,
    tokenizer_folder: Path,
    model_card: str,
    options: ExportConfig = ExportConfig(),  # noqa: B008 (frozen)
) -> None:
    """Write the trained student in the precision of its first weights, verified, and only then under its final name.

    Args:
        checkpoint: a checkpoint of `trainer/checkpoint.py`, of any ZeRO stage and number of workers.
        init: model folder that the training started from; gives the architecture.
        folder: written anew.
        tokenizer_folder: gives tokenizer files (byte for byte) and generation config: the teacher's, or that of a
            student with its own tokenizer.
        model_card: text of README.md.
        options: the `export` section.

    Raises:
        ConfigError: a GGUF file is asked for, and the student's architecture or tokenizer has none.
        DataError: the checkpoint lacks weights, has empty ones, or does not load back strictly.

    """
    model = trained_model(checkpoint, init)
    model.config._name_or_path = ""
    model.generation_config = generation_config(tokenizer_folder)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        model.save_pretrained(str(temporary), max_shard_size=options.max_shard_size)
        copy_tokenizer(tokenizer_folder, temporary)
        (temporary / "README.md").write_text(model_card, encoding="utf-8")
        verify_export(temporary, model)
        if options.gguf:
            write_gguf(temporary, options.gguf)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except OSError as error:
        raise DataError(f"cannot write the student: {error}", where=str(folder)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def trained_model(checkpoint: Path, init: Path, average: bool | None = None) -> PreTrainedModel:
    """The student with the weights of a checkpoint, in the precision of its first weights.

    Args:
        checkpoint: as of `export_student`.
        init: as of `export_student`.
        average: take their moving average; None: where the training kept one.

    Raises:
        DataError: the checkpoint lacks weights, or has empty or unknown ones.

    """
    weights = full_weights(checkpoint, average=has_average(checkpoint) if average is None else average)
    if lora := training_identity(checkpoint).get("student.lora"):
        # Merged in float32, so that the sum is rounded once.
        adapted: Any = AutoModelForCausalLM.from_pretrained(str(init), dtype=torch.float32)
        tuner = add_adapters(adapted, LoRAConfig.model_validate(lora), 0)
        _fill(adapted, weights, checkpoint)
        weights = dict(merge_adapters(tuner).named_parameters())
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(str(init), dtype="auto")
    _fill(model, weights, checkpoint)
    return model


def _fill(model: PreTrainedModel, weights: dict[str, torch.Tensor], checkpoint: Path) -> None:
    """Put weights into a model: exactly those that were trained."""
    parameters = dict(model.named_parameters())
    expected = {name: parameters[name] for name in trained_names(model)}
    tied = set(model.state_dict()) - set(parameters) - set(dict(model.named_buffers()))
    for name, parameter in expected.items():
        if name not in weights or weights[name].shape != parameter.shape:
            found = tuple(weights[name].shape) if name in weights else "nothing"
            raise DataError(
                f"the weight {name} must have shape {tuple(parameter.shape)}, the checkpoint has {found}",
                str(checkpoint),
            )
    buffers = {name for name, _ in model.named_buffers()}
    if unknown := set(weights) - set(expected) - tied - buffers:
        raise DataError(f"weights that the student does not have: {', '.join(sorted(unknown))}", str(checkpoint))
    model.load_state_dict({name: weights[name].to(expected[name].dtype) for name in expected}, strict=False)
    model.tie_weights()


def write_weights(checkpoint: Path, init: Path, file: Path) -> None:
    """Write the weights of a checkpoint (not their moving average) as one safetensors file, named as in `init`.

    Raises:
        DataError: as `trained_model`, or the file cannot be written.

    """
    temporary = file.with_name(f".{file.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        trained_model(checkpoint, init, average=False).save_pretrained(str(temporary), max_shard_size="1TB")
        (temporary / "model.safetensors").rename(file)
    except OSError as error:
        raise DataError(f"cannot write the student's weights: {error}", where=str(file)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def full_weights(checkpoint: Path, prefix: str = _PREFIX, average: bool = False) -> dict[str, torch.Tensor]:
    """The student's weights, joined over all ranks; float32 where the optimizer has them.

    Args:
        checkpoint: of any ZeRO stage and number of workers.
        average: take the moving average in their place; the training must have kept it.
        prefix: weights whose names start so are returned, without it.

    Raises:
        DataError: DeepSpeed's files are incomplete.

    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    sharded = any(checkpoint.glob("*_optim_states.pt"))
    if average and sharded:
        with averaged_checkpoint(checkpoint) as averaged:
            return full_weights(averaged, prefix)
    module_file = checkpoint / "mp_rank_00_model_states.pt"
    try:
        if sharded:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
        elif average:
            weights = load_file(average_file(checkpoint))
        else:  # ZeRO stage 0 keeps the module whole
            weights = torch.load(module_file, map_location="cpu", weights_only=False)["module"]
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise DataError(f"the checkpoint cannot be joined: {error}", where=str(checkpoint)) from error
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def write_sentence(folder: Path, prompt: str = "What is the capital of France?") -> str:
    """Let an exported model answer a prompt, greedily; special tokens are left out."""
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    message = [{"role": "user", "content": prompt}]
    inputs: Any = tokenizer.apply_chat_template(
        message, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()
