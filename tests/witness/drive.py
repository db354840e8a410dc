"""Drive the vendor's client as JSON orders on standard input say, one a line; an account of each goes out likewise.

Runs in an environment of its own, where only that client and what it brings is installed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import urllib.request

from look import look, look_at


def read_back(order, data_id):
    """The raw answer of the read-back route."""
    request = urllib.request.Request(
        f"{order['url']}/{order['family']}/{data_id}/timeseries/", headers={"X-API-KEY": order["key"]}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)["properties"]


def wait_until_delivered(order, data_id):
    """Until every channel reads back with as many points as were pushed; False after a limit."""
    wanted = {}
    for chunk in order["chunks"]:
        for name, channel in chunk["channels"].items():
            wanted[name] = wanted.get(name, 0) + len(channel["values"])
    pause, end = threading.Event(), time.monotonic() + order.get("limit_s", 10)
    while time.monotonic() < end:
        held = read_back(order, data_id)
        if {name: len(channel["values"]) for name, channel in held.items()} == wanted:
            return True
        pause.wait(0.02)
    return False


def drive(order):
    """Stream what the order says, finalize it, and look at it."""
    from atomscale import Client
    from atomscale.streaming import TimeseriesStreamer

    streamer = TimeseriesStreamer(order["key"], endpoint=order["url"], points_per_chunk=order["points_per_chunk"])
    account = {}
    try:
        data_id = streamer.initialize(**order.get("initialize", {}))
    except Exception as error:  # noqa: BLE001 - whatever it raises is part of the account
        return {"error": f"{type(error).__name__}: {error}"}
    account["data_id"] = data_id
    if "run" in order:  # one channel, by the call that takes an iterator and waits
        name = order["run"]
        parts = [chunk["channels"][name] for chunk in order["chunks"]]
        streamer.run(data_id, name, ((part["timestamps"], part["values"]) for part in parts), parts[0].get("units"))
    for chunk in () if "run" in order else order["chunks"]:
        if len(chunk["channels"]) == 1 and not chunk.get("multi"):
            [(name, channel)] = chunk["channels"].items()
            streamer.push(data_id, chunk["index"], name, channel["timestamps"], channel["values"], channel.get("units"))
        else:
            streamer.push_multi(data_id, chunk["index"], chunk["channels"])
    if order.get("wait", True):
        account["delivered"] = wait_until_delivered(order, data_id)
    if order.get("clock"):
        account["clock"] = streamer.clock_status()
    try:
        streamer.finalize(data_id)
    except Exception as error:  # noqa: BLE001 - whatever it raises is part of the account
        account["finalize_error"] = f"{type(error).__name__}: {error}"
    client = Client(api_key=order["key"], endpoint=order["url"], mute_bars=True)
    return account | look(client, [data_id], order.get("search") or data_id)


def main():
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the client may print is no account
    for line in sys.stdin:
        order = json.loads(line)
        json.dump(drive(order) if "chunks" in order else look_at(order), out)
        out.write("\n")
        out.flush()


main()
