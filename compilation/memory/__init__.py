"""Liveness, placement and their checks: the arena of a Program."""
