"""Scores from a hand-written trip record."""

from pathlib import Path

import numpy as np
import pytest

from seqrl_ray.envs.traffic.metrics import Recorder, read_trips
from seqrl_ray.envs.traffic.net import Signal
from seqrl_ray.errors import EnvError

ROW = (
    '<tripinfo id="{id}" depart="{depart}" departLane="a_0" departDelay="{late}" arrival="{arrival}" '
    'duration="{duration}" waitingTime="{wait}" waitingCount="{stops}" timeLoss="{loss}" vType="car"'
)
EMISSIONS = '<emissions CO_abs="9" CO2_abs="3100000" HC_abs="1" fuel_abs="1000000" electricity_abs="0"/>'


def row(*, emissions: bool = False, **given: object) -> str:
    values = {
        "depart": 10,
        "late": 0,
        "arrival": -1,
        "duration": 0,
        "wait": 0,
        "stops": 0,
        "loss": 0,
        **given,
    }
    return ROW.format(**values) + (f">{EMISSIONS}</tripinfo>" if emissions else "/>")


def record(tmp_path: Path, *rows: str, end: str = "</tripinfos>") -> Path:
    path = tmp_path / "trips.xml"
    path.write_text("<tripinfos>\n" + "\n".join(rows) + f"\n{end}", encoding="utf-8")
    return path


ROWS = (
    row(id="done", depart=10, late=2, arrival=70, duration=60, wait=8, stops=2, loss=20),
    row(id="under_way", depart=30, late=0, arrival=-1, duration=70, wait=30, stops=1, loss=40),
    row(id="never_in", depart=-1, late=55),
    row(id="not_yet_due", depart=-1, late=0),
    row(id="not_yet_due_either", depart=-1, late=-5),
)


def test_delay_counts_unfinished_and_never_inserted_vehicles(tmp_path: Path) -> None:
    trips = read_trips(record(tmp_path, *ROWS))
    assert sorted(trips.delay_s.tolist()) == [22.0, 40.0, 55.0]
    recorder = Recorder((Signal("x", ("x",), (), ("G",), (), (), ()),), emissions=False, details=False)
    recorder.decision(np.array([-3.0]), np.array([4.0, 1.0]))
    recorder.decision(np.array([-1.0]), np.array([0.0, 2.0]))
    metrics = recorder.metrics(trips, {"teleports": 0.0})
    assert metrics["delay_s"] == pytest.approx(39.0)
    assert metrics["travel_time_s"] == 65.0 and metrics["waiting_s"] == 19.0 and metrics["stops"] == 1.5
    assert (metrics["demand_vehicles"], metrics["backlog_vehicles"], metrics["throughput_vehicles"]) == (
        3,
        1,
        1,
    )
    assert (
        metrics["return"] == -4.0
        and metrics["queue_vehicles"] == 3.5
        and metrics["queue_longest_vehicles"] == 4.0
    )
    assert metrics["delay_p95_s"] == pytest.approx(53.5) and metrics["teleports"] == 0.0
    assert "co2_kg" not in metrics
    recorder.start()
    assert recorder.metrics(trips, {})["return"] == 0.0


def test_emissions_are_summed_in_kg(tmp_path: Path) -> None:
    rows = (row(id="a", arrival=20, emissions=True), row(id="b", arrival=20, emissions=True))
    trips = read_trips(record(tmp_path, *rows))
    assert (trips.co2_kg, trips.fuel_kg, len(trips.delay_s)) == (pytest.approx(6.2), pytest.approx(2.0), 2)


def test_no_vehicle_at_all_has_scores(tmp_path: Path) -> None:
    recorder = Recorder((Signal("x", ("x",), (), ("G",), (), (), ()),), emissions=True, details=False)
    recorder.decision(np.zeros(1), np.zeros(2))
    metrics = recorder.metrics(read_trips(record(tmp_path)), {})
    assert set(metrics.values()) == {0.0}


def test_a_cut_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="incomplete"):
        read_trips(record(tmp_path, *ROWS, end=""))
