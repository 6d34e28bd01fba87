"""Fuzzing of every decoder, of both state machines and of both ring ends: `python -m tests.fuzz --help`.

A target is a function from bytes to nothing; whatever it raises is a defect, so it catches itself what may be raised.
`targets` lists them. Inputs come from atheris (libFuzzer, guided by coverage) or from the small engine in `plain`.
"""
