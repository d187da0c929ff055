"""Chitta, Alvarez, Haussmann, Farabet: training data subset search."""

VERSION = 1  # raise it when a change in this room changes what a figure shows
