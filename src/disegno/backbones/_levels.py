"""The levels of a UNet: how large its features are, told by how many places there are."""


def level_of(size: tuple[int, int], num: int) -> tuple[int, int]:
    """Return height and width of the level that has `num` places, in a net whose latents have this size."""
    height, width = size
    while height * width > num:  # a level is half as large, rounded up
        height, width = -(-height // 2), -(-width // 2)
    assert height * width == num, f"{num} places are no level of {size}"
    return height, width
