import itertools
import json
import math
import threading

import pytest
from bluesky import RunEngine
from bluesky import plan_stubs as bps
from bluesky import preprocessors as bpp
from bluesky.utils import RunEngineInterrupted

from atomscale_bluesky.sim import QUANTUM_WELL, QUICK, Anneal, Layer, Recipe, SimulatedChamber, grow


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
def module_run_engine():
    return RunEngine({})


@pytest.fixture
def run_engine(module_run_engine):
    yield module_run_engine
    if module_run_engine.state != "idle":
        module_run_engine.halt()


@pytest.fixture
def documents():
    return Documents()


@pytest.fixture
def chamber():
    """A chamber whose time moves by `skip` only, so that growths are the same each time."""
    with SimulatedChamber(speed=0) as chamber:
        yield chamber


def is_at_standby(chamber):
    parts = (chamber.substrate, *chamber.cells.values())
    return all(part.set_point.get() == part.standby_c for part in parts) and not any(
        cell.shutter.get() for cell in chamber.cells.values()
    )


def test_a_quick_growth_gives_some_150_events_of_one_event_stream(run_engine, chamber, documents):
    run_engine(grow(chamber, QUICK, period_s=None), documents)

    assert 120 <= len(documents.of("event")) <= 200
    assert [descriptor["name"] for descriptor in documents.of("descriptor")] == ["primary"]
    assert documents.of("stop")[0]["exit_status"] == "success"


def test_every_value_of_a_growth_is_a_finite_number(run_engine, chamber, documents):
    run_engine(grow(chamber, QUICK, period_s=None), documents)

    values = [value for event in documents.of("event") for value in event["data"].values()]
    assert len(values) == 21 * len(documents.of("event"))
    assert all(math.isfinite(value) for value in values)


def test_the_default_growth_gives_1000_to_2500_events_and_takes_20_to_25_s_at_the_default_speed(run_engine, documents):
    default_speed, default_period_s = 20.0, 0.015
    with SimulatedChamber(speed=0) as chamber:
        run_engine(grow(chamber, period_s=None), documents)

        assert 1000 <= len(documents.of("event")) <= 2500
        assert 20.0 <= chamber.elapsed_s / default_speed <= 25.0
    # Neither form of the growth is coarser than the other.
    assert QUANTUM_WELL.reading_interval_s == pytest.approx(default_speed * default_period_s)
    with SimulatedChamber() as chamber:
        assert chamber.clock.speed == default_speed


def test_a_growth_deposits_what_the_recipe_says(run_engine, chamber):
    recipe = Recipe(
        name="by thickness and by time",
        cells_c={"ga": 879.5, "al": 985.0, "as": 250.0},
        substrate_c=620.0,
        layers=(Layer("GaAs", thickness_nm=4.0, interruption_s=5.0), Layer("AlAs", duration_s=20.0)),
    )
    run_engine(grow(chamber, recipe, period_s=None))

    # 0.174 monolayers of AlAs per second; each layer ends with the reading after it was finished.
    assert chamber.film.thickness.get() == pytest.approx(4.0 + 20.0 * 0.174 * 0.2827, abs=0.1)


def test_readings_of_a_growth_show_open_shutters_only_while_a_layer_grows(run_engine, chamber, documents):
    run_engine(grow(chamber, QUICK, period_s=None), documents)

    ga, al, arsenic = (documents.series(f"{cell}_cell_shutter") for cell in ("ga", "al", "as"))
    rate = documents.series("film_growth_rate")
    assert {*zip(ga, al, strict=True)} == {(0, 0), (1, 0), (1, 1)}
    assert all((growing > 0.0) == (shutter == 1) for growing, shutter in zip(rate, ga, strict=True))
    assert set(arsenic) == {1}


def test_growths_on_chambers_with_the_same_seed_show_the_same(run_engine):
    def readings():
        documents = Documents()
        with SimulatedChamber(speed=0, seed=7) as chamber:
            run_engine(grow(chamber, QUICK, period_s=None), documents)
        return [event["data"] for event in documents.of("event")]

    assert readings() == readings()


def test_the_start_document_tells_the_recipe_and_what_the_caller_adds(run_engine, chamber, documents):
    run_engine(grow(chamber, QUICK, md={"synth_source_id": 42}, period_s=None), documents)

    start = documents.of("start")[0]
    assert start["plan_name"] == "grow"
    assert start["synth_source_id"] == 42
    assert start["recipe"]["layers"][0]["material"] == "GaAs"
    assert start["simulation"] == {"speed": 0, "seed": 0}
    json.dumps(start)


def test_a_display_is_told_each_step_of_a_growth(run_engine, chamber):
    steps = []
    run_engine(grow(chamber, QUICK, period_s=None, on_step=steps.append))

    assert steps == [
        "heat up: substrate to 600 degC",
        "layer 1 of 2: 1.5 nm GaAs",
        "growth interruption: 5 s",
        "layer 2 of 2: 6 s AlGaAs",
        "anneal: 5 s at 600 degC",
        "cool down: under arsenic to 450 degC",
        "done",
    ]


def test_readings_follow_each_other_at_the_period_that_was_asked_for(run_engine, documents):
    with SimulatedChamber(speed=200.0) as chamber:
        run_engine(grow(chamber, QUICK, period_s=0.01), documents)

    times = [event["time"] for event in documents.of("event")]
    mean_s = (times[-1] - times[0]) / (len(times) - 1)
    assert mean_s > 0.009  # a busy machine may be late, not early


def test_a_growth_can_be_monitored_too(run_engine, documents):
    with SimulatedChamber(speed=200.0) as chamber:
        run_engine(bpp.monitor_during_wrapper(grow(chamber, QUICK, period_s=0.02), [chamber.pressure]), documents)

    assert {descriptor["name"] for descriptor in documents.of("descriptor")} == {"primary", "chamber_pressure_monitor"}
    assert documents.of("stop")[0]["num_events"]["chamber_pressure_monitor"] > 10


def test_a_growth_leaves_the_chamber_at_standby_and_no_thread_behind_it(run_engine):
    with SimulatedChamber(speed=1000.0) as chamber:
        run_engine(grow(chamber, QUICK, period_s=0.001))

        assert is_at_standby(chamber)
    assert "simulated chamber" not in [thread.name for thread in threading.enumerate()]


def test_a_growth_that_fails_closes_the_shutters_and_cools_the_chamber(run_engine, chamber, documents):
    def fail(step):
        if step.startswith("layer 2"):
            raise OSError("the display is gone")

    with pytest.raises(OSError, match="the display is gone"):
        run_engine(grow(chamber, QUICK, period_s=None, on_step=fail), documents)

    assert is_at_standby(chamber)
    assert documents.of("stop")[0]["exit_status"] == "fail"
    assert [name for name, _ in documents.all][-1] == "stop"


def pause_in_first_layer(run_engine, chamber, documents):
    """Start a growth and return when it is paused, five readings into its layer."""
    checkpoints = itertools.count(1)

    def pause_at_the_fifth(msg):
        if msg.command == "checkpoint" and chamber.ga_cell.shutter.get() and next(checkpoints) == 5:
            return bpp.pchain(bpp.single_gen(msg), bps.pause()), None
        return None, None

    with pytest.raises(RunEngineInterrupted):
        run_engine(bpp.plan_mutator(grow(chamber, LONG, period_s=None), pause_at_the_fifth), documents)
    assert run_engine.state == "paused"


LONG = Recipe(
    name="one thick layer",
    cells_c={"ga": 879.5, "as": 250.0},
    substrate_c=620.0,
    layers=(Layer("GaAs", thickness_nm=6.0),),
)


def test_a_paused_growth_closes_the_group_iii_shutters_and_goes_on_where_it_was(run_engine, chamber, documents):
    pause_in_first_layer(run_engine, chamber, documents)
    assert [cell.shutter.get() for cell in chamber.cells.values()] == [0, 0, 1]
    grown = chamber.film.thickness.get()
    chamber.skip(1000)
    assert chamber.film.thickness.get() == grown < 6.0

    run_engine.resume()

    assert chamber.film.thickness.get() == pytest.approx(6.0, abs=0.05)
    assert documents.of("stop")[0]["exit_status"] == "success"


def test_an_aborted_growth_closes_the_shutters_and_cools_the_chamber(run_engine, chamber, documents):
    pause_in_first_layer(run_engine, chamber, documents)

    run_engine.abort("enough")

    assert is_at_standby(chamber)
    assert documents.of("stop")[0]["exit_status"] == "abort"


def test_a_growth_with_cold_cells_fails_and_says_so(run_engine, chamber):
    recipe = Recipe(
        name="cold", cells_c={"ga": 300.0, "as": 250.0}, substrate_c=600.0, layers=(Layer("GaAs", thickness_nm=5.0),)
    )

    with pytest.raises(RuntimeError, match=r"5 nm GaAs at .* are the cells of the recipe hot enough\?"):
        run_engine(grow(chamber, recipe, period_s=None))

    assert is_at_standby(chamber)


def test_a_growth_without_arsenic_to_speak_of_fails_by_time_too(run_engine, chamber):
    recipe = Recipe(
        name="no arsenic",
        cells_c={"ga": 880.0, "as": 25.0},
        substrate_c=600.0,
        layers=(Layer("GaAs", thickness_nm=5.0),),
    )

    with pytest.raises(RuntimeError, match="would not be finished"):
        run_engine(grow(chamber, recipe, period_s=None))


def test_a_period_is_refused_where_the_time_stands_still(run_engine, chamber, documents):
    with pytest.raises(
        ValueError, match=r"the time of 'chamber' stands still \(speed=0\); grow there with period_s=None"
    ):
        run_engine(grow(chamber, QUICK, period_s=0.01), documents)

    assert documents.all == []


@pytest.mark.parametrize("amounts", [{}, {"thickness_nm": 1.0, "duration_s": 1.0}, {"thickness_nm": 0.0}])
def test_a_layer_has_either_a_thickness_or_a_duration(amounts):
    with pytest.raises(ValueError, match="GaAs takes either thickness_nm or duration_s, above 0; given were"):
        Layer("GaAs", **amounts)


def test_a_material_that_the_cells_cannot_give_is_refused():
    with pytest.raises(ValueError, match="material 'InAs' cannot be grown here; choose one of GaAs, AlAs, AlGaAs"):
        Layer("InAs", thickness_nm=1.0)


def test_a_recipe_without_the_temperature_of_a_cell_that_it_needs_is_refused():
    with pytest.raises(ValueError, match="recipe 'half' has no temperature for al, as; add it to cells_c"):
        Recipe(name="half", cells_c={"ga": 880.0}, substrate_c=600.0, layers=(Layer("AlGaAs", duration_s=1.0),))


def test_an_anneal_keeps_the_film_hot_for_its_time(run_engine, chamber, documents):
    recipe = Recipe(
        name="anneal",
        cells_c={"as": 250.0},
        substrate_c=600.0,
        layers=(),
        anneal=Anneal(substrate_c=700.0, duration_s=100.0),
    )
    run_engine(grow(chamber, recipe, period_s=None), documents)

    hot = [celsius for celsius in documents.series("substrate_set_point") if celsius == 700.0]
    assert 0.3 * len(hot) == pytest.approx(100.0, abs=1.0)
    assert max(documents.series("substrate_thermocouple")) == pytest.approx(700.0, abs=1.0)
