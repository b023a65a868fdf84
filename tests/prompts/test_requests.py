import dataclasses
import hashlib

import pytest

from llmdistill.config.prompts import PromptsConfig
from llmdistill.errors import ConfigError, DataError
from llmdistill.prompts.corpus import read_prompts
from llmdistill.prompts.keys import record_key
from llmdistill.prompts.rejects import RejectedRow
from llmdistill.prompts.shapes import PromptRow
from tests.prompts.makers import SPEC, chat, make, user


def test_no_usable_row_at_all_is_an_error(tokenizer) -> None:
    with pytest.raises(DataError, match="none of the 1 rows"):
        make([RejectedRow("a:1", "not JSON")], tokenizer)


def test_samples_have_keys_and_seeds_of_their_own_and_one_side_of_the_split(tokenizer) -> None:
    requests = make([chat(user("Hi"))], tokenizer, sampling={"samples": 3}).requests
    assert len({request.key for request in requests}) == len({request.seed for request in requests}) == 3
    assert len({request.split for request in requests}) == 1


def test_keys_follow_content_and_nothing_else(tokenizer) -> None:
    rows = [PromptRow(f"a:{n}", text=f"Tell me about {n}.") for n in range(4)]
    forward = make(rows, tokenizer).requests
    backward = make(rows[::-1], tokenizer, requests_per_shard=1, replicas=7, length="truncate_left").requests
    assert {r.key for r in forward} == {r.key for r in backward}
    other_teacher = make(rows, tokenizer, spec=dataclasses.replace(SPEC, teacher="other")).requests
    other_k = make(rows, tokenizer, spec=dataclasses.replace(SPEC, top_k=32)).requests
    assert not {r.key for r in forward} & ({r.key for r in other_teacher} | {r.key for r in other_k})


def test_shipped_corpora_are_used_in_full_and_keep_their_keys(tokenizer) -> None:
    """A change of these numbers makes everybody's caches worthless: it needs a reason that strong."""
    for file, mode, count, digest in (
        ("quickstart_prompts", "generate", 420, "9b280a023dc8f78b"),
        ("score_texts", "score", 48, "142e02332b0553f3"),
    ):
        config = PromptsConfig.model_validate({"sources": [{"path": f"configs/data/{file}.jsonl"}]})
        corpus = make(read_prompts(config), tokenizer, mode=mode)
        assert (len(corpus.requests), corpus.rejected, dict(corpus.changes)) == (count, [], {})
        keys = [record_key(b"spec", r.token_ids, r.seed, r.supervised) for r in corpus.requests]
        assert hashlib.blake2b(b"".join(keys), digest_size=8).hexdigest() == digest


def test_a_teacher_that_has_no_room_for_prompts_is_refused(tokenizer) -> None:
    with pytest.raises(ConfigError, match="leaves no token for prompts beside 256 new ones"):
        make([chat(user("Hi"))], tokenizer, max_model_len=256)
