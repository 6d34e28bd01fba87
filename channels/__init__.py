"""VMBus on top of the SynIC, which is `broker`.

`server` and `client` are the two ends of a connection, `devices` and `drivers` the two sides of devices, `hvsock` sockets,
`pipe` streams over any channel, `relay` a paravisor's, `faults` what may go wrong, `scenarios` what `vmbus run` plays; `bus` is
what a device sees of a server, `channel` one end of an open channel. `protocol`, `ring`, `core` and `explain` are underneath.

Where a docstring names a section of `vmbus.md`, it means the reference that all this was built from: what OpenVMM and Linux do.
"""

__vmbus__ = 1
"""Says that this package is vmbus-broker's and not another distribution's of the same name."""
