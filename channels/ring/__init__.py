"""The two ends of a ring (`OutgoingRing`, `IncomingRing`) over memory that both share (`RingMemory`).

    ring = RingMemory(bytearray(4096 + 65536))
    producer, consumer = OutgoingRing(ring), IncomingRing(ring)
    producer.initialize(); consumer.initialize()
    producer.try_put(b"hello"); signal_consumer = producer.publish()
    packets = consumer.read_batch(); signal_producer = consumer.commit()

Pure: nothing here waits, signals, reads a clock or logs. Packets are `channels.protocol.packet`.
"""

from .incoming import IncomingRing
from .memory import RingMemory, split_rings
from .outgoing import OutgoingRing, footprint

__all__ = ["IncomingRing", "OutgoingRing", "RingMemory", "footprint", "split_rings"]
