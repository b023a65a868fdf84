"""New weights for a running vLLM engine: pushed, not loaded with a new engine, and in every layer of it."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from llmdistill.student.creation import load_student
from llmdistill.types import Request


def scores(model, token_ids: tuple[int, ...]) -> np.ndarray:
    with torch.inference_mode():
        logprobs = model(torch.tensor([token_ids])).logits[0].log_softmax(dim=-1)
    return logprobs[:-1].gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0].numpy()


def test_a_running_engine_takes_weights(vllm_engine, vllm_ask, teacher_folder: Path, tmp_path: Path) -> None:
    engine, wait = vllm_engine
    token_ids = tuple(range(400, 424))
    request = Request(bytes(16), token_ids, "a", supervised=(False, *[True] * 23))
    before = vllm_ask([request])[0].rows.actual_logprobs_R

    # The head is tied to the embedding; attention, feed-forward layers and norms move, too.
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: tensor + tensor.float().std() * 0.1 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        for name, tensor in load_file(teacher_folder / "model.safetensors").items()
    }
    save_file(weights, tmp_path / "pushed.safetensors")
    expected = load_student(teacher_folder, torch.float32).eval()
    expected.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
    expected.tie_weights()

    try:
        wait(engine.load_weights(tmp_path / "pushed.safetensors"))
        pushed = vllm_ask([request])[0].rows.actual_logprobs_R
    finally:
        wait(engine.load_weights(teacher_folder / "model.safetensors"))
    assert np.abs(pushed - scores(expected, token_ids)).max() < 2e-3
    assert np.abs(pushed - before).max() > 0.1, "the weights are others"
    assert np.array_equal(vllm_ask([request])[0].rows.actual_logprobs_R, before)
