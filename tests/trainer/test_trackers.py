"""What is logged besides metrics.jsonl."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from llmdistill.errors import ConfigError
from llmdistill.trainer.job import TrainJob
from llmdistill.trainer.metrics import read_metrics
from llmdistill.trainer.trackers import TrainingLog
from tests.trainer.run_ranks import job_for


def curves(folder: Path) -> list[tuple[str, int, float]]:
    """Tag, step and value of everything in a folder's event files, read from their bytes (TFRecord framing)."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            at += 12 + length + 4
    return found


def logged(job: TrainJob, first: int, last: int) -> None:
    log = TrainingLog(job, first)
    for step in range(first + 1, last + 1):
        log.write(step, {"loss": 1 / step, "rows": 7 * step, "records": ["00"], "grad_norm": float("inf")})
    log.close()


def test_tensorboard_has_the_names_and_steps_of_the_metrics_and_none_twice(tmp_path: Path) -> None:
    job = job_for(tmp_path, tmp_path, tmp_path)
    logged(job, 0, 5)
    logged(job, 3, 6)  # a call that continues at the checkpoint of step 3
    expected = [(name, step, value) for step in range(1, 7) for name, value in (("loss", 1 / step), ("rows", 7 * step))]
    found = curves(tmp_path / "tensorboard" / "student")
    assert [item[:2] for item in found] == [item[:2] for item in expected]
    assert [item[2] for item in found] == pytest.approx([item[2] for item in expected])
    lines = read_metrics(job.metrics)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert "grad_norm" not in lines[0]


@pytest.mark.parametrize("service", ["wandb", "mlflow"])
def test_a_service_without_its_package_is_refused(tmp_path: Path, service: str) -> None:
    try:
        __import__(service)
        pytest.skip(f"{service} is installed here")
    except ImportError:
        pass
    job = job_for(tmp_path, tmp_path, tmp_path, report_to=(service,))
    with pytest.raises(ConfigError, match=rf"train\.report_to: the package {service} cannot be imported"):
        TrainingLog(job, 0)
