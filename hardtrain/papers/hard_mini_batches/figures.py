"""How the arms look in the notebook's figures."""

from collections.abc import Sequence

from hardtrain.report import plotting

_DELTAS = ("δ = 1", "δ = 0.8", "δ = 0.5", "δ = 0.2")
_CONTROLS = ("random order", "random 0.5", "random 0.2", "drawn anew")


def looks(deltas: Sequence[str], controls: Sequence[str]) -> dict[str, dict]:
    """Colour, line and marker of each arm, by its label: of a δ in the method's hue, of a control
    in grey. An arm of one profile looks the same in every other.

    Example:
        >>> [looks(some, [])["δ = 0.2"]["marker"] for some in (["δ = 1", "δ = 0.2"], ["δ = 0.2"])]
        ['D', 'D']
    """
    found = {}
    for method, names, usual in (
        ("hard_batches", deltas, _DELTAS),
        ("subset_random", controls, _CONTROLS),
    ):
        order = usual if set(names) <= set(usual) else names
        styles = plotting.variant_styles(method, len(order))
        found |= {name: style for name, style in zip(order, styles, strict=True) if name in names}
    return found
