"""Chang, Learned-Miller, McCallum: Active Bias."""

VERSION = 2  # raise it when a change in this room changes what a figure shows
