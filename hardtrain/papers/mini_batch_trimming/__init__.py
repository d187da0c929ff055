"""Fassold, Some like it tough: mini-batch trimming."""

VERSION = 2  # raise it when a change in this room changes what a figure shows
