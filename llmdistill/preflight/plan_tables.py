"""The plan's document as tables."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from llmdistill.preflight.findings import number, size
from llmdistill.preflight.tables import table


def plan_tables(plan: dict[str, Any]) -> list[Table]:
    """All tables, in reading order."""
    memory = [_teacher_memory(name, one) for name, one in plan.get("teachers", {"": plan["teacher"]}).items()]
    tables = [_volume(plan), _hours(plan), *memory, _training_memory(plan), _assumptions(plan)]
    return [*tables, _measured(plan["measured"])] if "measured" in plan else tables


def _volume(plan: dict[str, Any]) -> Table:
    tokens, cache, models = plan["tokens"], plan["cache"], plan["models"]
    rows = [
        (role, f"{model['name']}: {number(model['parameters'])} parameters{_active(model)}")
        for role, model in models.items()
    ]
    about = "" if tokens["corpus_rows_exact"] else "at least "
    responses = "at most " if plan["teacher"]["mode"] == "generate" else ""
    rows += [
        ("corpus", f"{about}{tokens['corpus_rows']:,} rows, {tokens['sampled_rows']:,} of them rendered"),
        ("records", number(tokens["records"])),
        (
            "tokens",
            f"{number(tokens['prompt_tokens'])} of prompts + {responses}{number(tokens['response_tokens'])}"
            f" of responses = {number(tokens['tokens'])}",
        ),
        ("cache", f"{cache['bytes_per_token']:.1f} bytes a token, {cache['bytes_per_row']:.1f} a supervised row"),
        ("cache in all", f"{size(cache['bytes'])} (whole logits in bf16 would be {size(cache['full_logits_bytes'])})"),
        ("checkpoints", f"{size(cache['checkpoints_and_models_bytes'])} with the models"),
        (
            "disk",
            f"{size(cache['free_bytes'])} free at {cache['disk']}: {'fits' if cache['fits'] else 'DOES NOT FIT'}",
        ),
    ]
    kind = f"{cache['kind']} {cache['top_k']}" if cache["kind"] == "top_k" else cache["kind"]
    return table(f"Volume ({kind}, vocabulary {cache['vocabulary']:,}, {cache['compression']})", ("", ""), rows)


def _active(model: dict[str, Any]) -> str:
    if model["active_parameters"] == model["parameters"]:
        return ""
    return f", {number(model['active_parameters'])} of them active"


def _hours(plan: dict[str, Any]) -> Table:
    teacher, training, cost = plan["teacher"], plan["training"], plan["cost"]
    priced, rounds = cost["price_per_hour"] is not None, plan.get("rounds")
    columns = [
        "hardware",
        "teacher",
        "training",
        f"training on {training['workers']}",
        *(["student writes", "teacher scores it"] if rounds else []),
        "in all",
        *(["cost"] if priced else []),
        "live teacher, epoch",
        "cache pays",
    ]
    rows = []
    for name, total in cost["by_hardware"].items():
        rows.append(
            [
                name,
                _time(teacher["hours"][name]),
                _time(training["hours"][name]),
                _time(training["wall_hours"][name]),
                *([_time(rounds[key][name]) for key in ("student_hours", "teacher_hours")] if rounds else []),
                _time(total["hours"]),
                *([f"{total['money']:,.2f}"] if priced else []),
                _time(teacher["live_epoch_hours"][name]),
                f"from epoch {int(total['cache_pays_after_epochs']) + 1}",
            ]
        )
    verb = "generating" if teacher["mode"] == "generate" else "scoring"
    length = f"{rounds['steps']:,} steps in {rounds['count']} rounds" if rounds else f"{training['epochs']} epochs"
    title = f"Time of one of them: {verb} once, then {training['trainings']} trainings of {length}"
    return table(title, columns, rows)


def _time(hours: float) -> str:
    if hours >= 0.1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 0.1 else f"{hours * 3600:.2g} s"


def _teacher_memory(name: str, teacher: dict[str, Any]) -> Table:
    rows = []
    for parallel, memory in teacher["memory_by_tensor_parallel"].items():
        if memory.get("fault"):
            rows.append([parallel, memory["fault"], "", "", ""])
            continue
        rows.append(
            [
                parallel,
                size(memory["weights"]),
                size(memory["kv_cache"]),
                size(memory["logprobs"]),
                ", ".join(memory["fits"]) or "none",
            ]
        )
    columns = ("tensor parallel", "weights", "KV cache, full batch", "log-probabilities", "fits")
    return table(f"Teacher{f' {name}' if name else ''}: memory of each GPU", columns, rows)


def _training_memory(plan: dict[str, Any]) -> Table:
    training = plan["training"]
    rows = [
        [
            f"{stage}{' (chosen)' if int(stage) == training['zero_stage'] else ''}",
            size(memory["model_states"]),
            size(memory["activations"]),
            size(memory["head"]),
            size(memory["total"]),
            ", ".join(memory["fits"]) or "none",
        ]
        for stage, memory in training["memory_by_zero_stage"].items()
    ]
    columns = ("ZeRO stage", "model states", "activations", "head", "in all", "fits")
    return table(f"Training: memory of each GPU, {training['workers']} workers", columns, rows)


def _assumptions(plan: dict[str, Any]) -> Table:
    said = plan["assumptions"]
    use = said["utilisation"]
    batch = f", batches of up to {said['largest_batch']}" if said["largest_batch"] else ""
    rows = [
        ("responses", said["responses"]),
        ("FLOPs of a token", said["flops_per_token"]),
        (
            "utilisation",
            f"scoring {use['scoring']:g} and training {use['training']:g} of the peak,"
            f" decoding {use['decoding']:g} of the bandwidth{batch}",
        ),
        ("storage", f"{said['storage_price_per_gb_month']:g} a GB and month, for one month"),
        *([("zstd", said["zstd"])] if said["zstd"] else []),
        *(
            (
                name,
                f"{item['flops'] / 1e12:,.3g} TFLOP/s in bf16, {item['bandwidth'] / 1e12:,.3g} TB/s,"
                f" {size(item['memory'])}",
            )
            for name, item in said["hardware"].items()
        ),
    ]
    return table("Assumptions", ("", ""), rows)


def _measured(measured: dict[str, Any]) -> Table:
    rows = [
        [
            f"{entry['k']}{' (configured)' if entry['k'] == measured['configured_k'] else ''}",
            f"{entry['mass_mean']:.4f}",
            f"{entry['mass_p5']:.4f}",
            f"{entry['kl']:.5f}",
            f"{entry['bytes_per_row']:.1f}",
        ]
        for entry in measured["by_k"]
    ]
    columns = ("k", "captured mass, mean", "of the 5 % worst", "KL(full ‖ stored)", "bytes a row")
    return table(f"Measured on {measured['rows']:,} rows of the teacher, in {measured['seconds']:.0f} s", columns, rows)
