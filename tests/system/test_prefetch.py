import time

import pytest

from graft.system.prefetch import prefetch, processors


def test_results_come_in_order_however_long_each_takes():
    def slow_first(i):
        time.sleep(0.05 * (i == 0))
        return i * i

    assert list(prefetch(slow_first, range(20), workers=4, depth=8)) == [i * i for i in range(20)]
    assert list(prefetch(slow_first, [], workers=2, depth=2)) == []
    assert processors() >= 1


def test_it_stays_no_further_ahead_than_told():
    taken = 0

    def items():
        nonlocal taken
        for i in range(1000):
            taken += 1
            yield i

    results = prefetch(str, items(), workers=2, depth=5)
    assert [next(results) for _ in range(3)] == ["0", "1", "2"]
    assert taken <= 3 + 5
    results.close()
    assert taken <= 3 + 5


def test_an_error_comes_where_its_result_would_have():
    def fails_at_three(i):
        if i == 3:
            raise ValueError("three")
        return i

    results = prefetch(fails_at_three, range(10), workers=2, depth=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
