"""Chitta, Alvarez, Haussmann, Farabet: training data subset search."""

VERSION = 2  # raise it when a change in this room changes what a figure shows
