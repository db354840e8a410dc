import math
import subprocess
import sys
import threading
import time

import pytest
from bluesky import RunEngine
from bluesky import plan_stubs as bps
from bluesky import preprocessors as bpp
from bluesky.utils import FailedStatus
from ophyd.utils import LimitError, ReadOnlyError

from atomscale_bluesky.sim import SimulatedChamber
from atomscale_bluesky.sim.physics import ALUMINIUM, ARSENIC, GALLIUM, MONOLAYER_NM

KEYS = {
    "chamber_pressure",
    "substrate_thermocouple",
    "substrate_set_point",
    "substrate_pyrometer",
    "substrate_heater_power",
    *(f"{cell}_cell_{what}" for cell in ("ga", "al", "as") for what in ("temperature", "set_point", "flux", "shutter")),
    "film_thickness",
    "film_growth_rate",
    "film_growth_time",
    "rheed_specular",
}


class Documents:
    """What a run emitted, by kind."""

    def __init__(self):
        self.all = []

    def __call__(self, name, doc):
        self.all.append((name, doc))

    def of(self, kind):
        return [doc for name, doc in self.all if name == kind]

    def series(self, key):
        return [event["data"][key] for event in self.of("event") if key in event["data"]]


@pytest.fixture(scope="module")
def run_engine():
    return RunEngine({})


@pytest.fixture
def documents():
    return Documents()


@pytest.fixture
def chamber():
    """A chamber whose time moves by `skip` only."""
    with SimulatedChamber(speed=0) as chamber:
        yield chamber


@pytest.fixture
def hot(chamber):
    """That chamber, ready to grow: gallium at 0.4 monolayers per second, arsenic open."""
    chamber.ga_cell.set(879.5)
    chamber.as_cell.set(250.0)
    chamber.as_cell.shutter.set("open")
    chamber.skip(600)
    return chamber


def wait_until(condition, limit_s=5.0):
    """Wait for `condition`, a few milliseconds at a time, and say whether it came true."""
    end = time.monotonic() + limit_s
    pause = threading.Event()
    while not condition():
        if time.monotonic() > end:
            return False
        pause.wait(0.005)
    return True


def clock_threads():
    return [thread for thread in threading.enumerate() if thread.name == "simulated chamber"]


# Readings


def test_a_chamber_shows_21_numbers_under_names_that_a_grower_knows(chamber):
    reading = chamber.read()

    assert set(reading) == set(chamber.describe()) == KEYS
    assert len(KEYS) == 21
    assert all(type(entry["value"]) in (int, float) for entry in reading.values())


def test_every_key_has_a_unit_and_a_precision(chamber):
    for key, described in chamber.describe().items():
        assert described["dtype"] in ("number", "integer"), key
        assert described["units"], key
        assert described["precision"] >= 0, key


def test_a_reading_of_the_chamber_shows_one_instant():
    with SimulatedChamber(speed=1e4) as chamber:
        timestamps = {entry["timestamp"] for entry in chamber.read().values()}

    assert len(timestamps) == 1
    assert abs(timestamps.pop() - time.time()) < 5


def test_what_is_read_off_cannot_be_set(chamber):
    with pytest.raises(ReadOnlyError, match="film_thickness can only be read; set the part that it belongs to"):
        chamber.film.thickness.set(1.0)
    with pytest.raises(ReadOnlyError):
        chamber.pressure.put(1.0)


def test_chambers_with_the_same_seed_and_history_show_the_same_and_with_another_seed_other_noise():
    def readings(seed):
        with SimulatedChamber(speed=0, seed=seed) as chamber:
            chamber.substrate.set(640.0)
            values = []
            for _ in range(50):
                chamber.skip(0.7)
                values.append({key: entry["value"] for key, entry in chamber.read().items()})
            return values

    first, again, other = readings(1), readings(1), readings(2)
    assert first == again
    assert first[-1]["rheed_specular"] != other[-1]["rheed_specular"]
    assert first[-1]["film_thickness"] == other[-1]["film_thickness"]


def test_noise_is_small_and_does_not_depend_on_how_often_somebody_reads(chamber):
    once = chamber.rheed.specular.get()

    assert [chamber.rheed.specular.get() for _ in range(5)] == [once] * 5
    assert once == pytest.approx(100.0, rel=0.05)


# Cells, substrate, shutters


@pytest.mark.parametrize("part", ["ga_cell", "al_cell", "as_cell", "substrate"])
def test_after_one_time_constant_63_percent_of_the_way_to_the_set_point_is_left_behind(chamber, part):
    heated = getattr(chamber, part)
    signal = heated.thermocouple if part == "substrate" else heated.temperature
    begin = signal.get()

    heated.set(heated.standby_c + 100.0)
    chamber.skip(heated.model.furnace.time_constant_s)

    assert signal.get() - begin == pytest.approx(100.0 * (1.0 - math.exp(-1.0)), abs=1.0)


def test_a_set_is_finished_when_the_temperature_is_within_a_kelvin(chamber):
    status = chamber.ga_cell.set(900.0)

    chamber.skip(12.0 * math.log(100.0) - 0.1)
    assert not status.done
    chamber.skip(0.2)
    assert status.success


def test_a_set_to_the_present_temperature_is_finished_at_once(chamber):
    assert chamber.ga_cell.set(chamber.ga_cell.standby_c).success


def test_a_set_point_that_is_changed_takes_the_older_status_along(chamber):
    older = chamber.substrate.set(600.0)
    newer = chamber.substrate.set(700.0)

    chamber.skip(60)
    assert not older.done
    chamber.skip(600)
    assert older.success
    assert newer.success


@pytest.mark.parametrize("value", [-300.0, 5000.0, math.nan])
def test_a_set_point_out_of_range_is_refused_and_changes_nothing(chamber, value):
    with pytest.raises(LimitError, match="substrate can be set to 25 to 900 degC"):
        chamber.substrate.set(value)

    assert chamber.substrate.set_point.get() == 400.0


@pytest.mark.parametrize(("value", "shown"), [("open", 1), (1, 1), (True, 1), ("closed", 0), (0, 0), (False, 0)])
def test_a_shutter_moves_at_once_and_is_a_number_in_documents(chamber, value, shown):
    assert chamber.ga_cell.shutter.set(value).success

    assert chamber.read()["ga_cell_shutter"]["value"] == shown
    assert chamber.describe()["ga_cell_shutter"]["enum_strs"] == ["closed", "open"]


def test_a_shutter_refuses_what_is_neither_open_nor_closed(chamber):
    with pytest.raises(ValueError, match=r"ga_cell_shutter can be 'open' or 'closed' \(or 1 or 0\), not 'ajar'"):
        chamber.ga_cell.shutter.set("ajar")


def test_the_pyrometer_stands_at_400_degrees_below_its_range(chamber):
    assert chamber.substrate.pyrometer.get() == 400.0

    chamber.substrate.set(640.0)
    chamber.skip(600)
    assert chamber.substrate.pyrometer.get() == pytest.approx(577.5, abs=2.0)


def test_the_pyrometer_shows_not_a_number_below_its_range_where_asked_to():
    with SimulatedChamber(speed=0, pyrometer_below_range=math.nan) as chamber:
        assert math.isnan(chamber.substrate.pyrometer.get())


def test_the_heater_takes_more_power_the_hotter_it_is(chamber):
    standby_w = chamber.substrate.heater_power.get()
    chamber.substrate.set(640.0)
    chamber.skip(600)

    assert 1.5 * standby_w < chamber.substrate.heater_power.get() < 500.0


# Beams and growth


@pytest.mark.parametrize(("element", "kelvin"), [(GALLIUM, 1310.0), (ALUMINIUM, 1482.0), (ARSENIC, 553.0)])
def test_vapour_pressures_are_those_of_the_tables(element, kelvin):
    # Where the CRC Handbook's table has 1 Pa.
    assert element.vapour_pressure_pa(kelvin - 273.15) == pytest.approx(1.0, rel=0.1)


def test_a_hotter_cell_gives_more_beam(chamber):
    standby = chamber.ga_cell.flux.get()
    chamber.ga_cell.set(chamber.ga_cell.standby_c + 80.0)
    chamber.skip(600)

    assert 5.0 < chamber.ga_cell.flux.get() / standby < 10.0


def test_a_closed_shutter_grows_nothing(hot):
    hot.skip(100)

    assert hot.film.growth_rate.get() == hot.film.thickness.get() == hot.film.growth_time.get() == 0.0


def test_gallium_without_arsenic_grows_nothing(hot):
    hot.as_cell.shutter.set("closed")
    hot.ga_cell.shutter.set("open")
    hot.skip(100)

    assert hot.film.thickness.get() == 0.0


def test_where_arsenic_is_scarce_it_limits_the_rate(hot):
    hot.ga_cell.shutter.set("open")
    plenty = hot.film.growth_rate.get()
    hot.as_cell.set(180.0)
    hot.skip(600)

    assert 0.0 < hot.film.growth_rate.get() < 0.5 * plenty


def test_the_thickness_is_the_integral_of_the_rate(hot):
    hot.ga_cell.shutter.set("open")
    hot.ga_cell.set(840.0)
    monolayers = 0.0
    for _ in range(400):
        hot.skip(0.05)
        monolayers += 0.05 * hot.film.growth_rate.get()

    assert monolayers > 3.0
    assert hot.film.thickness.get() == pytest.approx(monolayers * MONOLAYER_NM, rel=1e-6)
    assert hot.film.growth_time.get() == pytest.approx(20.0)


def test_rheed_oscillates_once_per_monolayer(hot):
    hot.ga_cell.shutter.set("open")
    rate = hot.film.growth_rate.get()
    intensities = []
    while hot.elapsed_s < 600 + 6.0 / rate:
        hot.skip(0.05)
        intensities.append(hot.rheed.specular.get())

    minima = [
        nth
        for nth in range(20, len(intensities) - 20)
        if intensities[nth] == min(intensities[nth - 20 : nth + 21]) and intensities[nth] < 50.0
    ]
    periods_s = [0.05 * (late - early) for early, late in zip(minima, minima[1:], strict=False)]
    assert rate == pytest.approx(0.40, abs=0.01)
    assert len(periods_s) >= 4
    assert sum(periods_s) / len(periods_s) == pytest.approx(1.0 / rate, rel=0.05)


def test_rheed_oscillations_damp_while_growing_and_the_spot_recovers_in_a_growth_interruption(hot):
    def swing(seconds):
        seen = []
        for _ in range(round(seconds / 0.05)):
            hot.skip(0.05)
            seen.append(hot.rheed.specular.get())
        return max(seen) - min(seen)

    hot.ga_cell.shutter.set("open")
    first, later = swing(5.0), [swing(50.0), swing(5.0)][1]
    assert first > 70.0
    assert later < 0.3 * first

    hot.ga_cell.shutter.set("closed")
    hot.skip(30)
    assert hot.rheed.specular.get() > 95.0


def test_the_pressure_answers_to_hot_cells_and_to_open_shutters(chamber):
    at_standby = chamber.pressure.get()
    chamber.as_cell.set(250.0)
    chamber.skip(600)
    cell_hot = chamber.pressure.get()
    chamber.as_cell.shutter.set("open")
    chamber.skip(30)

    assert cell_hot > 10.0 * at_standby
    assert chamber.pressure.get() > 5.0 * cell_hot
    assert chamber.pressure.get() < 1e-6


# Time


def test_simulated_time_runs_speed_times_as_fast_as_the_real_one():
    real_s = [100.0]
    with SimulatedChamber(speed=60.0, now=lambda: real_s[0]) as chamber:
        assert chamber.elapsed_s == 0.0
        real_s[0] += 2.5
        assert chamber.elapsed_s == pytest.approx(150.0)
        chamber.skip(10.0)
        assert chamber.elapsed_s == pytest.approx(160.0)


@pytest.mark.parametrize("speed", [-1.0, math.inf, math.nan])
def test_a_speed_that_no_clock_can_have_is_refused(speed):
    with pytest.raises(ValueError, match="finite number, 0 or more; 1 is real time"):
        SimulatedChamber(speed=speed)


@pytest.mark.parametrize("seconds", [-1.0, math.nan])
def test_time_cannot_be_turned_back(chamber, seconds):
    with pytest.raises(ValueError, match="time goes forward"):
        chamber.skip(seconds)


def test_a_chamber_that_nobody_read_for_a_month_is_up_to_date_in_no_time(hot):
    hot.ga_cell.shutter.set("open")
    began = time.monotonic()
    hot.skip(30 * 86400.0)

    assert time.monotonic() - began < 2.0
    assert hot.film.thickness.get() == pytest.approx(30 * 86400.0 * 0.40 * MONOLAYER_NM, rel=0.02)


# Threads


def test_importing_the_room_starts_nothing():
    code = (
        "import threading, ophyd, ophyd.sim; before = threading.enumerate()\n"  # pyepics, if it is there, starts some
        "import atomscale_bluesky.sim; assert threading.enumerate() == before, threading.enumerate()"
    )

    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_making_and_reading_a_chamber_starts_no_thread():
    before = threading.active_count()
    with SimulatedChamber(speed=100.0) as chamber:
        chamber.read()
        chamber.ga_cell.shutter.set("open")

        assert threading.active_count() == before


def test_a_plan_can_wait_for_a_set_point_and_no_thread_is_left_when_it_is_reached(run_engine):
    with SimulatedChamber(speed=1000.0) as chamber:
        run_engine(bps.mv(chamber.substrate, 640.0, chamber.ga_cell, 880.0))

        assert chamber.substrate.thermocouple.get() == pytest.approx(640.0, abs=2.0)
        assert wait_until(lambda: not clock_threads())


def test_closing_the_chamber_ends_its_thread_and_fails_what_is_still_waited_for():
    chamber = SimulatedChamber(speed=1.0)
    status = chamber.substrate.set(640.0)
    assert clock_threads()

    assert chamber.close()

    assert not clock_threads()
    with pytest.raises(RuntimeError, match="closed before this was reached"):
        status.wait(1.0)
    assert chamber.close()
    assert chamber.read()


def test_closing_the_chamber_fails_the_plan_that_waits_for_it(run_engine):
    chamber = SimulatedChamber(speed=1.0)
    closer = threading.Timer(0.1, chamber.close)
    closer.start()

    with pytest.raises(FailedStatus):
        run_engine(bps.mv(chamber.substrate, 640.0))

    closer.join()
    assert not clock_threads()


def test_subscribers_hear_of_new_values_while_the_time_runs_and_the_thread_ends_with_them():
    heard = []
    with SimulatedChamber(speed=100.0) as chamber:
        cid = chamber.pressure.subscribe(lambda value, **_: heard.append(value))

        assert len(heard) == 1
        assert wait_until(lambda: len(heard) > 3)

        chamber.pressure.unsubscribe(cid)
        assert wait_until(lambda: not clock_threads())


def test_where_the_time_stands_subscribers_hear_of_what_is_skipped_and_of_shutters_that_move(chamber):
    heard = []
    chamber.pressure.subscribe(lambda value, **_: heard.append(value), run=False)
    chamber.ga_cell.shutter.subscribe(lambda value, **_: heard.append(value), run=False)
    heard.clear()

    chamber.ga_cell.shutter.set("open")
    assert heard == [1]
    chamber.skip(1.0)
    assert len(heard) == 2
    assert not clock_threads()


def test_a_run_can_monitor_the_pressure(run_engine, documents):
    with SimulatedChamber(speed=100.0) as chamber:

        @bpp.monitor_during_decorator([chamber.pressure])
        @bpp.run_decorator()
        def plan():
            yield from bps.sleep(0.3)

        run_engine(plan(), documents)

    assert [descriptor["name"] for descriptor in documents.of("descriptor")] == ["chamber_pressure_monitor"]
    assert len(documents.series("chamber_pressure")) > 5
