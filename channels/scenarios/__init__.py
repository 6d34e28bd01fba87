"""Scenarios: `vmbus run channels.scenarios:NAME`, or any `module:name` that is a `Scenario`."""

from .disk import disk
from .driver_test import driver_test
from .echo import echo
from .hello import hello
from .hvsock import hvsock
from .integration import integration
from .network import network
from .reset_storm import reset_storm
from .stage import Flag, GuestRun, Scenario, ScenarioFailed, Settings, Stage, expect, serve
from .starved_guest import starved_guest
from .subchannels import subchannels

__all__ = [
    "Flag",
    "GuestRun",
    "Scenario",
    "ScenarioFailed",
    "Settings",
    "Stage",
    "disk",
    "driver_test",
    "echo",
    "expect",
    "hello",
    "hvsock",
    "integration",
    "network",
    "reset_storm",
    "serve",
    "starved_guest",
    "subchannels",
]
