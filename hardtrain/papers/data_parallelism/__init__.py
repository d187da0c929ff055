"""Shallue et al.: the effects of data parallelism."""

VERSION = 1  # raise it when a change in this room changes what a figure shows
