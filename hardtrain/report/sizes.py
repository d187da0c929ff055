"""A profile's sizes, where somebody's own data are fewer."""

from collections.abc import Collection, Mapping

from hardtrain.errors import ParameterError


def sizes_at_hand(
    chosen: Mapping, given: Collection[str], num_train: int, num_test: int
) -> dict[str, int]:
    """A profile's sizes that are more than the smallest set has, cut to that, which a line says: a
    held-out part to a quarter of the training images. Those that the user gave are refused.

    Example:
        >>> profile = {"train_size": 400, "test_size": 0}
        >>> sizes_at_hand(profile, [], num_train=100, num_test=20)
        train_size: 100 in place of the profile's 400; there are no more images
        {'train_size': 100}
    """
    fitting, held = {}, chosen.get("validation_size", 0)
    needed = held + (chosen.get("train_size", 0) or held)  # at least half is for training
    if held and needed > num_train and "validation_size" not in given:
        held = fitting["validation_size"] = num_train // 4
    for name, most in {"train_size": num_train - held, "test_size": num_test}.items():
        if chosen.get(name, 0) > most and name in given:
            raise ParameterError(f"{name} = {chosen[name]} is more than the {most} there are")
        if chosen.get(name, 0) > most:
            fitting[name] = most
    for name, size in fitting.items():
        print(f"{name}: {size} in place of the profile's {chosen[name]}; there are no more images")
    return fitting
