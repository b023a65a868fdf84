from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmdistill.config.teacher import SamplingConfig, TeacherConfig
from llmdistill.teacher.respond import respond


@pytest.mark.timeout(400)
def test_greedy_answers_are_those_of_transformers_and_seeds_decide_sampled_ones(
    teacher_folder: Path, tokenizer
) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    teacher = TeacherConfig.model_validate({"model": str(teacher_folder), "dtype": "float32", "max_model_len": 256})
    greedy = SamplingConfig(temperature=0.0, max_new_tokens=12)
    sampled = SamplingConfig(temperature=1.0, max_new_tokens=12)
    requests = [(prompt, greedy, 0), (prompt, sampled, 1), (prompt, sampled, 1), (prompt, sampled, 2)]
    answers = respond(teacher_folder, teacher, requests)
    model = AutoModelForCausalLM.from_pretrained(str(teacher_folder), dtype=torch.float32).eval()
    with torch.inference_mode():
        own = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()
    assert answers[0] == own
    assert answers[1] == answers[2] != answers[3]
