from problems import multitask


def test_every_public_name_is_there_and_documented():
    for name in multitask.__all__:
        assert (getattr(multitask, name).__doc__ or "").strip(), name
