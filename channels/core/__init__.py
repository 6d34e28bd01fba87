"""The machines of VMBus: `server` and `client`. No waiting, no clock, no I/O: inputs in, effects out."""
