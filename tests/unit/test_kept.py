"""What is kept while there is room: by number, and by size."""

from disegno.engine.kept import Kept


def test_the_least_recently_used_goes_first() -> None:
    gone: list[int] = []
    kept = Kept[int](2, gone.append)
    assert [kept.get(key, lambda key=key: key) for key in (1, 2, 1, 3)] == [1, 2, 1, 3]
    assert gone == [2] and [value for _, value in kept.items()] == [1, 3]


def test_what_is_large_makes_room_before_another_is_made() -> None:
    there: list[list[int]] = []
    kept = Kept[int](3, num_bytes=lambda value: value, most_bytes=10)

    def make(value: int) -> int:
        there.append([each for _, each in kept.items()])
        return value

    for value in (2, 3, 4, 20, 1):
        assert kept.get(value, lambda value=value: make(value)) == value
    assert there == [
        [],
        [2],
        [2, 3],
        [4],
        [],
    ]  # 2 + 3 + 4 is more than half, and 4 less; 20 is too large, and stays alone
    assert [each for _, each in kept.items()] == [1]
