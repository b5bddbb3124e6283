"""Every parser of bytes that come from outside."""

from __future__ import annotations

from tests.fuzz.conversation_targets import CONVERSATION_TARGETS
from tests.fuzz.file_targets import FILE_TARGETS
from tests.fuzz.http_targets import HTTP_TARGETS
from tests.fuzz.message_targets import MESSAGE_TARGETS

TARGETS = [*MESSAGE_TARGETS, *CONVERSATION_TARGETS, *HTTP_TARGETS, *FILE_TARGETS]
