"""As many threads as pay: the choice with clocks of its own, and what it leaves behind."""

import pytest
import torch

import hig
from hig._torch import threads as threads_module
from hig._torch.threads import FittingThreads, fitting_threads
from tests.hig.networks import build, least_squares


class Machine:
    """A clock, a count of interruptions and the speed of threads, all set by the test."""

    def __init__(self, **seconds):
        self.now, self.switches, self.measured = 0.0, 0, []
        self.seconds = {int(name[1:]): value for name, value in seconds.items()}
        self.fitting = FittingThreads(lambda: self.switches, lambda: self.now, self._measure)

    def _measure(self, threads):
        self.measured.append(threads)
        return self.seconds[threads]

    def after(self, seconds, rate, most=4):
        self.now += seconds
        self.switches += int(rate * seconds)
        return self.fitting.choose(most)


def test_a_quiet_machine_is_not_measured():
    machine = Machine()
    assert [machine.after(1.0, rate=5) for _ in range(10)] == [4] * 10
    assert not machine.measured


def test_next_to_busy_processes_the_fastest_number_is_taken():
    machine = Machine(t4=7e-3, t2=9e-4, t1=4e-4)
    assert machine.after(0.5, rate=100) == 1
    assert machine.measured == [4, 2, 1]
    machine = Machine(t4=7e-3, t2=2e-4, t1=4e-4)  # half of the cores are free
    assert machine.after(0.5, rate=100) == 2


def test_interruptions_that_cost_nothing_change_nothing():
    machine = Machine(t4=1e-4, t2=1.2e-4, t1=2e-4)
    assert machine.after(0.5, rate=100) == 4


def test_a_short_time_says_nothing_about_a_rate():
    machine = Machine(t4=7e-3, t2=9e-4, t1=4e-4)
    machine.switches = 1
    assert machine.after(0.001, rate=0) == 4
    assert not machine.measured


def test_measurements_become_rare_while_others_are_busy():
    machine = Machine(t4=7e-3, t2=9e-4, t1=4e-4)
    assert {machine.after(0.1, rate=100) for _ in range(1000)} == {1}  # 100 s
    assert len(machine.measured) == 3 * 7  # after 0, 1, 3, 7, 15, 31, 63 s


def test_all_threads_come_back_when_the_others_are_gone():
    machine = Machine(t4=7e-3, t2=9e-4, t1=4e-4)
    assert machine.after(0.1, rate=100) == 1
    chosen = [machine.after(0.1, rate=0) for _ in range(40)]
    assert chosen[0] == 1 and chosen[-1] == 4
    assert machine.after(0.1, rate=100) == 1


def test_never_more_threads_than_there_are():
    machine = Machine(t4=7e-3, t2=2e-4, t1=4e-4, t3=9e-3)
    assert machine.after(0.5, rate=100) == 2
    assert machine.after(0.1, rate=100, most=1) == 1


@pytest.fixture
def contended(monkeypatch):
    """Two threads, of which one pays."""

    class Chosen:
        def choose(self, most):
            return 1

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(threads_module, "_DEFAULT", 2)
    monkeypatch.setattr(threads_module, "_FITTING", Chosen())
    yield
    torch.set_num_threads(before)


def test_the_number_is_put_back_after_an_error_too(contended):
    with pytest.raises(KeyError), fitting_threads():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 2


def test_steps_run_on_the_chosen_number(contended):
    network, inputs = build("mlp")
    closure, seen = least_squares(network, inputs), []

    def watched():
        seen.append(torch.get_num_threads())
        return closure()

    hig.HIG(network.parameters()).step(watched)
    hig.KroneckerHIG(network.parameters()).step(watched)
    hig.diagnose(network.parameters(), watched)
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2


def test_a_number_that_the_user_has_set_is_left_alone(contended, monkeypatch):
    monkeypatch.setattr(threads_module, "_DEFAULT", 4)
    with fitting_threads():
        assert torch.get_num_threads() == 2


def test_a_product_is_measured_and_the_number_put_back():
    before = torch.get_num_threads()
    assert 0 < threads_module._measure(2) < 60
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", threads_module.DECIDED_BY)
def test_the_environment_decides(name):
    assert threads_module._make_chooser({name: "1"}) is None
    if threads_module.resource is not None:
        assert isinstance(threads_module._make_chooser({"PATH": "/bin"}), FittingThreads)
