"""What imports and commands leave alone until it is needed: each of these takes a second or more."""

import json
import subprocess
import sys

HEAVY = ("torch._dynamo", "torch.utils.tensorboard", "tensorboard", "scipy", "matplotlib", "onnx", "onnxscript")

ONLY_LOOKING = """
import importlib
for command, arguments in [
    ("cell", ["list"]), ("cell", ["show", "enas"]), ("cell", ["random"]), ("cell", ["--help"]),
    *((command, ["--help"]) for command in ("search", "train", "evaluate", "rank", "report")),
]:
    try:
        assert importlib.import_module(f"wenet.cli.{command}").main(arguments) == 0
    except SystemExit:
        pass
"""

BEGINNING = """
from wenet import WenetError, search, train
from wenet.run import Console

class Said(Exception):
    pass

class Impatient(Console):
    def say(self, text=""):
        assert text.startswith("text "), text
        raise Said

for run in (search, train):
    try:
        run(preset="quick", device="cpu", console=Impatient())
    except Said:
        continue
    raise AssertionError("nothing was said")
"""


def loaded_by(code: str) -> set[str]:
    """Which heavy modules a new process has after this code."""
    ask = f"import json, sys; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{ask}"], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_of_both_packages():
    assert loaded_by("import wenet_kernels, wenet") == set()


def test_import_starts_no_thread():
    refuse = "import threading; threading.Thread.start = lambda self: 1 / 0"
    assert loaded_by(f"import torch; {refuse}; import wenet_kernels, wenet") == set()


def test_a_heavy_module_would_be_seen():
    assert loaded_by("import wenet, scipy.stats") == {"scipy"}


def test_commands_that_only_look():
    assert loaded_by(ONLY_LOOKING) == set()


def test_a_run_says_its_first_line_before_heavy_work():
    """Text and machine are named before memory is counted and a step is timed, which load torch._dynamo."""
    assert loaded_by(BEGINNING) == set()
