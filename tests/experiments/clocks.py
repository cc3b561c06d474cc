"""Clocks for tests, which go as the test says: no machine is too busy for them."""


class FakeTime:
    """A reading that moves when somebody sleeps."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class SteppingClock:
    """A training clock of one second per step."""

    def __init__(self, device, kind):
        assert kind == "wall"
        self.seconds = 0.0

    def running(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.seconds += 1.0
