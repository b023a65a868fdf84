"""The training under a real Ray: a worker that dies costs the steps since the newest checkpoint, an error ends it."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llmdistill.cluster import enable_token, ray_cluster
from llmdistill.config.cluster import ClusterConfig
from llmdistill.config.student import FromTeacherConfig
from llmdistill.errors import ClusterError, DataError
from llmdistill.student.creation import create_from_teacher
from llmdistill.trainer.checkpoint import latest_checkpoint
from llmdistill.trainer.job import TrainJob
from llmdistill.trainer.launcher import cores_per_worker, launch
from llmdistill.trainer.metrics import read_metrics
from llmdistill.trainer.torchrun import is_worker, process_group
from tests.helpers import make_cache
from tests.trainer.run_ranks import job_for, run_ranks


def training_workers() -> list[int]:
    """Process ids of this process's Ray Train workers."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and (folder / "cmdline").read_bytes().startswith(b"ray::RayTrainWorker"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def signal_one(job: TrainJob, others: set[int], sent: signal.Signals) -> None:
    """Send a signal to one worker of a job as soon as there is a checkpoint."""
    while latest_checkpoint(job.checkpoints) is None:
        time.sleep(0.01)
    os.kill(min(set(training_workers()) - others), sent)


@pytest.mark.timeout(600)
def test_a_dead_or_hanging_worker_restarts_at_the_newest_checkpoint_and_errors_do_not(
    tiny_teacher: Path, tmp_path: Path, ray: None
) -> None:  # cases R4, R6, R8
    make_cache(tmp_path / "cache", records=24)
    create_from_teacher(tiny_teacher, FromTeacherConfig(layers=2), tmp_path / "init")
    calm = job_for(tmp_path / "calm", tmp_path / "cache", tmp_path / "init", epochs=8)
    run_ranks(calm)
    expected = [line["loss"] for line in read_metrics(calm.metrics)]
    # A worker that is stopped is not dead: it only shows no sign of life any more.
    for sent, timeout, message in ((signal.SIGKILL, 540.0, ""), (signal.SIGSTOP, 10.0, "no sign of life in 10 s")):
        messages: list[str] = []
        folder, others = tmp_path / sent.name, set(training_workers())
        job = job_for(folder, tmp_path / "cache", tmp_path / "init", epochs=8, watchdog_timeout_s=timeout)
        sender = threading.Thread(target=signal_one, args=(job, others, sent), daemon=True)
        sender.start()
        launch(job, tmp_path / "scratch", lambda line: None, messages.append)
        sender.join()
        assert "restart 1 of 2" in messages[0]
        assert message in messages[0]
        assert [line["loss"] for line in read_metrics(job.metrics)] == pytest.approx(expected, rel=1e-4)

    messages = []
    too_long = replace(job, train=job.train.model_copy(update={"sequence_length": 16, "tokens_per_step": 64}))
    with pytest.raises(DataError, match="the longest record has 20 tokens"):
        launch(too_long, tmp_path / "scratch", lambda line: None, messages.append)
    assert not messages


@pytest.mark.timeout(600)
def test_a_training_goes_on_with_the_workers_that_are_left(tiny_teacher: Path, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    make_cache(tmp_path / "cache", records=24)
    create_from_teacher(tiny_teacher, FromTeacherConfig(layers=2), tmp_path / "init")
    calm = job_for(tmp_path / "calm", tmp_path / "cache", tmp_path / "init", epochs=8)
    run_ranks(calm)
    expected = [line["loss"] for line in read_metrics(calm.metrics)]

    enable_token()  # before the cluster starts, so that both sides agree
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    job = job_for(tmp_path / "lost", tmp_path / "cache", tmp_path / "init", epochs=8, min_workers=1)

    def remove() -> None:
        while latest_checkpoint(job.checkpoints) is None:
            time.sleep(0.01)
        cluster.remove_node(node)

    messages: list[str] = []
    try:
        with ray_cluster(ClusterConfig(address=cluster.address)):
            thread = threading.Thread(target=remove)
            thread.start()
            launch(job, tmp_path / "scratch", lambda line: None, messages.append)
            thread.join()
            with pytest.raises(ClusterError, match=r"the trainer \(train.workers 2\) needs 2 CPU, the cluster has 1"):
                launch(replace(calm, checkpoints=tmp_path / "none"), tmp_path / "scratch", lambda line: None)
    finally:
        cluster.shutdown()
    assert any("the cluster holds 1 of 2 workers" in message for message in messages), messages
    assert [line["loss"] for line in read_metrics(job.metrics)] == pytest.approx(expected, rel=1e-4)


def test_numbers_of_workers_are_those_of_which_the_batch_is_a_multiple(tmp_path: Path) -> None:
    train = job_for(tmp_path, tmp_path, tmp_path).train
    sizes = {"micro_batch_size": 1, "sequence_length": 16, "tokens_per_step": 16 * 12, "workers": 6, "min_workers": 2}
    assert train.model_copy(update=sizes).worker_counts() == [6, 4, 3, 2]
    assert train.model_copy(update=sizes | {"min_workers": None}).worker_counts() == [6]
    with pytest.raises(ValueError, match=r"train\.min_workers: 7 is more than train\.workers 6"):
        type(train).model_validate(sizes | {"min_workers": 7})


def test_a_launcher_of_another_size_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not is_worker()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "4")
    assert is_worker()
    train = job_for(tmp_path, tmp_path, tmp_path).train
    with pytest.raises(Exception, match=r"4 processes were launched, and train\.workers is 2"), process_group(train):
        pass


@pytest.mark.parametrize(
    ("cpus", "workers", "cores"),
    [([2, 2], 1, 2), ([8], 2, 4), ([8], 3, 2), ([2, 2], 2, 2), ([8, 2], 3, 2), ([8, 2], 4, 2), ([4, 4, 1], 9, 1)],
)
def test_a_worker_never_asks_for_more_cores_than_a_node_has(cpus: list[int], workers: int, cores: int) -> None:
    assert cores_per_worker(cpus, workers) == cores
