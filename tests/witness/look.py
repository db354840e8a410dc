"""What the vendor's `Client` shows of some streams; for `drive.py`."""

from __future__ import annotations

import json


def records(frame):
    """A data frame as plain rows."""
    return json.loads(frame.to_json(orient="records", default_handler=str, double_precision=15))


def seen(result):
    """One result: its kind, and its time series where it has one."""
    told = {"kind": type(result).__name__}
    frame = getattr(result, "timeseries_data", None)
    if frame is not None:
        told["columns"] = [str(column) for column in frame.columns]
        told["rows"] = records(frame.reset_index())
    return told


def look(client, data_ids, keywords):
    """What a user of the client can find out."""
    return {
        "search": records(client.search(keywords=keywords)),
        "results": [seen(result) for result in client.get(data_ids)],
        "instruments": client.list_growth_instruments(),
    }


def look_around(client, sample):
    """The same from the side of the lab: its samples and projects, and what belongs to one sample."""
    found = client.get_physical_sample(sample)
    return {
        "samples": records(client.list_physical_samples()),
        "projects": records(client.list_projects()),
        "of_sample": {"name": found.physical_sample_name, "results": [seen(one) for one in found.data_results]},
    }


def look_at(order):
    """What a user finds out about the streams of an order."""
    from atomscale import Client

    client = Client(api_key=order["key"], endpoint=order["url"], mute_bars=True)
    account = look(client, order["data_ids"], order["search"])
    return account | (look_around(client, order["sample"]) if "sample" in order else {})
