"""The benchmarks run: their figures are of a smoke test and are not judged here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from seqrl_ray.bench import NAMES, lines, run_benchmark
from seqrl_ray.errors import RecipeError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
installed = importlib.util.find_spec


def harness() -> Any:
    spec = importlib.util.spec_from_file_location("harness", FOLDER / "harness.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["harness"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_contestants_alternate_and_ratios_are_of_pairs() -> None:
    h = harness()
    order: list[str] = []

    class Contestant:
        def __init__(self, name: str, rates: list[int]) -> None:
            self.name, self.rates = name, rates

        def run(self, seconds: float) -> Any:
            order.append(self.name)
            rate = self.rates.pop(0)
            return h.Stretch(rate, 2 * rate, seconds)

    done = h.alternate({"a": Contestant("a", [20, 90, 40]), "b": Contestant("b", [10, 30, 20])}, 3, 1.0)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert h.figures(done["a"]) == {
        "env_steps_per_s": 40.0,
        "updates_per_s": 80.0,
        "updates_per_env_step": 2.0,
        "stretches": [[20.0, 40.0], [90.0, 180.0], [40.0, 80.0]],
    }
    assert h.ratios(done["a"], done["b"]) == {"env_steps_per_s": 2.0, "updates_per_s": 2.0}
    assert h.best(["a", "b"], done) == "a"


def test_every_name_is_a_file_and_others_are_refused() -> None:
    assert all((FOLDER / f"{name}.py").is_file() for name in NAMES)
    with pytest.raises(
        RecipeError, match=r'NAME=\'throughputs\' is not a benchmark. Did you mean "throughput"\?'
    ):
        run_benchmark("throughputs")


def test_bad_arguments_are_one_clear_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecipeError, match=r"throughput\.py would not start"):
        run_benchmark("throughput", ["--repeats", "3"])
    assert "--repeats=3 is below 5" in capfd.readouterr().err


def test_a_missing_peer_is_one_line_that_says_how_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    harness().require("numpy", "never printed")
    with pytest.raises(SystemExit) as stopped:
        harness().require("no-such-peer", "pip install no-such-peer")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "no-such-peer is not installed: there is nothing to compare with. Run: pip install no-such-peer\n"
    )


def test_lines_name_every_figure_but_the_raw_stretches() -> None:
    result = {"benchmark": "x", "s": {"a": {"rate": 1.5, "stretches": [[1, 2]]}}, "maps": [{"ratio": 2}]}
    assert [line.split() for line in lines(result)] == [
        ["benchmark", "x"],
        ["s.a.rate", "1.5"],
        ["maps.0.ratio", "2"],
    ]


@pytest.mark.slow
@pytest.mark.skipif(installed("stable_baselines3") is None, reason="stable-baselines3 is not installed")
def test_in_process_and_atari_count_one_update_per_step() -> None:
    result = run_benchmark("throughput", ["--quick", "--section", "inprocess", "--section", "atari"])
    contestants = result["sections"]["inprocess"]["contestants"]
    assert {"sb3_1", "sb3_64", "eager_64x4", "compiled_64x4"} == set(contestants)
    assert all(c["updates_per_env_step"] == pytest.approx(1.0, abs=0.15) for c in contestants.values())
    assert result["sections"]["inprocess"]["compile_s"]["compiled_64x4"] > 0.0
    atari = result["sections"]["atari"]
    assert atari["ratios"]["collect/bare"] > 0.0
    assert 84 * 84 < atari["bytes_per_stored_step"] <= 7_500


@pytest.mark.slow
def test_acting_compares_what_acts_alike() -> None:
    sections = run_benchmark("acting", ["--quick"])["sections"]
    assert set(sections["decision_transformer"]["ratios"]) == {
        f"together_{size}/{peer}_{size}"
        for size in ("gym", "small")
        for peer in ("one_by_one", "hugging_face")
    }
    assert set(sections["elastic_dt"]["ratios"]) == {
        f"batch_{slots}/{peer}_loop_{slots}" for slots in (16, 1) for peer in ("source", "short")
    }
    assert all(ratio > 0.0 for section in sections.values() for ratio in section["ratios"].values())


@pytest.mark.slow
@pytest.mark.system
def test_actors_times_both_ways_of_acting() -> None:
    (section,) = run_benchmark("actors", ["--quick", "--section", "mlp"])["sections"].values()
    assert set(section["env_steps_per_s"]) == {"local", "central"}
    assert min(section["env_steps_per_s"].values()) > 0.0
    assert section["env_steps_per_s"][section["faster"]] == max(section["env_steps_per_s"].values())
    assert 8.0 <= section["slots_per_batch"] <= 16.0  # one of the two actors' eight copies, or both actors'
    assert 0.0 < section["server_busy"] < 1.0


@pytest.mark.slow
@pytest.mark.system
def test_ray_section_counts_both_sides() -> None:
    result = run_benchmark("throughput", ["--quick", "--section", "ray"])
    contestants = result["sections"]["ray"]["contestants"]
    assert set(contestants) == {"rllib_8", "eager_8x16", "compiled_8x16"}
    assert contestants["eager_8x16"]["updates_per_env_step"] == pytest.approx(1.0, abs=0.3)
    assert 0.5 < contestants["rllib_8"]["updates_per_env_step"] < 1.2
    assert all(ratio["of"][1] == "rllib_8" for ratio in result["sections"]["ray"]["ratios"].values())


@pytest.mark.slow
def test_sequence_compares_updates_and_windows() -> None:
    result = run_benchmark("sequence", ["--quick"])
    updates = result["sections"]["updates"]
    assert updates["gflop_per_update"]["ours"] < updates["gflop_per_update"]["peer"]
    assert updates["threads_2_dropout_0.1"]["ratio"] > 0.0
    assert result["sections"]["windows"]["ratio"] > 1.0


@pytest.mark.slow
@pytest.mark.system
def test_overlap_does_the_same_work_either_way() -> None:
    section = run_benchmark("overlap", ["--quick", "--section", "few"])["sections"]["few"]
    contestants = section["contestants"]
    assert set(contestants) == {"overlapped", "alternating_1", "alternating_2"}
    for contestant in contestants.values():
        wanted = section["wanted_updates_per_env_step"]
        assert contestant["updates_per_env_step"] == pytest.approx(wanted, rel=0.7)  # stretches cut episodes
    assert contestants["overlapped"]["policy_lag"]["p95"] > 0
    assert all(value > 0.0 for ratio in section["ratios"].values() for value in ratio.values())


@pytest.mark.slow
def test_learners_compares_two_halves_with_a_whole() -> None:
    section = run_benchmark("learners", ["--quick", "--section", "small"])["sections"]["small"]
    assert section["contestants"]["one"]["collective_ms"] == 0.0
    two = section["contestants"]["two"]
    assert 0.0 < two["collective_ms"] < two["update_ms"]
    assert section["ratios"]["two/one"] > 0.0
