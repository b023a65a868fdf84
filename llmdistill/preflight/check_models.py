"""Whether the models' shapes allow what is asked, and whether their files are whole."""

from __future__ import annotations

from llmdistill.config.run import RunConfig
from llmdistill.preflight.cost import possible_sizes, tensor_parallel_fault
from llmdistill.preflight.facts import Facts, ModelFacts
from llmdistill.preflight.findings import Finding, error, ok, size, warning


def check_tensor_parallel(config: RunConfig, facts: Facts) -> list[Finding]:
    """Attention heads, KV heads and the feed-forward width against `teacher.tensor_parallel`."""
    if facts.teacher is None:
        return []
    asked, model = config.teacher.tensor_parallel, facts.teacher.config
    heads = model["num_attention_heads"]
    kv_heads = model.get("num_key_value_heads") or heads
    fault = tensor_parallel_fault(heads, kv_heads, asked)
    wide = model.get("moe_intermediate_size") or model.get("intermediate_size") or 0
    if not fault and wide % asked:
        fault = f"a feed-forward width of {wide:,} is not a multiple of {asked}"
    if fault:
        fitting = [size for size in possible_sizes(heads, kv_heads, heads) if wide % size == 0]
        nearest = ", ".join(str(size) for size in fitting)
        return [
            error(
                "tensor parallel",
                f"teacher.tensor_parallel {asked} is impossible: {fault}",
                f"use one of {nearest}",
            )
        ]
    if asked > kv_heads:
        return [
            warning(
                "tensor parallel",
                f"{asked} GPUs share {kv_heads} KV heads, so each is kept {asked // kv_heads} times",
                f"use teacher.tensor_parallel {kv_heads} and more replicas, if the weights fit",
            )
        ]
    shares = f"{heads // asked} of {heads} attention heads and {max(kv_heads // asked, 1)} of {kv_heads} KV heads each"
    return [ok("tensor parallel", f"{asked}: {shares}")]


def check_context(config: RunConfig, facts: Facts) -> list[Finding]:
    """`teacher.max_model_len` against the positions that the models know."""
    found = []
    for name, model, asked, key in (
        ("teacher", facts.teacher, config.teacher.max_model_len, "teacher.max_model_len"),
        ("student", facts.student, config.train.sequence_length, "train.sequence_length"),
    ):
        known = model.config.get("max_position_embeddings") if model else None
        if known is None:
            continue
        if asked > known and name == "teacher":
            found.append(
                error(
                    "context", f"{key} {asked:,} is more than the teacher's {known:,} positions", f"use up to {known:,}"
                )
            )
        elif asked > known:
            # Positions start anew at every packed record, so only a single record that long would meet new ones.
            found.append(
                warning(
                    "context",
                    f"{key} {asked:,} is more than the student's {known:,} positions",
                    f"nothing, as long as no record has more than {known:,} tokens",
                )
            )
        else:
            found.append(ok("context", f"{key} {asked:,} of {known:,} positions"))
    return found


def check_student(config: RunConfig, facts: Facts) -> list[Finding]:
    """The student's shape: transformers accepts some that cannot work."""
    if facts.student is None:
        return []
    model = facts.student.config
    hidden, heads = model["hidden_size"], model["num_attention_heads"]
    kv_heads = model.get("num_key_value_heads") or heads
    if not model.get("head_dim") and hidden % heads:
        lower, upper = hidden // heads * heads, -(-hidden // heads) * heads
        return [
            error(
                "student",
                f"hidden size {hidden} is not a multiple of its {heads} heads, and no head_dim is given",
                f"use a hidden size of {lower or upper} or {upper}, or state head_dim",
            )
        ]
    if heads % kv_heads:
        return [
            error(
                "student",
                f"{heads} attention heads are not a multiple of {kv_heads} KV heads",
                f"use {' or '.join(str(size) for size in range(1, heads + 1) if heads % size == 0)} KV heads",
            )
        ]
    width = model.get("head_dim") or hidden // heads
    return [
        ok(
            "student",
            f"{facts.student.name}: {model['num_hidden_layers']} layers, hidden {hidden}, {heads} heads of {width},"
            f" {kv_heads} KV heads",
        )
    ]


def check_weights(config: RunConfig, facts: Facts) -> list[Finding]:
    """Weight files: pointers instead of files, files that were cut, parts that are missing."""
    found = []
    for name, model in (("teacher", facts.teacher), ("student", facts.student)):
        if model is None or (name == "student" and config.student.model is None):
            continue
        found.append(_weights(name, model))
    return found


def _weights(name: str, model: ModelFacts) -> Finding:
    damaged = [file for file in model.weights if file.fault]
    if damaged:
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        pointer = "LFS" in damaged[0].fault
        fix = "`git lfs pull` in its folder" if pointer else "fetch the file again, and compare its size and checksum"
        return error("weights", f"{name}: {damaged[0].name} {damaged[0].fault}{more}", fix)
    # Fingerprints are made of safetensors headers, so a teacher needs them.
    usable = [file for file in model.weights if name == "student" or file.name.endswith(".safetensors")]
    if usable:
        total = sum(file.bytes for file in usable)
        return ok("weights", f"{name}: {len(usable)} file(s), {size(total)}, headers and lengths fit")
    if model.local:
        return error(
            "weights", f"{name}: no *.safetensors beside its config.json", "copy them there, or convert the model"
        )
    return warning(
        "weights", f"{name}: not on this machine in full yet", "nothing: the run itself fetches or converts it"
    )
