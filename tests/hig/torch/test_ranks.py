"""Process ranks: one process alone, and error texts; `test_distributed` has several."""

import pytest
import torch

import hig
from hig._torch.ranks import Communication, ErrorPropagation, Ranks, check_process_group


class Two(Ranks):
    """Two process ranks, of which the other gives the answers of the test."""

    def __init__(self, *answers):
        super().__init__()
        self.size, self._answers = 2, list(answers)

    def _group_device(self):
        return torch.device("cpu")

    def every(self, tensor):
        return [tensor, self._answers.pop(0).to(tensor)]


def text(message):
    return torch.tensor(list(message.encode().ljust(4096, b"\0")), dtype=torch.uint8)


FAILED, WELL = torch.tensor([1]), torch.tensor([0])


@pytest.mark.parametrize("group", ["auto", None])
def test_alone(group):
    ranks, tensor = Ranks(group), torch.ones(2)
    assert (ranks.rank, ranks.size) == (0, 1)
    assert ranks.every(tensor)[0] is tensor
    assert ranks.total(tensor) is tensor and ranks.first(tensor) is tensor
    assert ranks.sum_of(0.5) == 0.5
    assert ranks.first_text("any") == "any"
    with pytest.raises(KeyError), ranks.agreement():
        raise KeyError
    assert ranks.communication == Communication(1)


@pytest.mark.parametrize("name", ["NonFiniteError", "DecompositionError", "SampleDependenceError"])
def test_errors_of_the_package_keep_their_type(name):
    error, ranks = getattr(hig, name), Two(FAILED, text(f"{name}: too: large"))
    with pytest.raises(error, match=r"^on process rank 1: too: large$"), ranks.agreement():
        pass


def test_other_errors_name_the_rank():
    ranks, match = Two(FAILED, text("KeyError: 'x'")), "^process rank 1 failed with KeyError: 'x'"
    with pytest.raises(hig.RankError, match=match), ranks.agreement():
        pass


@pytest.mark.parametrize("answers", [(WELL, text("")), (FAILED, text("OSError: disk"))])
def test_an_own_error_is_raised_as_it_is(answers):
    with pytest.raises(ZeroDivisionError), Two(*answers).agreement():
        raise ZeroDivisionError


def test_a_long_error_is_cut_within_a_letter():
    class Both(Two):
        def every(self, tensor):
            return [tensor, FAILED] if len(tensor) == 1 else [tensor, text("")]

    with pytest.raises(ValueError), Both().agreement():
        raise ValueError("ü" * 5000)


def test_interruptions_are_not_discussed():
    with pytest.raises(KeyboardInterrupt), ErrorPropagation(Two()):  # which has no answer
        raise KeyboardInterrupt


def test_facts_that_differ():
    ranks = Two(torch.tensor([3, 5]))
    with pytest.raises(
        ValueError, match=r"^b must be the same on all process ranks, got 4 on rank 0, 5 "
    ):
        ranks.agree_on({"a": (3, "?"), "b": (4, "make it so")})


def test_a_text_of_the_first_process():
    class Second(Two):
        def every(self, tensor):
            return super().every(tensor)[::-1]

        def first(self, tensor):
            return self._answers.pop(0)[: len(tensor)]

    assert Second(torch.tensor([6]), text("größe"[:4])).first_text("a longer one") == "größ"
    assert Second(torch.tensor([0])).first_text("some") == ""


def test_what_is_no_process_group():
    with pytest.raises(TypeError, match=r"process_group must be .* got 'world'"):
        check_process_group("world")


def test_what_was_exchanged_in_words():
    found = Communication(4, collectives=7, received=1_250_000, seconds=0.0123)
    assert str(found) == "4 processes: 7 exchanges, 1.25 MB, 12.3 ms"
