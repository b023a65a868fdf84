"""Chunks of two tokenizers on strings whose chunks are known by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmdistill.prompts.chunks import Side, align, chunk_rows, special_ids, spelling
from tests.prompts.makers import make_tokenizer

FACE = "\N{SLIGHTLY SMILING FACE}"


def words(*tokens: str) -> PreTrainedTokenizerFast:
    """A tokenizer that knows these tokens; the texts below are split by hand."""
    vocabulary = {"</s>": 0, **{token: number for number, token in enumerate(tokens, start=1)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def ids(tokenizer: PreTrainedTokenizerFast, *tokens: str) -> list[int]:
    return [tokenizer.get_vocab()[token] for token in tokens]


def chunks(teacher: list[str], student: list[str], logprobs: list[float]) -> tuple[list[int], list[float]]:
    """Sizes of the chunks in the student's tokens, and the teacher's log-probability of each."""
    theirs, own = words(*dict.fromkeys(teacher)), words(*dict.fromkeys(student))
    found = align(spelling(theirs, ids(theirs, *teacher)), np.array(logprobs), spelling(own, ids(own, *student)))
    return np.diff(np.flatnonzero(found.ends_R), prepend=-1).tolist(), found.logprobs_E.tolist()


def test_chunks_begin_and_end_where_both_sides_do() -> None:
    assert chunks(["Par", "is", " is", " big"], ["Paris", " i", "s ", "big"], [-1.0, -2.0, -4.0, -8.0]) == (
        [1, 3],
        [-3.0, -12.0],
    )
    assert chunks(["Paris", "."], ["P", "ar", "is", "."], [-0.5, -0.25]) == ([3, 1], [-0.5, -0.25])


def test_equal_tokens_are_a_chunk_each() -> None:
    assert chunks(["a", " b", " c"], ["a", " b", " c"], [-1.0, -2.0, -3.0]) == ([1, 1, 1], [-1.0, -2.0, -3.0])


def test_a_text_that_differs_is_not_compared() -> None:
    sizes, logprobs = chunks(["Caf", "é"], ["caf", "e"], [-1.0, -2.0])
    assert sizes == [2]
    assert np.isnan(logprobs).all()


def test_a_replacement_character_makes_only_its_chunk_unknown() -> None:
    """Decoders wait behind it for the rest of a character, so that the token after it belongs to the chunk."""
    sizes, logprobs = chunks(["a", "\ufffd", "b", "c"], ["a", "\ufffd", "b", "c"], [-1.0, -2.0, -3.0, -4.0])
    assert sizes == [1, 2, 1]
    assert np.isnan(logprobs).tolist() == [False, True, False]
    assert (logprobs[0], logprobs[2]) == (-1.0, -4.0)


@pytest.mark.parametrize("text", ["🙂", "日本", "na 🙂 日"])
def test_a_character_of_several_tokens_is_one_chunk(text: str) -> None:
    tokenizer = make_tokenizer()
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    mine = spelling(tokenizer, token_ids)
    assert mine.text == text
    found = align(mine, -np.ones(len(token_ids)), mine)
    pieces = np.split(np.array(token_ids), np.flatnonzero(found.ends_R)[:-1] + 1)
    spelled = [tokenizer.decode(piece.tolist()) for piece in pieces]
    assert "".join(spelled) == text
    assert "\ufffd" not in "".join(spelled)
    assert found.logprobs_E.tolist() == [-len(piece) for piece in pieces]


def test_ids_that_no_tokenizer_would_choose_are_taken_as_they_are() -> None:
    tokenizer = make_tokenizer()
    canonical = tokenizer.encode(" Paris", add_special_tokens=False)
    letters = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in " Paris"]
    assert len(letters) > len(canonical)
    found = align(spelling(tokenizer, letters), -np.ones(6), spelling(tokenizer, canonical))
    assert found.logprobs_E.sum() == -6
    assert len(found.logprobs_E) == len(canonical)


def test_bytes_that_end_within_a_character_are_left_out_and_said() -> None:
    tokenizer = make_tokenizer()
    cut = tokenizer.encode("ab🙂", add_special_tokens=False)[:-1]
    assert spelling(tokenizer, cut).text == "ab"


def side(tokenizer: PreTrainedTokenizerFast, prompt: list[str], response: list[str]) -> Side:
    token_ids = np.array(ids(tokenizer, *prompt, *response))
    return Side(tokenizer, token_ids, np.arange(len(token_ids)) >= len(prompt))


def test_end_tokens_are_a_chunk_of_their_own() -> None:
    theirs, own = words("Q", "yes"), words("Frage", "y", "es")
    teacher, student = side(theirs, ["Q"], ["yes", "</s>"]), side(own, ["Frage"], ["y", "es", "</s>"])
    found = chunk_rows(teacher, np.array([-1.0, -0.5]), student)
    assert found.ends_R.tolist() == [False, True, True]
    assert found.logprobs_E.tolist() == [-1.0, -0.5]
    assert special_ids(theirs) == {0}
    cut = side(theirs, ["Q"], ["yes"])
    assert np.isnan(chunk_rows(cut, np.array([-1.0]), student).logprobs_E).tolist() == [False, True]


def test_a_text_without_a_prompt_starts_where_its_first_token_ends() -> None:
    """Nothing predicts the first token, so a chunk that begins within it has no log-probability."""
    theirs, own = words("ab", "cd", "ef"), words("a", "bcd", "ef")
    teacher, student = side(theirs, ["ab"], ["cd", "ef"]), side(own, ["a"], ["bcd", "ef"])
    found = chunk_rows(teacher, np.array([-1.0, -2.0]), student, plain_text=True)
    assert found.ends_R.tolist() == [True, True]
    assert np.isnan(found.logprobs_E[0])
    assert found.logprobs_E[1] == -2.0


def test_another_number_of_turns_is_not_compared() -> None:
    tokenizer = words("Q", "yes")
    token_ids = np.array(ids(tokenizer, "Q", "yes", "Q", "yes"))
    two = Side(tokenizer, token_ids, np.array([False, True, False, True]))
    one = Side(tokenizer, token_ids, np.array([False, False, False, True]))
    found = chunk_rows(two, np.array([-1.0, -1.0]), one)
    assert found.ends_R.tolist() == [True]
    assert np.isnan(found.logprobs_E).all()


def test_a_normaliser_that_changes_the_text_is_seen() -> None:
    tokenizer = make_tokenizer()
    lower = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    lower.normalizer = normalizers.Lowercase()
    lower.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    student = PreTrainedTokenizerFast(tokenizer_object=lower, eos_token="<|im_end|>")
    texts = {
        text: align(
            spelling(tokenizer, tokenizer.encode(text, add_special_tokens=False)),
            -np.ones(len(tokenizer.encode(text, add_special_tokens=False))),
            spelling(student, student.encode(text, add_special_tokens=False)),
        ).logprobs_E
        for text in ("paris", "Paris")
    }
    assert not np.isnan(texts["paris"]).any()
    assert np.isnan(texts["Paris"]).all()


def test_a_tokenizer_with_marked_spaces_and_bytes_for_what_it_does_not_know() -> None:
    """As LLaMA 2 has them: a mark for a space, one of its own at the beginning, and a token for each byte."""
    teacher = make_tokenizer()
    text = "Paris is 🙂 big"
    tokens = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"Parisbg", "is", "\u2581is"]
    model = models.BPE(
        {token: number for number, token in enumerate(tokens)},
        [("i", "s"), ("\u2581", "is")],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    student = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    own, theirs = student.encode(text, add_special_tokens=False), teacher.encode(text, add_special_tokens=False)
    assert [f"<0x{byte:02X}>" for byte in FACE.encode()] == student.convert_ids_to_tokens(own)[7:11]
    mine = spelling(student, own)
    assert mine.text == text
    found = align(spelling(teacher, theirs), -np.ones(len(theirs)), mine)
    assert found.logprobs_E.sum() == -len(theirs)
    borders = [0, *(end for end, is_end in zip(mine.ends, found.ends_R, strict=True) if is_end)]
    pieces = [text[start:stop] for start, stop in itertools.pairwise(borders)]
    assert pieces == ["Pa", "ris", " is", " ", FACE, " ", "b", "i", "g"]
