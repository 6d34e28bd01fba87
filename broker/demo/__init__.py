"""The teaching demo: a scene on a real partition, and the words that its trace tells."""

from .narrator import printable, sentence, tell
from .scene import SlotPicture, Step, play

__all__ = ["SlotPicture", "Step", "play", "printable", "sentence", "tell"]
