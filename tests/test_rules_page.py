"""docs/rules.md says what the code does."""

from tests.rules_page import PAGE, page


def test_the_page_of_rules_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run `python -m tests.rules_page`"
