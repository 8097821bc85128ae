"""Measurements; ``make bench`` runs them all, ``make bench ARGS="gap"`` one."""
