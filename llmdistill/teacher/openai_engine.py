"""The teacher behind a vLLM server that runs already, asked through its OpenAI-compatible interface.

Token ids go in and come out; text is never made into tokens by the server. What comes back goes through the same
functions as the output of an engine of our own. The weights are the server's business: it says a model's name, and this
engine holds it to what it can see from outside (ids, lengths, log-probabilities at temperature 1).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openai

from llmdistill.config.capture import CaptureConfig
from llmdistill.config.teacher import TeacherConfig
from llmdistill.errors import ConfigError, EngineError
from llmdistill.teacher.columns import Columns
from llmdistill.teacher.extract import rows_of_prompt, rows_of_response
from llmdistill.types import Record, Request, TeacherRows

_RETRIES = 2
"""Of the client, with its own growing pauses, for whatever may go over: 408, 409, 429, 5xx, connections."""
_AWAY = (429, 502, 503, 504)
"""The server, or a proxy before it, does not take requests now."""
_PAUSE_SECONDS = 2.0
_PROBE = (1, 2, 3)
_PROBE_TEMPERATURE = 0.25
_PROBE_TOLERANCE = 0.5
"""Nats. Reduced precision moves a log-probability by hundredths; a temperature of 1/4 by several."""


@dataclass
class _Lists:
    """Log-probabilities as `extract.FlatLogprobs`."""

    start_indices: list[int] = field(default_factory=list)
    end_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def add(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """The entry of the next token: its own id and log-probability, then those of the most likely."""
        self.start_indices.append(len(self.token_ids))
        self.token_ids += ids
        self.logprobs += logprobs
        self.end_indices.append(len(self.token_ids))


class OpenAIEngine:
    """A client; many requests at once share the server's batch.

    Args:
        teacher: `server` says where it is.
        capture: `top_k` without further temperatures.
        vocabulary_size: ids of the tokenizer are below this.

    Raises:
        ConfigError: the variable that should hold the key is not set here.

    """

    version = "openai"

    def __init__(self, teacher: TeacherConfig, capture: CaptureConfig, vocabulary_size: int) -> None:
        assert teacher.server is not None
        self._teacher = teacher
        self._server = teacher.server
        self._model = teacher.served_name
        self._columns = Columns.of(capture, vocabulary_size, statistics=False)
        name = self._server.api_key_env
        if name is not None and not os.environ.get(name):
            raise ConfigError(
                f"the environment variable {name} is not set where the replica runs",
                where="teacher.server.api_key_env",
                fix="set it on every node before Ray starts there; the program never sends secrets to nodes",
            )
        self._client = openai.AsyncOpenAI(
            api_key=os.environ[name] if name is not None else "none",
            base_url=self._server.base_url,
            max_retries=_RETRIES,
            timeout=teacher.unit_timeout_s,
        )

    async def start(self) -> None:
        """Wait for the server, and try what will be asked of it.

        Raises:
            ConfigError: it serves other models, shorter sequences, or not what the capture needs.
            EngineError: it does not answer.

        """
        models = (await self._send("get", "/models"))["data"]
        served = {model["id"]: model for model in models}
        if self._model not in served:
            raise self._wrong(f"it serves {', '.join(served)}, not '{self._model}'", "name it in teacher.server.model")
        longest = served[self._model].get("max_model_len")
        if longest is not None and longest < self._teacher.max_model_len:
            raise self._wrong(
                f"its longest sequence is {longest} tokens, teacher.max_model_len is {self._teacher.max_model_len}",
                "lower teacher.max_model_len, or start it with a larger --max-model-len",
            )
        self.version = f"openai-{await self._server_version()}"
        await self._try_out()

    async def answer(self, request: Request) -> Record:
        """See `TeacherEngine.answer`."""
        choice = await self._complete(request, self._parameters(request))
        token_ids = np.array(request.token_ids, np.int32)
        if request.seed is None:
            assert request.supervised is not None
            lists = self._prompt_lists(choice, request.token_ids)
            rows = rows_of_prompt(lists, request.token_ids, request.supervised, self._columns)
            supervised = np.array(request.supervised, bool)
            return Record(request.key, token_ids, supervised, rows, "scored", request.split)
        if choice["finish_reason"] not in ("stop", "length"):
            raise ValueError(f"the server ended the response with '{choice['finish_reason']}'")
        response, rows = self._response(choice)
        token_ids = np.concatenate([token_ids, np.array(response, np.int32)])
        supervised = np.arange(len(token_ids)) >= len(request.token_ids)
        return Record(request.key, token_ids, supervised, rows, choice["finish_reason"], request.split)

    async def load_weights(self, file: Path) -> None:
        """A server's weights are its own."""
        raise EngineError("a server keeps the weights that it was started with", where=file.name)

    def stop(self) -> None:
        """Nothing to free: connections end with the process."""

    def _parameters(self, request: Request) -> dict[str, Any]:
        if request.seed is None:
            return {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": self._columns.width}
        sampling = self._teacher.sampling
        return {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed,
            "logprobs": self._columns.width,
            "return_tokens_as_token_ids": True,
            # A server fills what is left out from the model's generation config.
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }

    async def _complete(self, request: Request, parameters: dict[str, Any]) -> dict[str, Any]:
        body = {"model": self._model, "prompt": list(request.token_ids), "return_token_ids": True, **parameters}
        answer = await self._send("post", "/completions", body)
        (choice,) = answer["choices"]
        returned = choice.get("prompt_token_ids")
        if returned is None:
            raise EngineError("the server returns no token ids: it is no vLLM, or too old a one", self._server.base_url)
        if returned != list(request.token_ids):
            raise EngineError("the server answered another prompt than the one sent", where=request.source)
        return dict(choice)

    def _prompt_lists(self, choice: dict[str, Any], token_ids: Sequence[int]) -> _Lists:
        lists = _Lists()
        for token_id, entry in zip(token_ids, choice["prompt_logprobs"] or [], strict=False):
            if entry is None:
                lists.add([], [])
            else:
                self._add(lists, token_id, {int(name): float(value["logprob"]) for name, value in entry.items()})
        return lists

    def _response(self, choice: dict[str, Any]) -> tuple[list[int], TeacherRows]:
        lists = _Lists()
        response = list(choice["token_ids"])
        for token_id, entry in zip(response, choice["logprobs"]["top_logprobs"], strict=True):
            self._add(lists, token_id, {int(name.removeprefix("token_id:")): value for name, value in entry.items()})
        return response, rows_of_response(lists, response, self._columns)

    def _add(self, lists: _Lists, actual: int, entry: dict[int, float]) -> None:
        """An entry of k + 1 tokens holds the actual one beside the k most likely; one of k, among them."""
        if actual not in entry:
            raise EngineError(f"the server gives no log-probability of token {actual}, which it says to be there")
        if unknown := [number for number in entry if number >= self._columns.vocabulary_size]:
            raise ValueError(f"token {unknown[0]} is none of the tokenizer's {self._columns.vocabulary_size}")
        likely = [number for number in entry if number != actual or len(entry) == self._columns.width]
        likely.sort(key=lambda number: -entry[number])
        lists.add([actual, *likely], [entry[actual], *(entry[number] for number in likely)])

    async def _try_out(self) -> None:
        """Score and generate a little, with every check there is; log-probabilities must not depend on temperature."""
        scored = Request(b"self-check".ljust(16), _PROBE, "the self-check", None, (False, True, True))
        drawn = Request(b"self-check".ljust(16), _PROBE, "the self-check", 0)
        try:
            await self.answer(scored)
            parameters = {**self._parameters(drawn), "max_tokens": 1}
            sharp = await self._complete(drawn, {**parameters, "temperature": _PROBE_TEMPERATURE})
            plain = await self._complete(drawn, {**parameters, "temperature": 1.0})
            self._response(plain)
        except ValueError as error:
            raise self._wrong(str(error), f"start it with --max-logprobs {self._columns.width} or more") from None
        at_sharp, at_plain = (choice["logprobs"]["top_logprobs"][0] for choice in (sharp, plain))
        if max(abs(at_sharp[name] - at_plain[name]) for name in at_sharp.keys() & at_plain.keys()) > _PROBE_TOLERANCE:
            what = "its log-probabilities change with the sampling temperature"
            raise self._wrong(what, "start it with --logprobs-mode raw_logprobs")

    async def _server_version(self) -> str:
        root = self._server.base_url.removesuffix("/v1")
        try:
            return str((await self._client.get(f"{root}/version", cast_to=object))["version"])  # type: ignore[index]
        except (openai.OpenAIError, KeyError, TypeError):
            return "unknown"  # a proxy may hide it

    async def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        deadline = time.monotonic() + self._server.patience_s
        while True:
            try:
                if method == "get":
                    return await self._client.get(path, cast_to=object)
                return await self._client.post(path, cast_to=object, body=body)
            except openai.APIStatusError as error:
                if error.status_code not in _AWAY or time.monotonic() > deadline:
                    raise self._refusal(error) from None
            except openai.APIConnectionError as error:
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"the server has not answered for {self._server.patience_s} s ({error.__cause__ or error})",
                        where=self._server.base_url,
                    ) from None
            await asyncio.sleep(_PAUSE_SECONDS)

    def _refusal(self, error: openai.APIStatusError) -> Exception:
        if error.status_code in (401, 403):
            # Without the server's words, which may repeat the key.
            return self._wrong("it refuses the key", "correct the variable of teacher.server.api_key_env")
        if error.status_code == 404:
            return self._wrong(f"it has no {error.request.url.path} for '{self._model}'", "is it vLLM's /v1?")
        if 400 <= error.status_code < 500 and error.status_code not in _AWAY:
            return ValueError(_message(error))
        return EngineError(f"the server failed: {error.status_code} {_message(error)}", where=self._server.base_url)

    def _wrong(self, what: str, fix: str) -> ConfigError:
        return ConfigError(what, where=f"teacher.server {self._server.base_url}", fix=fix)


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    text = body.get("message") if isinstance(body, dict) else None
    return str(text or error.message).strip().splitlines()[0]
