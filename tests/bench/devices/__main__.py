"""How fast devices are, guest and host in one process: pipes beside a Unix socket pair, disks, network adapters, file copies.

    python -m tests.bench.devices [--json] [--loop asyncio|trio|both] [--rounds N]

Each part says how it measures; `x` is to what the same round measured. No goal has a limit here: these are figures.
"""

from __future__ import annotations

from ..measure import REPETITIONS, Result, program
from . import file_copy, network, pipe, storage

ROUNDS = 10


async def measure(loop: str, rounds: int) -> list[Result]:
    """Every figure on the running loop."""
    return [
        *await pipe.measure(loop, rounds),
        *await storage.measure(loop, rounds),
        *await network.measure(loop, rounds),
        *await file_copy.measure(loop, rounds),
    ]


main = program(
    measure,
    "Measure what goes through devices, and how fast.",
    f"medians of {{}} interleaved rounds, best of {REPETITIONS}; range: 80 % of the rounds; x: to what the same round measured",
    rounds=ROUNDS,
    calls=pipe.MESSAGES,
    packages=("anyio", "trio", "msgspec"),
)

if __name__ == "__main__":
    main()
