"""Element type and page checksums of page storage."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch

from baton.protocol.errors import ConfigError
from baton.protocol.worker import PageLayout

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def page_dtype(layout: PageLayout, parameters: dict[str, torch.Tensor]) -> torch.dtype:
    """The pages' element type; raises `ConfigError` when it is not the weights' type."""
    dtype = parameters["embed"].dtype
    if DTYPES.get(layout.dtype) is not dtype:
        raise ConfigError(f"The pages are {layout.dtype}, the weights {dtype}: they must be the same.")
    return dtype


def head_checksums(pages: torch.Tensor, page: int) -> list[int]:
    """CRC-32 of each KV head's bytes of a page, over all layers."""
    return [zlib.crc32(head.data) for head in pages[page].view(torch.uint8).cpu().numpy()]


def page_checksum(heads: Iterable[int]) -> int:
    """CRC-32 of a page from those of all KV heads, in order: the same however they are divided among ranks."""
    return zlib.crc32(b"".join(value.to_bytes(4, "little") for value in heads))
