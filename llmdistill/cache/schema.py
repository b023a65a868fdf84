"""What a shard file contains, format version 1.

A shard is a safetensors file. S records, N tokens, R supervised rows, K kept entries a row, h high bits of an id
(`high_bits`). Integers are little-endian.

| tensor          | type    | shape               | content                                                           |
|-----------------|---------|---------------------|-------------------------------------------------------------------|
| keys            | uint8   | [S, 16]             | record keys                                                       |
| splits          | uint64  | [S]                 | hash of the prompt, for held-out splits                           |
| finish_reasons  | uint8   | [S]                 | index into `types.FINISH_REASONS`                                 |
| token_offsets   | int64   | [S + 1]             | record s has tokens token_offsets[s] … token_offsets[s+1] - 1     |
| row_offsets     | int64   | [S + 1]             | record s has rows row_offsets[s] … row_offsets[s+1] - 1           |
| token_ids_low   | uint16  | [N]                 | low 16 bits of the token ids                                      |
| token_ids_high  | uint8   | [N, 1] or [N, 0]    | the bits above                                                    |
| supervised      | uint8   | [N]                 | 1 where the token is predicted by a stored row                    |
| actual_logprobs | float16 | [R]                 | log-probability of the token that follows                         |
| mass            | float32 | [R]                 | sum of the kept probabilities                                     |
| entry_ids_low   | uint16  | [R, K]              | low 16 bits of the kept ids, most likely first                    |
| entry_ids_high  | uint8   | [R, ceil(K·h/8)]    | the bits above, packed, first entry in the lowest bits            |
| entry_codes     | uint8   | [R, K]              | quantised log-probabilities, see `codec.py`                       |

Metadata (strings): `format`, `version`, `spec` (JSON of `types.CaptureSpec`), `engine_version`, `records`, `tokens`,
`rows` and `checksum` (blake2b-128 over names, types, shapes and bytes of the tensors in the order above).
"""

from __future__ import annotations

FORMAT = "llmdistill-cache"
VERSION = "1"

TENSORS = (
    "keys",
    "splits",
    "finish_reasons",
    "token_offsets",
    "row_offsets",
    "token_ids_low",
    "token_ids_high",
    "supervised",
    "actual_logprobs",
    "mass",
    "entry_ids_low",
    "entry_ids_high",
    "entry_codes",
)
"""Every tensor of a shard, in checksum order."""

SHARD_SUFFIX = ".safetensors"
