"""Whatever the documents are, the server answers and the process restarts: the oracle agrees."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from atomscale_bluesky.server import Fault

from .bench import bench
from .story import Story

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the bench is made for Linux")

CALLS = st.sampled_from(["initialize", "chunk_multi", "finalize", "catalogue", ("chunk", "chunk_multi")])
WAYS: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {"status": 500},
        {"status": 429, "headers": {"Retry-After": "0"}},
        {"status": 408},
        {"status": 502, "applied": True},
        {"reset_before": True},
        {"reset_after": True},
        {"garble": "half"},
        {"garble": "empty"},
        {"body": "<html>"},
        {"delay_s": 0.02},
    ]
)
FAULTS = st.lists(
    st.builds(
        lambda call, skip, times, way: Fault(call=call, skip=skip, times=times, **way),
        *(CALLS, st.integers(0, 6), st.integers(1, 3), WAYS),
    ),
    max_size=4,
)
STORIES = st.builds(
    Story,
    seed=st.integers(0, 2**32),
    t0=st.just(1_760_000_000.0),
    runs=st.integers(1, 3),
    points=st.integers(0, 45),
    keys=st.integers(1, 4),
    gaps=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    late=st.booleans(),
    monitor=st.booleans(),
    pages=st.booleans(),
    baseline=st.booleans(),
    repeats=st.sampled_from([0.0, 0.1]),
    at_once=st.booleans(),
    points_per_chunk=st.sampled_from([None, 1, 2, 7, 1000]),
    stops=st.booleans(),
)
# After which share of the documents the delivering callback is closed and another one takes over.
RESTARTS = st.lists(st.floats(0, 1), max_size=3)


@given(story=STORIES, faults=FAULTS, restarts=RESTARTS)
# Not made smaller: an example that fails takes half a minute, so that would take longer than the test may.
@settings(max_examples=12, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
def test_documents_faults_and_restarts_of_any_kind_end_with_each_point_there_once(
    story: Story, faults: list[Fault], restarts: list[float]
) -> None:
    with bench("property", story.seed) as b:
        documents = story.documents()
        b.server.misbehave(*faults)
        first = deliverer = b.callback()
        done = 0
        for share in [*sorted(restarts), 1.0]:
            upto = len(documents) if share == 1.0 else round(share * len(documents))
            b.play(first, documents[done:upto])
            done = upto
            if share < 1.0:
                deliverer.close(0.0)
                deliverer = b.callback()
        first.settle_open_runs()  # of what came after its close, too
        first.close(0.0)
        deliverer.close(0.0)
        last = b.callback()
        b.check(last.drain(30.0), f"not drained: {last.status()}")
        b.judge(documents)
    assert b.result.problems == []
