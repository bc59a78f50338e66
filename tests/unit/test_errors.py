import copy
import pickle

import pytest

from slimtts.errors import InvalidInputError, MissingToolError, SlimttsError

ERRORS = [
    InvalidInputError("utterance 'u1'", "0.1 s", "at least 0.2 s", "cut it anew"),
    MissingToolError("flite", "speaks the corpus", "apt-get install flite"),
]


def test_the_message_has_all_four_parts() -> None:
    assert str(ERRORS[0]) == "utterance 'u1': observed 0.1 s; allowed: at least 0.2 s; next: cut it anew"
    assert str(ERRORS[1]) == "flite: observed not installed (speaks the corpus); next: apt-get install flite"
    assert all(isinstance(error, SlimttsError) for error in ERRORS)


def test_the_message_is_one_line_whatever_was_observed() -> None:
    message = str(InvalidInputError("file\nname", "first\r\nsecond\u2028third", "a\nb", "c\nd"))
    assert len(message.splitlines()) == 1
    assert "first second third" in message


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_travel_between_processes(error: SlimttsError) -> None:
    """Orchestrators and process pools copy exceptions by their arguments."""
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301
        assert type(twin) is type(error) and str(twin) == str(error) and vars(twin) == vars(error)
