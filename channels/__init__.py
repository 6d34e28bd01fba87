"""VMBus on top of the SynIC: channels, devices and scenarios. It follows; the SynIC underneath is `broker`."""

__vmbus__ = 1
"""Says that this package is vmbus-broker's and not another distribution's of the same name."""
