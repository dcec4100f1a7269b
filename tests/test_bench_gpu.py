"""`python bench/gpu.py` without a GPU: its sections over tiny shapes in Triton's interpreter, its limits, its files."""

import functools
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import gpu, parity
from bench.cases import Case
from bench.on_gpu import ahead, choice, clock, counters, programs, results, sections
from wenet.cells.published import DARTS_V2
from wenet_kernels import WenetError, backends

from .bare_checkout import bare_environment

ROOT = Path(__file__).parents[1]
TINY = Case("tiny", networks=2, hidden=3, rows=4, steps=1, masked=True)
TINY_CELL = Case("tiny cell", 1, hidden=3, rows=2, steps=1, coupling="independent", norm=None, cell=DARTS_V2)

needs_interpreter = pytest.mark.skipif(
    torch.cuda.is_available() or backends()["triton"] != "ready", reason="needs Triton's interpreter"
)


class Rehearsal(clock.Gpu):
    """The processor in place of a GPU: clocks instead of events, no graphs, and a trace made up."""

    kind = "cpu"

    def name(self):
        return "no GPU"

    def cache_bytes(self):
        return 1e5

    def graphed(self, call):
        return call

    def seconds_between(self, call, count):
        started = time.perf_counter()
        call()  # once stands for all
        return (time.perf_counter() - started) * count

    def peak_bytes(self, call):
        call()
        return 0

    def release(self):
        pass

    def profiled(self):
        self.seen = getattr(self, "seen", 0) + 1
        return nullcontext()

    def trace(self, call):
        call()
        kernel = {"cat": "kernel", "name": "step_forward", "dur": 3.0}
        return {"traceEvents": [{**kernel, "ts": 10.0}, {**kernel, "ts": 15.0}, {"cat": "cpu_op", "name": "x"}]}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(clock, "MOST_SECONDS", 0.0)
    monkeypatch.setattr(clock, "WARM_UP", 1)
    tiny = choice.Choice(
        (TINY, TINY_CELL),
        ours={"triton": "fp32"},
        peers=dict.fromkeys(("traced", "loop", "reference", "lstm"), "tf32"),
        parity=("full",),
        parity_steps=1,
        repeats=2,
        programs=programs.Programs("tiny programs", cells=2, hidden=3, rows=2, steps=1),
        tricks=("prefetch of weights",),
    )
    report = results.Report(results.Results("smoke"), tmp_path)
    return sections.Bench(report, Rehearsal(), tiny, time.monotonic() + 1000)


@needs_interpreter
def test_smoke_from_end_to_end(bench, monkeypatch):
    """Every section of the first stage is run and written; nothing is left out."""
    compiling = []
    monkeypatch.setattr(sections, "Compiling", lambda name: compiling.append(name) or FakeCompiling())
    card = functools.partial(sections.measure_card, elements=1 << 12, size=16)
    monkeypatch.setattr(sections, "measure_card", card)
    sections.smoke(bench)
    written = json.loads((bench.report.folder / "smoke.json").read_text())
    assert compiling == ["smoke"]
    assert written["left_out"] == {}
    assert set(written["parity"]) == set(sections.parity_names(bench.choice))
    assert all(check["passed"] for check in written["parity"].values())
    assert len(written["parity"]["tiny, full"]["deviations"]) == 6
    assert [(e["case"], e["backward"]) for e in written["recurrence"]] == [
        ("tiny", False), ("tiny", True), ("tiny cell", False), ("tiny cell", True),
        ("tiny programs", False), ("tiny programs", True),
    ]  # fmt: skip
    assert all(entry["seconds"] > 0 for entry in written["recurrence"])
    for entry in written["recurrence"][:4]:
        assert entry["over_floor"] == pytest.approx(entry["seconds"] / entry["floor_seconds"])
    assert [row["kernel"] for row in written["kernels"]["tiny"]] == ["step_forward", "all"]
    assert [entry["without"] for entry in written["tricks"]] == ["prefetch of weights"] * 2
    text = (bench.report.folder / "smoke.md").read_text()
    assert "| tiny | triton | both |" in text and "| without |" in text


class FakeCompiling:
    def wait(self, deadline):
        return []


@needs_interpreter
def test_main_measurements_from_end_to_end(bench):
    bench.choice = replace(bench.choice, others=(replace(TINY, name="other"),))
    sections.measure_card(bench, elements=1 << 12, size=16)
    sections.measure_recurrence(bench, sections.target_pairs(bench, TINY))
    sections.measure_recurrence(bench, sections.other_pairs(bench.choice))
    small = {"pool": 2, "batch": 2, "keep": 1, "hidden": 6, "nodes": 2, "bptt": 3, "data_batch": 4}
    sections.measure_search_epoch(bench, "fp32", "quick", dataset="sotu", backend="reference", **small)
    sections.measure_evaluation_epoch(bench, "fp32", size=8, words=20)
    found = bench.report.results
    assert found.left_out == {}
    contestants = [entry["contestant"] for entry in found.recurrence[:10:2]]
    assert all(entry["seconds"] > 0 for entry in found.recurrence)
    assert contestants == ["triton", "traced", "loop", "reference", "lstm"]
    assert {entry["case"] for entry in found.recurrence[10:]} == {"other"}
    assert [entry["epoch_seconds"] > entry["window_seconds"] > 0 for entry in found.epochs] == [True, True]
    assert found.epochs[0]["floor_seconds"] > 0


@needs_interpreter
def test_a_profiler_sees_one_launch_of_each_main_kernel(bench):
    sections.launch_once_each(bench)
    assert bench.gpu.seen == 3


@needs_interpreter
def test_a_wrong_kernel_fails_parity(bench, monkeypatch):
    """The comparison that the GPU command makes is one that can fail, here where no GPU is."""
    from wenet_kernels.triton.workspace import Workspace

    load = Workspace.load

    def wrong(self, r):
        load(self, r)
        self.activation.copy_(self.activation.flip(1))

    monkeypatch.setattr(Workspace, "load", wrong)
    sections.measure_parity(bench)
    assert bench.report.results.failed_checks == ["tiny, full", "tiny cell, full"]


@needs_interpreter
def test_a_wrong_kernel_of_programs_fails_parity(bench, monkeypatch):
    from wenet_kernels.triton.program_launches import ProgramLaunches

    given = ProgramLaunches._given
    monkeypatch.setattr(ProgramLaunches, "_given", lambda self, *grads: given(self, *grads).flip(2))
    sections.measure_programs(bench)
    assert bench.report.results.failed_checks == ["tiny programs"]


def test_unwritten_memory_fails_parity():
    truth = [torch.randn(3, 4, dtype=torch.float64)]
    with sections.nan_in_new_memory():
        ours = [torch.empty(3, 4)]
    (deviation,) = parity.compare(truth, ours, [truth[0].float()])
    assert not deviation.passed


@pytest.mark.parametrize("precision", ["full", "bf16"])
def test_the_comparison_tells_a_small_error(precision):
    """Eager PyTorch in the same precision bounds what is allowed: a few times its own error is too much."""
    exact = parity.draw_operands(TINY, seed=1)
    like = torch.float32 if precision == "full" else torch.bfloat16
    truths = parity.results(parity.moved(exact, "cpu", torch.float64), "reference")
    eager = parity.results(parity.moved(exact, "cpu", like), "reference")
    assert all(d.passed for d in parity.compare(truths, eager, eager, parity.MOST[precision]))
    worse = [t + 3 * (e.double() - t) + 2e-5 * t for t, e in zip(truths, eager, strict=True)]
    assert not any(d.passed for d in parity.compare(truths, worse, eager, parity.MOST[precision]))


def test_nothing_is_compared_with_zero():
    """The rows of a batch-normalised state sum to a constant: a derivative of ones has no gradient."""
    exact = parity.draw_operands(TINY, seed=1)
    exact = replace(exact, grad_output=torch.ones_like(exact.grad_output))
    truths = parity.results(parity.moved(exact, "cpu", torch.float64), "reference")
    with pytest.raises(WenetError, match="nothing to compare"):
        parity.compare(truths, truths, truths)


def test_what_fails_or_comes_too_late_is_left_out(bench):
    def fail():
        raise RuntimeError("no such kernel\nand more")

    bench.attempt("this", fail)
    bench.attempt("that", lambda: bench.report.results.card.update(bandwidth=1e12))
    bench.deadline = 0.0
    bench.attempt("late", fail)
    written = json.loads((bench.report.folder / "smoke.json").read_text())
    assert written["left_out"] == {"this": "RuntimeError: no such kernel", "late": "no time was left"}
    assert written["card"] == {"bandwidth": 1e12}


def test_kernels_and_gaps():
    launches = [clock.Launch("a", 0, 2), clock.Launch("b", 3, 4), clock.Launch("a", 7, 2), clock.Launch("a", 12, 5)]
    a, b, everything = clock.summarise(launches)
    assert (a["kernel"], a["launches"], a["us"], a["gap_us"], a["total_us"]) == ("a", 3, 2, 0, 9)
    assert (b["kernel"], b["gap_us"]) == ("b", 1)
    assert (everything["launches"], everything["gap_us"], everything["total_us"]) == (4, 4, 13)
    assert clock.summarise([]) == []


def test_calls_are_timed_many_at_once(monkeypatch):
    """Rounds of 40 ms, of a call that takes a quarter of a millisecond."""

    class Clock(clock.Gpu):
        counts: list[int] = []  # noqa: RUF012

        def seconds_between(self, call, count):
            self.counts.append(count)
            return count / 4096

    assert clock.seconds_of(Clock(), lambda: None) == 1 / 4096
    assert Clock.counts == [1] * clock.WARM_UP + [164] * clock.ROUNDS


def test_counters_are_read_from_the_profilers_table():
    log = (
        "==PROF== Connected to process 7\n"
        '"ID","Kernel Name","dram__bytes_read.sum","smsp__average_warps_issue_stalled_barrier.ratio","registers"\n'
        '"","","Mbyte","inst",""\n'
        '"0","step_forward","1,172.8","0.25","200"\n'
        '"1","weight_gradient","10","n/a","100"\n'
    )
    assert counters.read_counters(log) == {
        "step_forward": {
            "dram__bytes_read.sum (Mbyte)": 1172.8,
            "smsp__average_warps_issue_stalled_barrier.ratio (inst)": 0.25,
        },
        "weight_gradient": {"dram__bytes_read.sum (Mbyte)": 10.0},
    }
    assert counters.read_counters("==ERROR== no permission\n") == {}


def test_kernels_are_compiled_ahead_into_the_cache(tmp_path):
    """With a driver that only says which GPU it is: each part compiles its own kernels, and again they are found."""
    pytest.importorskip("triton", reason="triton is not installed")
    program = """
import sys, torch, triton
from types import SimpleNamespace
from triton.backends.compiler import GPUTarget
from bench.cases import Case
from bench.on_gpu import ahead
from bench.on_gpu.choice import Choice

triton.runtime.driver.set_active(SimpleNamespace(
    get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0,
    get_current_stream=lambda device: 0, get_device_interface=lambda: None,
))
case = Case("tiny", 1, 16, 16, norm=None)
choice = Choice((case,), compiled=("bf16",))
print(ahead.compile_part(choice, int(sys.argv[1]), 8, torch.device("meta")))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def compiled(part):
        command = [sys.executable, "-c", program, str(part)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return int(done.stdout), {path for path in tmp_path.rglob("*.cubin")}

    count, first = compiled(1)
    assert count == len(first) >= 1
    assert compiled(1)[1] == first
    assert len(compiled(2)[1] - first) >= 1


def test_compiling_is_stopped_at_its_limit(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: REAL_POPEN(["sleep", "60"], **options))
    compiling = ahead.Compiling("smoke", parts=2)
    assert compiling.wait(time.monotonic()) == [f"part {part}: stopped at the time limit" for part in (0, 1)]


REAL_POPEN = subprocess.Popen


def test_a_trick_is_left_out_of_new_workspaces():
    from wenet_kernels.triton import plan

    shape = plan.Shape(120, 20, 200, 8, "highway", "batch", "bf16", weighted=True, masked=True, keep=True)
    with ahead.without("one launch a step"):
        assert not plan.choose_tiling(shape, plan.Machine()).fused
    with ahead.without("copies ahead"):
        assert plan.choose_tiling(shape, plan.Machine()).forward.stages == 1
    with ahead.without("transposed products"):
        assert plan.choose_tiling(shape, plan.Machine()).forward.axis == 0
    with ahead.without(None):
        tiling = plan.choose_tiling(shape, plan.Machine())
        assert tiling.fused
        assert tiling.forward.axis == 1
    assert set(choice.TRICKS) == set(ahead.TRICKS)


def test_activations_are_approximate_only_in_bf16_on_nvidias():
    from wenet_kernels import aot

    def found(setting, arch):
        launches = aot.launches(aot.SETTINGS[setting], arch)
        return {launch.options["APPROXIMATE"] for launch in launches if "APPROXIMATE" in launch.options}

    assert found("paper bf16", "sm_90") == {True}
    assert found("paper full", "sm_90") == found("paper bf16", "gfx942") == {False}
    with ahead.without("approximate activations"):
        assert found("paper bf16", "sm_90") == {False}


# ---- the command


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure this GPU for minutes")
def test_a_bare_checkout_starts_and_says_that_there_is_no_gpu(tmp_path):
    """Neither platformdirs, nor an installed wenet, nor its native module: help, and all imports of a section."""
    (tmp_path / "site").mkdir()
    environment = bare_environment(tmp_path / "site")
    run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, str(ROOT / "bench" / "gpu.py"), "--help"], **run)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--stage {smoke,main}" in done.stdout
    for stage in gpu.STAGES:
        command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--stage", stage, "--out", "found"]
        done = subprocess.run(command, **run)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "bench/gpu.py: this machine has no CUDA device that PyTorch can use\n"


def stage_with(monkeypatch, tmp_path, outcomes):
    """A stage whose processes only end as `outcomes` say, by section: an exit code, and what is done before it."""

    def run(command, limit, live=False):
        name = command[command.index("--section") + 1] if "--section" in command else "tests"
        code, act = outcomes.get(name, (0, lambda report: None))
        report = results.Report.read(tmp_path, "smoke" if "smoke" in outcomes else "main")
        act(report)
        return code, "the last line\n"

    monkeypatch.setattr(gpu, "run_for", run)
    monkeypatch.setattr(gpu, "find_profiler", lambda: None)
    stage = "smoke" if "smoke" in outcomes else "main"
    code = gpu.main(["--stage", stage, "--out", str(tmp_path)])
    return code, json.loads((tmp_path / f"{stage}.json").read_text())


def checks(*outcomes):
    def act(report):
        for position, outcome in enumerate(outcomes):
            report.expect_parity(str(position))
            if outcome is not None:
                report.add_parity(str(position), outcome, "checked")

    return act


@pytest.mark.parametrize(
    ("code", "act", "expected"),
    [
        (0, checks(True, True), 0),
        (0, checks(True, False), 1),
        (None, checks(True, None), 1),  # stopped before the second check ended
        (-11, checks(True, True), 0),  # crashed after all checks
        (1, checks(), 1),  # died at its import
    ],
)
def test_parity_decides_the_exit_code_of_smoke(code, act, expected, monkeypatch, tmp_path):
    found, written = stage_with(monkeypatch, tmp_path, {"smoke": (code, act)})
    assert found == expected
    assert ("smoke, the rest of it" in written["left_out"]) == (code != 0)


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (None, 1)])
def test_all_tests_decide_the_exit_code_of_main(code, expected, monkeypatch, tmp_path):
    outcomes = {"tests": (code, lambda report: None), "epochs": (-11, lambda report: None)}
    found, written = stage_with(monkeypatch, tmp_path, outcomes)
    assert found == expected
    assert written["left_out"]["epochs, the rest of it"] == "exit code -11: the last line"
    assert written["left_out"]["counters"] == "ncu is not installed"
    outcome = written["parity"]["all parity tests"]["outcome"]
    assert outcome.startswith("not finished after") if code is None else outcome == "the last line"


def test_limits_add_up_to_the_stage(monkeypatch, tmp_path):
    limits = []

    def run(command, limit, live=False):
        limits.append(limit)
        return 0, ""

    monkeypatch.setattr(gpu, "run_for", run)
    monkeypatch.setattr(gpu, "find_profiler", lambda: "ncu")
    gpu.main(["--stage", "main", "--out", str(tmp_path)])
    assert len(limits) == len(gpu.STAGES["main"].sections)
    assert limits == sorted(limits)
    assert 400 < limits[-1] <= gpu.STAGES["main"].seconds == 420


def test_what_hangs_is_stopped():
    hanging = [sys.executable, "-c", "import time; print('at work', flush=True); time.sleep(99)"]
    assert gpu.run_for(hanging, 2)[0] is None
    assert gpu.run_for([sys.executable, "-c", "print('done')"], 60) == (0, "done\n")
