"""Sahayam, Zakkam, Jayaraman: hard mini-batches."""

VERSION = 2  # raise it when a change in this room changes what a figure shows
