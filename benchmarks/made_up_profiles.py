"""Small synthetic profiles of step times, for runs that only check that everything works."""

from __future__ import annotations

from pathlib import Path

LAYERS = """gpu,hidden,intermediate,heads,kv_heads,vocab,tensor_parallel,tokens,emb_ms,mlp_down_proj_ms,add_ms
h100,4096,14336,32,8,128256,1,16,9.0,0.180,0.002
h100,4096,14336,32,8,128256,2,512,9.0,0.150,0.004
"""
ALL_REDUCES = """node,devices,bytes,ms
h100_dgx,2,1048576,0.025
h100_dgx,2,8388608,0.045
"""


def write_profiles(folder: Path) -> Path:
    """Write `layer_times.csv` and `all_reduce.csv` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "layer_times.csv").write_text(LAYERS)
    (folder / "all_reduce.csv").write_text(ALL_REDUCES)
    return folder
