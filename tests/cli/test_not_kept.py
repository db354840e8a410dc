"""Nothing is called delivered, or waiting, of which the spool had no room for a part."""

from __future__ import annotations

from collections.abc import Callable

from runs import growth

from atomscale_bluesky import AtomscaleCallback

MakeCallback = Callable[..., AtomscaleCallback]
Say = Callable[..., tuple[int, str, str]]
NO_ROOM = {"spool_min_free_bytes": 2**60}


def recorded(callback: AtomscaleCallback, points: int = 25, keys: int = 2) -> str:
    documents = list(growth(points, keys=keys))
    for name, doc in documents:
        callback(name, doc)
    return documents[0][1]["uid"]


def test_a_run_that_found_no_room_is_named_wherever_one_asks(say: Say, make_callback: MakeCallback) -> None:
    callback = make_callback(**NO_ROOM)
    uid = recorded(callback)

    assert callback.drain(10)
    status = callback.status()
    assert repr(status).startswith("no run waits; 1 run of the last seven days found no room\n")
    assert f"  {uid[:8]}  not kept     50 readings left out, " in repr(status)
    html = status._repr_html_()
    assert "1 run of the last seven days found no room" in html
    assert f"<td>{uid[:8]}</td>" in html
    assert "<td>not kept</td>" in html
    callback.close()

    for command in (("status",), ("upload",)):
        said = say(*command)[1]
        assert f"Run {uid[:8]} (grow" in said
        assert "was not kept: 50 readings left out, " in said
        assert "All of it" not in said
    for name in ("last", uid[:8]):
        code, _, complaint = say("show", name)
        assert code == 1
        assert f"Run {uid[:8]} (grow" in complaint
        assert "was not kept" in complaint


def test_a_run_of_which_a_part_found_no_room_is_not_called_whole(say: Say, make_callback: MakeCallback) -> None:
    full = make_callback(offline=True, spool_max_bytes=1_000_000)
    recorded(full, points=1500, keys=100)
    (run,) = full.status()
    left_out = run.points.left_out["no room in the spool"]
    assert run.points.seen == 150_000
    full.close()

    code, said, _ = say("upload")

    assert code == 0
    said = said.replace("\N{NO-BREAK SPACE}", "").replace(" ", "")
    assert (
        f"{left_out} readings of 1 run had found no room in the spool. All that was kept is delivered.".replace(" ", "")
        in said
    )
    said = say("status", "--all")[1].replace(" ", "")
    assert f"{150_000 - left_out}delivered,allthatwaskept,by" in said
    assert f"leftout{left_out}noroominthespool" in said


def test_a_run_that_found_no_room_is_not_named_any_more_when_all_of_it_was_taken_later(
    say: Say, make_callback: MakeCallback
) -> None:
    documents = list(growth(25))
    with make_callback(**NO_ROOM) as full:
        for name, doc in documents:
            full(name, doc)
    assert [run.readings for run in full.status().not_kept] == [50]

    with make_callback() as callback:
        for name, doc in documents[:10]:
            callback(name, doc)
        assert [run.readings for run in callback.status().not_kept] == [50]  # a part of it is not all of it
        for name, doc in documents[10:]:
            callback(name, doc)
        assert callback.status().not_kept == ()
        assert callback.drain(10)
        assert callback.status().not_kept == ()
    assert "was not kept" not in say("status")[1]
