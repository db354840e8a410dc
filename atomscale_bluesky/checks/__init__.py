"""Checks before a run and after it.

In: settings, a spool, recorded documents, and Atomscale's answers.
Out: findings, as records.
Guaranteed: a check changes nothing in Atomscale, except `probe`, which makes streams if the operator asks for it.

    doctor        key, server, clock and disk, before a run
    settings_report  where each setting comes from, and what is no setting
    probe         what an endpoint permits beyond its documentation; probe_streams, the streams it makes for that
    verify_run    reads a run back and compares it with its journal, point by point
    expected_points  which points must be there, by the run's files
    stream_reading   reads a stream, and again while points are missing
    verification  the result
    recordings    the same for recorded documents, which the folder `sources` reads
    who_delivers  runs that no process delivers, and what delivers them
    run_tables    a run's points as tables, from the spool or read back
    comparison    how two series of points differ. Pure.
"""
