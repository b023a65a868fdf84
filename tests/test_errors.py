import pickle

import pytest

from llmdistill import errors


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("LLMDistillError", 1),
        ("ConfigError", 2),
        ("DataError", 3),
        ("ClusterError", 4),
        ("EngineError", 1),
        ("TrainingError", 1),
        ("WorkerDiedError", 1),
    ],
)
def test_errors_keep_their_parts_when_pickled(kind: str, status: int) -> None:
    error = pickle.loads(pickle.dumps(getattr(errors, kind)("what happened", where="file", fix="do this")))
    assert type(error).__name__ == kind
    assert error.exit_status == status
    assert str(error) == "file: what happened\n  fix: do this"
