"""The public surface of ``hig.conflictfree``."""

import hig.conflictfree


def test_every_public_name_is_there_and_documented():
    for name in hig.conflictfree.__all__:
        assert (getattr(hig.conflictfree, name).__doc__ or "").strip(), name
