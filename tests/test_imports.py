"""What must stay light: the package, the configuration and the command's help."""

import subprocess
import sys
import time
from pathlib import Path

CODE = """
import importlib, pkgutil, sys
import llmdistill, llmdistill.config as config, llmdistill.types, llmdistill.errors, llmdistill.cli.main
for module in pkgutil.iter_modules(config.__path__):
    importlib.import_module(f"llmdistill.config.{module.name}")
print([name for name in ("torch", "ray", "vllm", "deepspeed", "transformers") if name in sys.modules])
"""


def test_configuration_and_command_line_import_nothing_heavy() -> None:
    answer = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_help_answers_in_under_a_second() -> None:
    started = time.monotonic()
    command = Path(sys.executable).parent / "llmdistill"
    answer = subprocess.run([str(command), "--help"], capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 1.0
    assert "generate" in answer.stdout
