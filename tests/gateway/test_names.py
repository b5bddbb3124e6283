"""The ids and tenants that clients choose."""

from __future__ import annotations

import pytest

from baton.gateway.intake import check_names
from baton.protocol.errors import InvalidRequest


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "\x00", "x" * 257, "é" * 129])
def test_a_name_that_is_too_long_or_would_change_the_look_of_a_log_is_refused(name: str) -> None:
    for request_id, tenant in ((name, ""), ("", name)):
        with pytest.raises(InvalidRequest, match="at most 256 bytes and no control characters"):
            check_names(request_id, tenant)


@pytest.mark.parametrize("name", ["", "r-1", "équipe rouge", "x" * 256])
def test_other_names_are_accepted(name: str) -> None:
    check_names(name, name)
