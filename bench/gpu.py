"""`python bench/gpu.py`: all measurements on a GPU, in two stages. The first checks that kernels are correct and near
their floors (smoke, 100 s); the second measures speed beside peers, epochs, all parity tests and a profiler's counts
(main, 7 minutes)."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that the command runs from a plain checkout

from bench.on_gpu.counters import find_profiler, profiler_command, read_counters
from bench.on_gpu.results import Report, Results, say, table

TESTS = tuple(f"tests/wenet_kernels/test_{name}.py" for name in ("triton_gpu", "triton", "programs_triton"))
ALL_TESTS = "all parity tests"
COUNTERS = "counters"


@dataclass(frozen=True)
class Stage:
    """The sections in order, each with the share of the time that may have passed at its end. The most valuable come
    first; time that a section does not use is left to later ones."""

    seconds: float
    sections: dict[str, float]


STAGES = {
    "smoke": Stage(100, {"smoke": 1.0}),
    "main": Stage(
        420,
        {
            "compiling": 0.14,
            "paper shape": 0.32,
            "large cell": 0.42,
            "epochs": 0.54,
            "other cases": 0.66,
            "compiled peers": 0.72,
            ALL_TESTS: 0.94,
            COUNTERS: 1.0,
        },
    ),
}
NO_GPU = 2  # exit code of a section


def run_for(command: Sequence[str], limit: float, live: bool = False) -> tuple[int | None, str]:
    """Run a command; returns its exit code, None if it was stopped after `limit` seconds, and its output."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=None if live else output,
            stderr=output,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        return code, output.read()


def section_command(name: str, stage: str, folder: Path, seconds: float) -> list[str]:
    """Run a section in its own process, so that a failure, crash or hang does not affect others."""
    options = ["--section", name, "--stage", stage, "--out", str(folder.absolute()), "--seconds", f"{seconds:.1f}"]
    return [sys.executable, __file__, *options]


def run_section(report: Report, name: str, limit: float) -> tuple[Report, int | None]:
    """Run a section and read its results from the file."""
    stage = report.results.stage
    code, errors = run_for(section_command(name, stage, report.folder, 0.95 * limit), limit, live=True)
    report = Report.read(report.folder, stage)
    last = (errors.strip().splitlines() or [""])[-1]
    if code is None:
        report.leave_out(f"{name}, the rest of it", f"stopped after {limit:.0f} s")
    elif code == NO_GPU:
        print(last, file=sys.stderr)
    elif code != 0:
        report.leave_out(f"{name}, the rest of it", f"exit code {code}: {last}")
    return report, code


def run_tests(report: Report, limit: float) -> None:
    """Run the tests of the Triton kernels on this GPU, in many processes, because most time is compiling."""
    if importlib.util.find_spec("pytest") is None:
        return report.add_parity(ALL_TESTS, False, "pytest is not installed")
    parallel = ["-n", str(min(12, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    code, output = run_for([sys.executable, "-m", "pytest", "-q", "-rs", "--tb=line", *parallel, *TESTS], limit)
    (report.folder / "tests.txt").write_text(output, encoding="utf-8")
    lines = output.strip().splitlines() or [""]
    outcome = f"not finished after {limit:.0f} s" if code is None else lines[-1]
    report.add_parity(ALL_TESTS, code == 0, outcome, exit_code=code)


def run_profiler(report: Report, limit: float) -> None:
    """Profile one launch of each main kernel with NVIDIA's profiler."""
    profiler = find_profiler()
    if profiler is None:
        return report.leave_out(COUNTERS, "ncu is not installed")
    log = report.folder.absolute() / "counters.csv"
    command = section_command("launches", report.results.stage, report.folder, limit)
    code, output = run_for(profiler_command(profiler, log, command), limit)
    found = read_counters(log.read_text(encoding="utf-8")) if log.exists() else {}
    report.results.counters = found
    if not found:
        last = (output.strip().splitlines() or [""])[-1]
        report.leave_out(COUNTERS, f"exit code {code}: {last}" if code is not None else f"stopped after {limit:.0f} s")


def run_stage(name: str, folder: Path, parity: bool = True) -> int:
    """Run all sections of a stage; returns 0, 1 if a parity check failed or did not end, or 2 without a GPU."""
    stage, started = STAGES[name], time.monotonic()
    report = Report(Results(name), folder)
    report.write()
    if parity and ALL_TESTS in stage.sections:
        report.expect_parity(ALL_TESTS)
    for section, share in stage.sections.items():
        began = time.monotonic()
        limit = started + share * stage.seconds - began
        if section == ALL_TESTS:
            if parity:
                run_tests(report, limit)
        elif section == COUNTERS:
            run_profiler(report, limit)
        else:
            report, code = run_section(report, section, limit)
            if code == NO_GPU:
                return NO_GPU
        report.results.sections[section] = time.monotonic() - began
        report.write()
    say("\n".join(table(report.results)))
    unchecked = parity and not report.results.parity  # its process died before the checks
    return int(bool(report.results.failed_checks) or unchecked)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=STAGES, default="smoke", help="default: %(default)s")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-results"), metavar="DIR", help="for all files (default: %(default)s)"
    )
    parser.add_argument("--no-parity", action="store_true", help="leave the tests of the main stage out")
    parser.add_argument("--section", metavar="NAME", help="measure this alone, into the files of an earlier run")
    parser.add_argument("--seconds", type=float, default=600, help="that the section has (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.section:
        from bench.on_gpu.sections import run_section as run_here  # imports PyTorch and all else

        return run_here(options.section, options.stage, options.out, options.seconds)
    return run_stage(options.stage, options.out, not options.no_parity)


if __name__ == "__main__":
    sys.exit(main())
