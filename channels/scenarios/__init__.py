"""Scenarios: `vmbus run channels.scenarios:NAME`, or any `module:name` that is a `Scenario`."""

from .echo import echo
from .hello import hello
from .reset_storm import reset_storm
from .stage import Flag, GuestRun, Scenario, ScenarioFailed, Settings, Stage, expect
from .starved_guest import starved_guest
from .subchannels import subchannels

__all__ = [
    "Flag",
    "GuestRun",
    "Scenario",
    "ScenarioFailed",
    "Settings",
    "Stage",
    "echo",
    "expect",
    "hello",
    "reset_storm",
    "starved_guest",
    "subchannels",
]
