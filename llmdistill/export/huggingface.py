"""From a DeepSpeed checkpoint to a plain Hugging Face folder."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from llmdistill.errors import DataError
from llmdistill.student.creation import copy_tokenizer

_PREFIX = "student."
"""What `trainer/model.py` puts before the student's own names."""


def export_student(checkpoint: Path, init: Path, folder: Path, teacher_folder: Path, model_card: str) -> None:
    """Write the trained student in the precision of its first weights, verified, and only then under its final name.

    Args:
        checkpoint: a checkpoint of `trainer/checkpoint.py`, of any ZeRO stage and number of workers.
        init: model folder that the training started from; gives the architecture.
        folder: written anew.
        teacher_folder: gives tokenizer files (byte for byte) and generation config.
        model_card: text of README.md.

    Raises:
        DataError: the checkpoint lacks weights, has empty ones, or does not load back strictly.

    """
    weights = full_weights(checkpoint)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(str(init), dtype="auto")
    dtype = model.dtype
    tied = set(model.state_dict()) - {name for name, _ in model.named_parameters()} - set(dict(model.named_buffers()))
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    for name, shape in expected.items():
        if name not in weights or weights[name].shape != shape:
            found = tuple(weights[name].shape) if name in weights else "nothing"
            raise DataError(
                f"the weight {name} must have shape {tuple(shape)}, the checkpoint has {found}", str(checkpoint)
            )
    if unknown := set(weights) - set(expected) - tied:
        raise DataError(f"weights that the student does not have: {', '.join(sorted(unknown))}", str(checkpoint))
    model.load_state_dict({name: weights[name].to(dtype) for name in expected}, strict=False)
    model.tie_weights()
    model.config._name_or_path = ""
    model.generation_config = _generation_config(teacher_folder)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        model.save_pretrained(str(temporary))
        copy_tokenizer(teacher_folder, temporary)
        (temporary / "README.md").write_text(model_card, encoding="utf-8")
        _verify(temporary, model)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except OSError as error:
        raise DataError(f"cannot write the student: {error}", where=str(folder)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def full_weights(checkpoint: Path, prefix: str = _PREFIX) -> dict[str, torch.Tensor]:
    """The student's weights, joined over all ranks; float32 where the optimizer has them.

    Args:
        checkpoint: of any ZeRO stage and number of workers.
        prefix: weights whose names start so are returned, without it.

    Raises:
        DataError: DeepSpeed's files are incomplete.

    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    module_file = checkpoint / "mp_rank_00_model_states.pt"
    try:
        if list(checkpoint.glob("*_optim_states.pt")):
            with contextlib.redirect_stdout(io.StringIO()):
                weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
        else:  # ZeRO stage 0 keeps the module whole
            weights = torch.load(module_file, map_location="cpu", weights_only=False)["module"]
    except (OSError, RuntimeError, ValueError, KeyError) as error:
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


def _generation_config(teacher_folder: Path) -> GenerationConfig:
    """The teacher's, with every end token of its tokenizer and its own list."""
    try:
        config = GenerationConfig.from_pretrained(str(teacher_folder))
    except OSError:
        config = GenerationConfig()
    eos = AutoTokenizer.from_pretrained(str(teacher_folder)).eos_token_id
    listed: Any = config.eos_token_id
    ends = {*(listed if isinstance(listed, list) else [listed]), eos} - {None}
    config.eos_token_id = sorted(ends) if len(ends) > 1 else next(iter(ends), None)
    return config


def _verify(folder: Path, model: PreTrainedModel) -> None:
    """Load the folder as a user would and compare.

    Raises:
        DataError: keys are missing or unexpected, or logits differ.

    """
    answer: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto", output_loading_info=True)
    loaded, report = answer
    faults = {key: sorted(value) for key, value in report.items() if key.endswith("_keys") and value}
    if faults:
        raise DataError(f"the exported student does not load cleanly: {json.dumps(faults)}", where=str(folder))
    token_ids = torch.arange(16).unsqueeze(0) % model.config.vocab_size
    with torch.inference_mode():
        if not torch.equal(loaded(token_ids).logits, model.eval()(token_ids).logits):
            raise DataError("the exported student gives other logits than the trained one", where=str(folder))
