"""A small EPICS IOC with a record of each kind: `python -m integration.ioc`."""

from __future__ import annotations

from caproto import ChannelType
from caproto.server import PVGroup, pvproperty, run

LONG = 200


class Chamber(PVGroup):
    """What a growth chamber might show."""

    temperature = pvproperty(value=300.0, units="K", precision=2, doc="A float")
    cycles = pvproperty(value=0, units="cycles", doc="An integer")
    shutter = pvproperty(
        value="Closed", enum_strings=["Closed", "Open", "Fault"], dtype=ChannelType.ENUM, record="mbbi"
    )
    material = pvproperty(value="Ga", dtype=ChannelType.STRING)
    zones = pvproperty(value=[1.0, 2.0, 3.0], max_length=3, units="W", doc="A short waveform")
    spectrum = pvproperty(value=[0.0] * LONG, max_length=LONG, doc="A long waveform")


if __name__ == "__main__":
    run(Chamber(prefix="chamber:").pvdb, interfaces=["127.0.0.1"], log_pv_names=False)
