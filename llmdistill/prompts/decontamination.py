"""Rows that share text with evaluation data.

The rule: a row goes if, after normalisation (NFKC, lower case, no punctuation), any of its messages shares n words in a
row with any message of an evaluation row (n = 13 as in GPT-3, arXiv 2005.14165, appendix C), or if one of its user
messages is a user message of an evaluation row, word for word, however short. Texts count as user messages.
"""

from __future__ import annotations

from llmdistill.config.prompts import DecontaminationConfig
from llmdistill.prompts.corpus import read_source
from llmdistill.prompts.ngrams import digest, ngram_hashes, texts, words
from llmdistill.prompts.rejects import DroppedRowError, RejectedRow
from llmdistill.prompts.shapes import PromptRow


class EvaluationData:
    """What must not be trained on.

    Args:
        config: the evaluation data, read at once.

    Raises:
        DataError: it cannot be read, or holds a row that cannot: such a row would protect nothing.
    """

    def __init__(self, config: DecontaminationConfig) -> None:
        self._size = config.ngram
        self._ngrams: dict[int, str] = {}
        self._questions: dict[int, str] = {}
        for source in config.sources:
            for row in read_source(source, strict=True):
                assert not isinstance(row, RejectedRow)
                for text in texts(row):
                    self._ngrams.update(dict.fromkeys(ngram_hashes(words(text), self._size), row.source))
                for text in texts(row, roles=("user",)):
                    if sequence := words(text):
                        self._questions[digest(sequence)] = row.source

    def check(self, row: PromptRow) -> None:
        """Let a row pass.

        Raises:
            DroppedRowError: it shares text with the evaluation data.
        """
        for text in texts(row, roles=("user",)):
            if (source := self._questions.get(digest(words(text)))) is not None:
                raise DroppedRowError(f"contaminated: a user message is also in {source}")
        for text in texts(row):
            for ngram in ngram_hashes(words(text), self._size):
                if (source := self._ngrams.get(ngram)) is not None:
                    raise DroppedRowError(f"contaminated: {self._size} words in a row are also in {source}")
