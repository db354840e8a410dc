"""The types that the folders share: row, channel, chunk, links, labels, identifiers.

In: nothing. Out: frozen records and pure functions on them.
Guaranteed: no file, socket, thread or clock is touched, and nothing here imports another folder.

    rows         Row, Rows, Channel, Position: what a journal holds of a reading
    chunk        Chunk, Column, Span: what Atomscale gets
    loss         Loss: every reason why a reading does not become a point. Add a reason there
    links        Links: instrument, sample, project and tags of a metrology stream
    labels       the names of runs and streams in Atomscale
    metadata_keys  which keys of a start document are read
    identifiers  UUIDs, names of samples and tags
    uids         which runs are meant by the beginning of a uid, and how much of a uid is shown
    endpoints    the form in which an endpoint is compared
    points       columns of numbers as packed floats
    text         text from outside, made safe for a log
"""
