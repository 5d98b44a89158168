"""Arbitrary values of stored attributes."""

from __future__ import annotations

from hypothesis import strategies as st

HOSTILE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.integers(-2, 9)
    | st.floats(allow_nan=True)
    | st.text(max_size=20)
    | st.sampled_from(["x" * 200_000, "trunk", "../../etc"]),
    lambda part: (
        st.lists(part, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "sha256", "best_epoch", "value", "a"]), part, max_size=4
        )
    ),
    max_leaves=6,
)
"""Arbitrary JSON values, which include those that are likely to cause errors."""
