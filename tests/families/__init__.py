"""Tiny random models of every family that is tested, by the way in which they can be built here."""
