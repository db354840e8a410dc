"""What is sent when: one thread decides, worker threads send.

In: runs of a spool (folder `spool`), with their journals, ledgers and orders.
Out: requests to Atomscale (folder `api`), and lines in the ledgers before and after each.
Guaranteed: what must be known after a crash is noted before the request leaves; a stream is finalized once, after each
of its chunks was confirmed. Nothing is given up while it can still succeed.
Bounded: runs that are delivered at a time, tasks given out, failed chunks kept in memory.

    uploader         the deciding thread; drain, the question whether it is done
    active_runs      which runs it delivers now; waiting_runs, which ones wait or rest
    run_delivery     one run: the order of what can be done for it; run, its files and what was read of them
    tasks            a folder: one file for each kind of task, from `may it run now` to `what does the result mean`
    task_book        which tasks of a run are under way or have failed
    previews, ending_streams, continuation, pending_links    rules of a run: early points, early ends, links to make
    worker_pool      the threads; task_runner, what one of them does with a task
    outcomes         what an answer means for all runs; refusals, what a 403, a 413 or a closed stream means
    backoff          how long to wait after a failure; outage_log, what is logged of it
    uploader_process, uploader_service    the same uploader in a process of its own, from both ends
    exit_hooks       what happens when the process ends or forks
"""
