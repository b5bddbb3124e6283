"""The live tests' Ray and checkpoint serve here too."""

from tests.live.conftest import checkpoint, ray_head

__all__ = ["checkpoint", "ray_head"]
