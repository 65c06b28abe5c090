"""Every way we could think of to deceive the verifier, each with the code that must name it.

`test_verifier` walks the list; the mutation test shows with it that no check can be deleted unnoticed.
"""

from typing import Final

from tests import attacks_chain, attacks_collateral, attacks_pem, attacks_quote
from tests.attack_table import TABLE, Attack

WRITTEN_IN: Final = (attacks_quote, attacks_pem, attacks_chain, attacks_collateral)
"""Importing a module is what enters its attacks into the table."""

ATTACKS: list[Attack] = list(TABLE.values())
