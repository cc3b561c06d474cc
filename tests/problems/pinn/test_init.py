from problems import pinn


def test_every_public_name_is_there_and_documented():
    for name in pinn.__all__:
        assert (getattr(pinn, name).__doc__ or "").strip(), name
