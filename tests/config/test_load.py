from pathlib import Path

import pytest
import yaml

from llmdistill.config.load import load_config
from llmdistill.errors import ConfigError

ROOT = Path(__file__).parents[2]
MINIMAL = {
    "output": "runs/x",
    "prompts": {"sources": [{"path": "a.jsonl"}]},
    "teacher": {"model": "somewhere"},
    "student": {"from_teacher": {"layers": 2}},
    "objectives": [{"type": "forward_kl", "weight": 0.9}, {"type": "sequence_ce", "weight": 0.1}],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    return file


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("**/*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_parses_and_its_files_exist(config: Path) -> None:
    loaded = load_config(config)
    assert all((ROOT / source.path).is_file() for source in loaded.prompts.sources if source.path is not None)


def test_overrides_reach_any_leaf(path: Path) -> None:
    loaded = load_config(
        path, ["train.lr=5e-4", "objectives.0.weight=0.5", "teacher.sampling.seed=7", "evaluate.baseline=false"]
    )
    assert loaded.train.lr == 5e-4
    assert loaded.objectives[0].weight == 0.5
    assert loaded.teacher.sampling.seed == 7
    assert loaded.evaluate.baseline is False


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lrr=1", "train.lrr: unknown key; did you mean train.lr?"),
        ("objectives.0.weigth=1", "objectives.0.weigth: unknown key; did you mean objectives.0.weight?"),
        ("prompts.sources.0.pth=b", "did you mean prompts.sources.0.path?"),
        ("train.lr=fast", "train.lr: Input should be a valid number, unable to parse string as a number, got 'fast'"),
        ("train.tokens_per_step=9000", "use 8192"),
        ("student.from_teacher=null", "exactly one of student.from_teacher, student.model and"),
        ("student.model=other", "exactly one of student.from_teacher, student.model and"),
        (
            "student.from_teacher.parameters=many",
            "student.from_teacher.parameters: 'many' is not a number of parameters",
        ),
        (
            "student.from_teacher.layers=[0, -1]",
            "student.from_teacher.layers.1: Input should be greater than or equal to 0",
        ),
        ("student.from_teacher={choose_layers: uniform}", "give a size, one of dense_experts, experts, hidden_size"),
        ("student.from_teacher={experts: 2, dense_experts: 2}", "give one of them"),
        ("student.from_teacher={layers: [1], choose_layers: divergence}", "nothing for choose_layers to choose"),
        ("student={config: {model_type: llama}, lora: {r: 8}}", "student.lora: adapters on random weights"),
        ("student={config: {hidden_size: 8}}", "student.config needs a model_type"),
        ("objectives.0.temperature=2", "log-sum-exp at that temperature"),
        ("objectives.5.weight=1", "'5' is not an item of a list of 2"),
        ("output.folder=1", "'output' holds a value and has no keys below it"),
        ("train.lr", "is not an override"),
        ("train.lr=[", "is not YAML"),
    ],
)
def test_faults_are_named(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "number"),
    [("60M", 60_000_000), ("1.7B", 1_700_000_000), ("1.7 b", 1_700_000_000), ("500", 500), ("2k", 2000)],
)
def test_numbers_of_parameters(path: Path, text: str, number: int) -> None:
    student = load_config(path, [f"student.from_teacher.parameters={text}"]).student
    assert student.from_teacher is not None
    assert student.from_teacher.parameters == number


def test_missing_section_and_missing_file(tmp_path: Path, path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(tmp_path / "absent.yaml")
    path.write_text(yaml.safe_dump({key: value for key, value in MINIMAL.items() if key != "teacher"}))
    with pytest.raises(ConfigError, match="teacher: this key is required"):
        load_config(path)


def test_an_objective_may_stand_once(path: Path) -> None:
    path.write_text(yaml.safe_dump(MINIMAL | {"objectives": [{"type": "sequence_ce"}] * 2}))
    with pytest.raises(ConfigError, match="may stand once"):
        load_config(path)


def test_resolved_config_loads_again(path: Path, tmp_path: Path) -> None:
    loaded = load_config(path)
    again = tmp_path / "resolved.json"
    again.write_text(loaded.model_dump_json())
    assert load_config(again) == loaded


def test_the_prompts_of_the_documentation_parse(path: Path) -> None:
    page = (ROOT / "docs" / "prompts.md").read_text()
    blocks = [block.partition("```")[0] for block in page.split("```yaml\n")[1:]]
    prompts, decontamination = (yaml.safe_load(block) for block in blocks)
    path.write_text(yaml.safe_dump(MINIMAL | {"prompts": prompts["prompts"] | decontamination}))
    assert len(load_config(path).prompts.sources) == 4
