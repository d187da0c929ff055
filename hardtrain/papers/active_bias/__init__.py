"""Chang, Learned-Miller, McCallum: Active Bias."""

VERSION = 1  # raise it when a change in this room changes what a figure shows
