from pathlib import Path

from llmdistill.config.reference import reference


def test_the_page_of_settings_is_the_programs_own() -> None:
    page = Path(__file__).parents[2] / "docs" / "config.md"
    assert page.read_text(encoding="utf-8") == reference(), "python -m llmdistill.config.reference > docs/config.md"
    assert "| `lr` |" in reference()
