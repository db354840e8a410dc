"""Looking whether all is well: before a run, and after it.

In: settings, a spool, recorded documents, and what Atomscale answers.
Out: findings for people and programs.
Guaranteed: a check changes nothing in Atomscale, but for `probe`, which makes streams on a person's word.

    doctor        key, server, clock and disk, before a run
    probe         what an endpoint permits beyond its documentation
    verification  a run read back and compared with its journal, point by point
    recordings    the same for recorded documents
    comparison    two series of points, and how they differ. Pure.
"""
