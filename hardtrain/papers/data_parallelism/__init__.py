"""Shallue et al.: the effects of data parallelism."""

VERSION = 2  # raise it when a change in this room changes what a figure shows
