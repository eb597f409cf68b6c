"""The side-by-side benchmark computes the same numbers by every contender, and says what is wrong, lost or missing.

No time is tested.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from side_by_side import __main__ as benchmark
from side_by_side import commands, contenders, networks, quick, report, rounds, scaling, truth
from side_by_side.reference import Reference
from side_by_side.rounds import Case, Turns

sys.path.pop()

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the small networks reach the processes by a fork")
OURS = ["spectra", "reference"]


def small_mlp():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 10))


def small_conv():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 10)
    )  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name in list(networks.NETWORKS):
        monkeypatch.delitem(networks.NETWORKS, name)
    for name, build, draw in (
        ("mlp", small_mlp, networks.images(6)),
        ("conv", small_conv, networks.images(2, 8, 8)),
    ):
        made = networks.Network(name.upper(), build, draw, 24, several=3, plain=True, steps=30)
        monkeypatch.setitem(networks.NETWORKS, name, made)


@pytest.fixture
def weights(tmp_path):
    for name, network in networks.NETWORKS.items():
        network.train(tmp_path / f"{name}.pt")
    return tmp_path


def measured(case, names, weights):
    turns = Turns(case, names, weights / f"{case.network}.pt")
    turns.take(2, 60)
    return turns.summary()


def all_cases():
    tasks = [("slq", "hessian"), ("lambda_max", "hessian"), ("trace", "hessian")]
    tasks += [(task, kind) for task in ("product", "diagonal") for kind in ("hessian", "ggn")]
    return [Case(name, n, task, kind) for name in ("mlp", "conv") for task, kind in tasks for n in (1, 3)]


@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_spectra_and_the_reference_compute_what_float64_does(case, weights):
    names = [name for name in contenders.offered(case.task, case.kind, exact_trace=True) if name not in report.PEERS]
    found = measured(case, names, weights)["contenders"]
    assert set(found) == set(names)
    for name in names:
        assert len(found[name]["cpu"]) == 2
        bound = 1.5 if case.task == "trace" and "exact" not in name else report.BOUNDS[case.task]
        assert found[name]["error"] < min(bound, 1.5), name
    if case.task == "trace":
        assert found["spectra, exact trace"]["error"] < 1e-5


@pytest.mark.peers
@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_the_peers_compute_what_float64_does(case, weights):
    offered = contenders.offered(case.task, case.kind, exact_trace=False)
    names = [name for name in offered if name in report.PEERS]
    if absent := set(names) & set(contenders.missing()):
        pytest.skip(f"not installed: {', '.join(absent)}")
    summary = measured(case, names, weights)
    for name in names:
        if (name, case.task) == ("PyHessian", "slq"):  # its density calls torch.eig, which torch no longer has
            assert "eig" in summary["contenders"][name]["failed"]
        elif (name, case.task) == ("PyHessian", "lambda_max"):  # it stops when its value changes little
            assert summary["contenders"][name]["error"] < 0.05
        else:
            assert report.is_exact(summary, name), (name, summary["contenders"][name])


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_the_reference_has_the_dense_matrices(name):
    network = networks.NETWORKS[name]
    model, data = network.model().double(), [(x.double(), y) for x, y in network.data(3)]
    reference = Reference(model, nn.CrossEntropyLoss(), data)
    x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    theta = nn.utils.parameters_to_vector(model.parameters()).detach()
    names = [key for key, _ in model.named_parameters()]

    def outputs(vector):
        return torch.func.functional_call(model, dict(zip(names, reference.pieces(vector))), (x,))

    hessian = torch.autograd.functional.hessian(lambda v: nn.functional.cross_entropy(outputs(v), y), theta)
    jacobian = torch.autograd.functional.jacobian(outputs, theta)
    p = outputs(theta).softmax(1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    ggn = torch.einsum("nci,ncd,ndj->ij", jacobian, inner, jacobian) / len(y)
    vector = torch.randn(len(theta), dtype=torch.float64)
    assert torch.allclose(reference.product("hessian")(vector), hessian @ vector, atol=1e-12)
    assert torch.allclose(reference.product("ggn")(vector), ggn @ vector, atol=1e-12)
    assert torch.allclose(reference.diagonal("ggn"), ggn.diagonal(), atol=1e-12)
    nodes, kept, top = reference.lanczos(60, enough=1e-8)
    largest = torch.linalg.eigvalsh(hessian)[-1]
    assert float(nodes[-1]) == pytest.approx(float(largest), rel=1e-8)
    assert float(top @ hessian @ top) == pytest.approx(float(largest), rel=1e-8)
    assert float(kept.sum()) == pytest.approx(1)


def test_floors_of_an_mlp_are_those_of_its_layers():
    sizes = [6 * 5, 5 * 4, 4 * 10]
    rest, first = sum(sizes[1:]), sizes[0]
    found = truth.floors("mlp")
    assert found["hessian"] == pytest.approx((6 * rest + 2 * first) / (3 * rest + 2 * first))
    assert found["ggn"] == pytest.approx((4 * rest + 2 * first) / (3 * rest + 2 * first))
    assert found["ggn by graphs"] == pytest.approx(found["ggn"])
    assert found["hessian by graphs"] == pytest.approx(found["hessian"])


def test_one_that_fails_is_named_and_the_others_go_on(weights, monkeypatch):
    class Broken(Reference):
        def product(self, kind):
            raise ValueError("no such derivative")

    monkeypatch.setitem(contenders.CONTENDERS, "BackPACK", Broken)
    found = measured(Case("mlp", 1, "product"), [*OURS, "BackPACK"], weights)
    assert found["contenders"]["BackPACK"] == {"failed": "ValueError: no such derivative"}
    assert len(found["contenders"]["reference"]["cpu"]) == 2
    assert report.best_peer(found) is None
    assert list(report.wrong([found])) == ["MLP, Hessian product, BackPACK: fails, ValueError: no such derivative"]


def test_a_wrong_product_is_seen_and_is_never_the_best_peer(weights, monkeypatch):
    class Wrong(Reference):
        def product(self, kind):
            right = super().product(kind)
            return lambda vector: 1.01 * right(vector)

    monkeypatch.setitem(contenders.CONTENDERS, "BackPACK", Wrong)
    found = measured(Case("mlp", 1, "product"), [*OURS, "BackPACK"], weights)
    assert found["contenders"]["BackPACK"]["error"] == pytest.approx(0.01, rel=1e-3)
    assert not report.is_exact(found, "BackPACK")
    assert report.best_peer(found) is None
    assert any("(wrong)" in line for line in report.case_table([found]))
    assert list(report.wrong([found])) == ["MLP, Hessian product, BackPACK: off by 1.0e-02"]


def case_of(**cpu):
    found = {
        name.replace("_", "-"): {"cpu": times, "gradients": float(np.median(times)), "error": 1e-7}
        for name, times in cpu.items()
    }
    return {"network": "mlp", "batches": 1, "task": "product", "kind": "hessian", "contenders": found}


def test_ratios_are_taken_within_each_round():
    case = case_of(spectra=[2.0, 9.0, 4.0], reference=[1.0, 3.0, 1.0])
    assert report.ratio(case, "spectra", "reference") == 3.0


def test_what_is_lost_is_said_and_nothing_else():
    case = case_of(spectra=[2.0, 2.0], reference=[3.0, 3.0], curvlinops=[1.0, 1.0], BackPACK=[1.5, 1.5])
    assert list(report.lost([case])) == ["MLP, Hessian product: 2.00 times the time of curvlinops"]
    case["contenders"]["curvlinops"]["error"] = 0.1
    assert list(report.lost([case])) == ["MLP, Hessian product: 1.33 times the time of BackPACK"]
    case["contenders"]["spectra"]["error"] = 0.1
    assert list(report.lost([case])) == ["MLP, Hessian product: spectra has no exact result"]


def test_the_quick_verdict_fails_if_spectra_is_slower_than_stated_or_wrong(monkeypatch):
    monkeypatch.setattr(quick, "STATED", {("mlp", 1, "product", "hessian"): 1.0})
    within = quick.MARGIN - 0.01
    assert quick.verdict([case_of(spectra=[within], reference=[1.0])])[1] == 0
    lines, code = quick.verdict([case_of(spectra=[within + 0.02], reference=[1.0])])
    assert code == 1
    assert lines[0].startswith("SLOWER MLP, Hessian product: 1.26 of the reference")
    wrong = case_of(spectra=[0.1], reference=[1.0])
    wrong["contenders"]["spectra"]["error"] = 0.1
    assert quick.verdict([wrong])[1] == 1


def test_a_quick_run_that_lacks_what_is_stated_is_no_success(monkeypatch):
    monkeypatch.setattr(quick, "STATED", {("mlp", 1, "product", "hessian"): 1.0})
    lines, code = quick.verdict([])
    assert code == 1
    assert lines == ["MISSING ('mlp', 1, 'product', 'hessian')"]


@pytest.mark.slow
def test_the_whole_benchmark_writes_numbers_page_and_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "missing", lambda: list(contenders.PEERS))
    tasks = [task for task in benchmark.TASKS if task not in ("command", "scaling")]
    arguments = ["--repeats", "1", "--json", str(tmp_path / "found.json"), "--docs", str(tmp_path), "--network", "mlp"]
    assert benchmark.main([*arguments, "--task", *tasks]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["cases"]) == 9
    assert found["environment"]["torch"] == torch.__version__
    assert found["environment"]["not installed"] == "curvlinops, hessian-eigenthings, PyHessian, BackPACK"
    page = (tmp_path / "performance.md").read_text()
    assert "SLQ, one probe, m = 30" in page
    assert "exact diagonal of the Hessian" in page
    assert (tmp_path / "images" / "performance.png").read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "performance.md").unlink()
    assert benchmark.main([*arguments, "--page-only"]) == 0
    assert (tmp_path / "performance.md").read_text() == page


def test_processes_take_turns(weights, monkeypatch):
    log = weights / "log"

    class Noting(Reference):
        def slq(self, steps):
            with log.open("a") as file:
                file.write(f"{type(self).__name__}\n")
            return super().slq(steps)

    monkeypatch.setitem(contenders.CONTENDERS, "spectra", type("A", (Noting,), {}))
    monkeypatch.setitem(contenders.CONTENDERS, "reference", type("B", (Noting,), {}))
    turns = Turns(Case("mlp", 1, "slq"), OURS, weights / "mlp.pt")
    turns.take(3, 60)
    assert log.read_text().split() == ["A", "B"] * 3
    assert rounds.PROCESSES.get_start_method() == "fork"


def test_tasks_that_take_long_are_measured_if_asked_for(monkeypatch):
    made = networks.Network(
        "DEEP", small_mlp, networks.images(6), 24, several=3, tasks=("product",), kinds=("hessian",)
    )
    monkeypatch.setitem(networks.NETWORKS, "deep", made)
    few = benchmark.cases_of(["deep"], benchmark.TASKS)
    assert few == [Case("deep", n, "product", kind) for n, kind in ((1, "hessian"), (1, "ggn"), (3, "hessian"))]
    rest = [Case("deep", 3, "product", "ggn"), *(Case("deep", 1, task) for task in ("slq", "lambda_max", "trace"))]
    assert benchmark.cases_of(["deep"], benchmark.TASKS, everything=True) == few + rest


def test_what_is_measured_is_saved_case_by_case(tmp_path, monkeypatch):
    summary = Turns.summary

    def stopped(turns):
        if turns.case.kind == "ggn":
            raise KeyboardInterrupt
        return summary(turns)

    monkeypatch.setattr(Turns, "summary", stopped)
    arguments = ["--repeats", "1", "--network", "mlp", "--task", "product", "--docs", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        benchmark.main([*arguments, "--json", str(tmp_path / "found.json")])
    assert [case["kind"] for case in json.loads((tmp_path / "found.json").read_text())["cases"]] == ["hessian"]


def test_the_exponent_is_that_of_the_power_law(monkeypatch):
    seconds = iter([3.0, 6.0, 12.0])
    monkeypatch.setattr(scaling, "operator_of", lambda width, samples: None)
    monkeypatch.setattr(scaling, "timed", lambda call: (None, next(seconds), 0.0))
    assert scaling.sweep("m", (10, 20, 40))["exponent"] == pytest.approx(1.0)


def test_a_command_is_measured_or_its_failure_is_an_error():
    assert commands.run([sys.executable, "-c", "sum(range(10**6))"])["cpu"] > 0
    with pytest.raises(RuntimeError, match="no such number"):
        commands.run([sys.executable, "-c", "raise SystemExit('no such number')"])
