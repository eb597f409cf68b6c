"""Lanczos: probes, bases, recurrences in lockstep, and the spectrum that follows."""
