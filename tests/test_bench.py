"""The benchmarks themselves: peers compute what the backends compute, and a run becomes a report."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytest_benchmark", reason="needs the extra `bench`")
pytest.importorskip("matplotlib", reason="needs the extra `bench`")

from bench import compare_cells, floors, model, normalisation, profile_window, report, train_step
from bench.cases import LARGE_CELL, PAPER, QUICK, Case, make_operands
from bench.contestants import prepare
from bench.search_speed import Cost, table
from bench.train_step import EagerRNN
from wenet.cells import random_genotypes
from wenet.cells.published import ENAS_LM, load_genotype
from wenet.nn.rnn import DagRNN
from wenet.run import resolve_machine
from wenet.searching.settings import resolve_config
from wenet.tasks import task_of
from wenet_kernels import aot
from wenet_kernels.machine_code import Instruction

from .wenet.helpers import write_text

ROOT = Path(__file__).parents[1]

TINY = [
    Case("tiny", networks=3, hidden=6, rows=4, steps=3, form=form, coupling=coupling, norm=norm, masked=norm is None)
    for form in ("highway", "plain")
    for coupling in ("weighted", "independent")
    for norm in ("batch", None)
]
TINY.append(Case("tiny cell", networks=1, hidden=5, rows=3, steps=2, coupling="independent", norm=None, cell=ENAS_LM))


@pytest.fixture
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def gradients(name, operands):
    contestant = prepare(name, operands)
    output = contestant.forward()
    pre, h0, *weights = torch.autograd.grad(output, contestant.leaves, operands.grad_output)
    if name == "loop":  # its weights are modules' own
        count = operands.case.networks
        mix, weights = weights[9 * count :], weights[: 9 * count]
        own = [torch.stack(weights[9 * k : 9 * k + 9]) for k in range(count)]
        weights = [torch.stack([w[0] for w in own]), torch.stack([w[1:] for w in own]), *mix]
    return [output.detach(), pre, h0, *weights]


@pytest.mark.parametrize("peer", ["loop", "traced"])
@pytest.mark.parametrize("case", TINY, ids=lambda case: f"{case.form}-{case.coupling}-{case.norm}")
def test_peers_compute_what_the_reference_does(case, peer, double_precision):
    operands = make_operands(case)
    for actual, expected in zip(gradients(peer, operands), gradients("reference", operands), strict=True):
        torch.testing.assert_close(actual, expected)


def test_products_are_counted_as_the_paper_shape_has_them():
    assert PAPER.flops(backward=False) == 2 * 35 * 100 * 9 * 20 * 200 * 400
    assert PAPER.flops(backward=True) == 3 * PAPER.flops(backward=False)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A short run of `pytest bench/` over two contestants at the quick shape."""
    path = tmp_path_factory.mktemp("bench") / "result.json"
    chosen = ["-k", "quick and backward and (lstm or reference)", "--steps", "1", f"--benchmark-json={path}"]
    # Inside a worker of a parallel run it would think itself one, and not measure.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "bench/", *chosen],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())


def test_a_run_records_rates_and_ratios(result):
    infos = {benchmark["extra_info"]["contestant"]: benchmark["extra_info"] for benchmark in result["benchmarks"]}
    lstm, reference = infos["lstm"], infos["reference"]
    assert reference["faster_than"]["lstm"] == lstm["seconds"] / reference["seconds"]
    assert reference["of_dense"] == reference["gflops"] / reference["dense_gflops"]
    work = replace(QUICK, steps=1).flops(backward=True)
    assert reference["gflops"] == pytest.approx(work / reference["seconds"] / 1e9)
    assert all(benchmark["stats"]["rounds"] >= 5 for benchmark in result["benchmarks"])


def test_a_run_becomes_a_report(result, tmp_path):
    path, document = tmp_path / "result.json", tmp_path / "performance.md"
    path.write_text(json.dumps(result))
    document.write_text(f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n")
    for _ in range(2):  # the second time it replaces what the first wrote
        report.main([str(path), "--document", str(document)])
        text = document.read_text()
        assert text.startswith("above\n") and text.endswith("\nbelow\n") and "old" not in text
        assert text.count("#### quick (n=20, H=64, M=20, T=1, highway, weighted, norm batch)") == 1
    for figure in re.findall(r"\((figures/\S+)\)", text):
        assert (tmp_path / figure).stat().st_size > 1000


def test_the_report_compares_bf16_with_fp32(result):
    info = next(b["extra_info"] for b in result["benchmarks"] if b["extra_info"]["contestant"] == "reference")
    figures = [
        {"extra_info": {**info, "case": {**info["case"], "name": case}, "contestant": name, "seconds": seconds}}
        for case in ("paper", "quick")
        for name, seconds in (("cpu", 3.0), ("cpu bf16", 2.0))
    ]
    text = report.render(report.Run({**result, "benchmarks": figures}))
    assert "- `cpu` at the paper shape, bf16 over fp32: **1.50** ≥ 1.5 (2 s against 3 s)." in text
    assert "- `cpu` at the quick shape, bf16 over fp32: 1.50 (2 s against 3 s)." in text


def test_a_target_is_bold_only_where_it_is_reached():
    assert report.against(8.0, 8) == "**8.00** ≥ 8"
    assert report.against(7.9, 8) == "7.90 < 8"


def test_the_phases_of_a_window_add_up(tmp_path):
    settings = {"hidden": 8, "nodes": 2, "bptt": 4, "data_batch": 4, "device": "cpu", "backend": "reference"}
    config = resolve_config("quick", {**settings, "precision": "fp32"})
    event = profile_window.profiled(profile_window.prepare_window(config, 2, tmp_path, None))
    phases, products = profile_window.split(event)
    assert sum(phases.values()) == pytest.approx(event.cpu_time_total, rel=0.01)
    for phase in ("recurrence, forward", "recurrence, backward"):
        assert 0 < products[phase] < phases[phase]
    named = set(profile_window.PHASES) - {"dropout and penalties"}
    assert all(phases[phase] > 0 for phase in named)
    assert phases[profile_window.OTHER] < 0.2 * event.cpu_time_total


def test_whole_searches_are_compared_in_pairs():
    pairs = [(Cost(1, 10**9), Cost(3, 2 * 10**9)), (Cost(2, 10**9), Cost(8, 10**9))]
    assert table("cpu", pairs)[2:4] == ["| cpu | 1.5 s | 1.00 GB |", "| reference | 5.5 s | 2.00 GB |"]
    assert table("cpu", pairs)[-1].startswith("cpu over reference: 3.50 times as fast, from 3.00 to 4.00")


def test_the_eager_cell_computes_the_same():
    genotype = load_genotype("enas")
    ours, eager = DagRNN(5, 7, genotype).double(), EagerRNN(5, 7, genotype).double()
    with torch.no_grad():
        eager.weight_first.copy_(torch.cat([ours.weight_input, ours.weight_hidden]))
        for own, weight in zip(eager.weight_nodes, ours.weight_nodes, strict=True):
            own.copy_(weight)
    x, h0 = torch.randn(6, 3, 5, dtype=torch.float64), torch.randn(1, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(eager(x, h0), ours(x, h0))


def test_a_training_step_is_measured():
    result = train_step.measure(train_step.Shape(8, 3, 4, 20), load_genotype("tanh0 relu1"), "reference", pairs=2)
    assert result["times_as_fast_range"][0] <= result["times_as_fast"] <= result["times_as_fast_range"][1]
    assert "| 8 | 3 | 4 |" in train_step.table([result])[2]


def test_cells_with_flags_of_their_own():
    assert compare_cells.parse_cell("tanh0 relu1") == ("tanh0 relu1", [])
    assert compare_cells.parse_cell("lstm --layers 2 --hidden 9") == ("lstm", ["--layers", "2", "--hidden", "9"])


def test_table_of_compared_cells(tmp_path):
    def trained(cell, seed, valid):
        best = {"parameters": 10, "valid_perplexity": valid, "test_perplexity": 2 * valid, "epochs": 2, "seconds": 1.5}
        return compare_cells.Trained(cell, seed, best, [valid + 1, None, valid])

    runs = [trained("a", 1, 5.0), trained("b", 1, 3.0), trained("a", 2, 7.0), trained("b", 2, 4.0)]
    compare_cells.write_results(tmp_path, runs)
    *_, first, second = (tmp_path / "table.md").read_text().splitlines()
    assert first.startswith("| b | 10 | 2 | 3.50 (0.71) | 7.00 (1.41) |")
    assert second.startswith("| a |")
    assert len(json.loads((tmp_path / "compare.json").read_text())) == 4


def test_floors_of_the_paper_shape_by_hand():
    """120 networks of 9 matrices of 200 x 400 are 86.4 million weights, and of 9 states of 20 x 200, 4.32 million."""
    case = replace(PAPER, networks=120)
    card = floors.Card(bandwidth=4e12, rates={"bf16": 1e15})
    factors = 2 * 3.84e6  # in bf16, of all states but the last
    kept = 4 * 4.32e6 + 2 * 2 * 4.32e6  # fp32 states; gates and candidates in bf16
    forward = 35 * (172.8e6 + 4 * 0.96e6) + 86.4e6 * (4 + 2)  # pre [120, 20, 400]; weights rounded once
    assert floors.find_floor(case, card, "bf16", backward=False).memory == pytest.approx(forward / 4e12, rel=1e-6)
    products = 2 * 2 * 4.32e6  # their gradients, written and read by the weight gradients along with the factors
    backward = 35 * (172.8e6 + kept + products + 4 * 0.96e6 + factors + products) + 86.4e6 * 4
    both = floors.find_floor(case, card, "bf16", backward=True)
    assert both.memory == pytest.approx((forward + 35 * (kept + factors) + backward) / 4e12, rel=1e-6)
    assert both.products == pytest.approx(0.36288e12 / 1e15)
    assert both.latency == pytest.approx(35 * 4 * card.handover)  # a step and a mixture, forward and backward
    assert (both.reason, both.seconds) == ("memory", both.memory)


def test_floors_of_one_large_cell_by_hand():
    """9 matrices of 850 x 1700 in bf16 are 26 MB, which stay in the cache; DARTS has five levels."""
    card = floors.Card(bandwidth=4e12, rates={"bf16": 1e15}, cache=50e6, cache_bandwidth=5e12, handover=2e-6)
    weights = 2 * 9 * 850 * 1700
    forward = floors.find_floor(LARGE_CELL, card, "bf16", backward=False)
    assert forward.latency == pytest.approx(35 * (5 * 2e-6 + weights / 5e12))
    assert (forward.reason, forward.seconds) == ("latency", forward.latency)
    both = floors.find_floor(LARGE_CELL, card, "bf16", backward=True)
    assert both.latency == pytest.approx(35 * (11 * 2e-6 + 2 * weights / 5e12))
    assert (
        floors.find_floor(LARGE_CELL, card, "bf16", False).memory
        < floors.find_floor(LARGE_CELL, replace(card, cache=weights - 1), "bf16", False).memory
        - 34 * weights / 4e12 * 0.99
    )


@pytest.mark.parametrize(("cell", "levels"), [("tanh0", 2), ("tanh0 relu0 relu0", 2), ("tanh0 relu1 relu2", 4)])
def test_levels_of_a_cell(cell, levels):
    assert floors.count_levels(load_genotype(cell)) == levels


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_what_normalisation_does(tmp_path, norm):
    """All of its figures, of few cells and windows; a change of the state is forgotten without normalisation."""
    sizes = {"dataset": str(write_text(tmp_path / "text")), "hidden": 8, "nodes": 4, "data_batch": 6, "bptt": 10}
    config = resolve_config("quick", {**normalisation.SETTINGS, **sizes, "norm": norm, "backend": "reference"})
    config = resolve_machine(config)
    data = task_of(config).load(config, None)
    cells = random_genotypes(3, config.most_nodes, 1)
    quality = -normalisation.standalone_losses(config, cells, data, 4)
    records = list(normalisation.mixture_records(config, cells, data, [2, 4]))
    assert [record["windows"] for record in records] == [0, 2, 4]
    assert quality.shape == (3,) and len({record["nats"] for record in records}) == 3
    assert max(records[0]["left_of_a_change"]) < 1e-2 if norm == "none" else min(records[0]["left_of_a_change"]) > 1e-2
    rows = [{"norm": norm, **r, **normalisation.agreement(r["weights"], quality, cells)} for r in records]
    assert rows[0]["quality"] is None and -1 <= rows[-1]["quality"] <= 1
    assert normalisation.table(rows).count("\n") == 4


def test_a_modelled_warp_waits_for_what_an_instruction_needs():
    load, other = (Instruction(address, "LDG.E.128", "R4", 1, number) for number, address in enumerate((0, 16)))
    use = Instruction(32, "FADD", "R4", 4, waits=(0,))
    for sharing, then in ((1, 270 + 4), (8, 270 + 8)):
        warp = model.Warp(sharing)
        for each in (load, other, use):
            warp.issue(each)
        assert warp.now == then
    assert warp.moved == 2 * 32 * 16


def test_a_modelled_loop_runs_as_often_as_its_products_take():
    code = (
        Instruction(0x00, "MOV", "R1"),
        Instruction(0x10, "HGMMA.64x32x16.F32.BF16", "R24"),
        Instruction(0x20, "BRA", "0x10"),
        Instruction(0x30, "EXIT", ""),
    )
    sizes = {"M": 20, "H": 200, "PITCH": 200, "ROWS": 32, "COLUMNS": 64, "DEPTH": 32, "HIGHWAY": True, "KEEP": True}
    launch = aot.Launch(None, (120, 1), (1,) * 20, {**sizes, "INIT": True, "num_warps": 4, "num_stages": 4})
    found = model.predict(launch, aot.Usage(100, 0, 1000, code), rows=700)
    assert found.programs == 120
    assert found.instructions == 2 + 2 * (2 * 64 * 224) // (64 * 16)
    assert 0 < found.seconds < 1e-5
    # Of 4 x 64 columns 200 are there; three trips only copy, and seven multiply 224 rows, 200 of which are there.
    assert model._useful(launch, rows=700)[1] == pytest.approx(200 / 256 * 200 / 320)
