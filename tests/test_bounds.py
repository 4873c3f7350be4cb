"""The engine reaches the bounds of its idea: `benchmarks/bounds.py` on a small grid."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def load_benchmark(name):
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bounds = load_benchmark("bounds")
GRID = [
    *bounds.list_cases(steps=4, shares=(0.25, 0.5, 0.75), seconds=(0.3, 1.0)),
    *bounds.list_cases(steps=8, shares=(1.0,), seconds=(0.3, 1.0)),
    *bounds.list_cases(
        ("calls", "both", "beside"),
        steps=4,
        shares=(0.5, 1.0),
        seconds=(0.1, 1.0),
        predictor_s=0.3,
    ),
]
ALL_WRONG = list(bounds.list_cases(steps=4, shares=(0.0,), seconds=(0.1, 1.0, 10.0)))


def describe(case):
    hits = "".join("hm"[not hit] for hit in case.hits)
    return (
        f"{case.mode}-G{case.model_s:g}-T{case.tool_s:g}-g{case.predictor_s:g}-{hits}"
    )


@pytest.mark.parametrize("case", GRID, ids=describe)
async def test_a_session_takes_what_the_bound_says_to_the_millisecond(case):
    measured = await bounds.measure(case)
    assert measured.off_s == pytest.approx(case.serial_s, abs=1e-3)
    assert measured.on_s == pytest.approx(case.session_s, abs=1e-3)


@pytest.mark.requirement("engine:never-slower")
@pytest.mark.parametrize("case", ALL_WRONG, ids=describe)
async def test_with_every_prediction_wrong_a_session_takes_as_long_as_without(case):
    measured = await bounds.measure(case)
    assert measured.on_s / measured.off_s == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_sessions_follow_from_steps_as_the_closed_formulas_say(seed):
    for case in bounds.list_cases(steps=8, seconds=(0.3, 1.0, 3.0), seed=seed):
        G, T, misses = case.model_s, case.tool_s, case.hits.count(False)  # noqa: N806
        overlapped = (8 - misses) * max(G, T) + misses * (G + T) + G
        starts = [i * G + case.hits[:i].count(False) * T for i in range(9)]
        ends = [start + T for start, hit in zip(starts, case.hits, strict=False) if hit]
        expected = {
            "calls": overlapped,
            "results": overlapped,
            "both": max(8 * G + misses * T + G, *ends, 0.0),
            "beside": misses * (G + T) + (max(G, T) if case.hits[-1] else G),
        }
        assert case.session_s == pytest.approx(expected[case.mode])


def test_a_share_that_is_no_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="choose others"):
        bounds.spread_hits(0.3, 8)
