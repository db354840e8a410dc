"""Documents from elsewhere than a RunEngine of this process: from recorded files, message buses and catalogues.

In: files, pipes, what a bus delivers, and what a catalogue has.
Out: documents in the spool, through a `DocumentRecorder`. Every source is an iterator of `(name, doc, ack)`.
Guaranteed: a document is acknowledged once it is safe on disk, even from a power cut. One that cannot be used is
counted with its reason and acknowledged too. One that comes again changes nothing. A run whose start document never
came is reported by uid.
Bounded: one batch of acknowledgements. If an event's descriptor does not come, the source keeps its place for up to
100 000 documents more, and then the event is counted as ignored. So is an event that comes while events with a million
values wait. While the spool is full, no document is taken and none is lost, unless the open runs alone fill it.
Nothing here sends anything to Atomscale. Buses and Tiled need their own client libraries, imported when they are used.

    incoming          what a source hands over, and what a source is
    intake            takes documents from a source into a recorder, and acknowledges them in batches
    forms             the forms in which programs write a document, in files and in messages
    recordings        documents of recorded files, whatever tool of Bluesky's world has written them
    recorded_json     documents of a JSON file of any size
    recorded_msgpack  documents of a MessagePack file of any size
    recording_errors  what is wrong with a file of documents. Pure.
    contents          what a recording holds, without recording any of it
    pipes             a pipe that can be left although nothing comes
    kafka             documents from Kafka topics
    nats              documents from NATS JetStream
    zmq               documents from Bluesky's 0MQ proxy
    zmq_connection    reports whether a 0MQ socket is connected
    tiled             documents of the runs in a Tiled catalogue
"""
