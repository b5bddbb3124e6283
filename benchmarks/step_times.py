"""The simulator's step times against measured ones: a layer's linear part, and all-reduces over a node's links.

`--profiles` is a folder with `layer_times.csv` (gpu, model, hidden, intermediate, heads, kv_heads, vocab,
tensor_parallel, tokens and milliseconds per operation of one layer on one device, without attention) and
`all_reduce.csv` (node, such as h100_dgx; devices, bytes, ms). An error is |simulated / measured - 1|.
`step_time_error` is of layers without all-reduces, `reduced_step_time_error` of layers under tensor parallelism with
both all-reduces as that node measured them.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from baton.engine.model_config import model_config
from baton.harness.report import Goal, Report, arguments
from baton.protocol.errors import ConfigError
from baton.simulator.hardware import ACCELERATORS, accelerator
from baton.simulator.layer_time import ALL_REDUCES, LinearPart, all_reduce_seconds
from baton.simulator.models import BYTES, ModelShape

P50, MAX = Goal(0.12, at_most=True), Goal(0.25, at_most=True)
GOALS = {"step_time_error_p50": P50, "step_time_error_max": MAX}
NO_PART = ("emb_ms",)  # Of a layer
Curves = dict[tuple[str, int], list[tuple[int, float]]]  # (node, devices) → (bytes, seconds), in order


@dataclass(frozen=True, slots=True)
class Layer:
    """A measured layer, and the same one simulated."""

    gpu: str
    devices: int
    hidden_bytes: int  # Of the step's hidden states, which an all-reduce adds up
    measured_s: float
    simulated_s: float
    simulated_reduce_s: float

    @property
    def error(self) -> float:
        return abs(self.simulated_s / self.measured_s - 1)

    def error_with(self, reduce_s: float) -> float:
        """With both all-reduces, each of which took `reduce_s` seconds."""
        simulated_s = self.simulated_s + ALL_REDUCES * self.simulated_reduce_s
        return abs(simulated_s / (self.measured_s + ALL_REDUCES * reduce_s) - 1)


def read_layers(path: Path) -> list[Layer]:
    """The rows of `layer_times.csv`; raises `ConfigError` for a file that is none, and for an unknown GPU."""
    layers = []
    for row in _rows(path, ("gpu", "hidden", "tensor_parallel", "tokens", "mlp_down_proj_ms")):
        hidden, heads = int(row["hidden"]), int(row["heads"])
        shape = model_config(
            {
                "architectures": ["LlamaForCausalLM"],
                "hidden_size": hidden,
                "intermediate_size": int(row["intermediate"]),
                "num_hidden_layers": 1,
                "num_attention_heads": heads,
                "num_key_value_heads": int(row["kv_heads"]),
                "vocab_size": int(row["vocab"]),
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-5,
            }
        )
        part = LinearPart(ModelShape(shape), accelerator(row["gpu"]), int(row["tensor_parallel"]))
        tokens = int(row["tokens"])
        layers.append(
            Layer(
                row["gpu"],
                part.devices,
                BYTES * hidden * tokens,
                sum(float(row[name]) for name in row if name.endswith("_ms") and name not in NO_PART) / 1e3,
                part.layer_seconds(tokens),
                part.all_reduce_seconds(tokens),
            )
        )
    return layers


def read_all_reduces(path: Path) -> Curves:
    """The rows of `all_reduce.csv`; raises `ConfigError` for a file that is none."""
    curves: Curves = defaultdict(list)
    for row in _rows(path, ("node", "devices", "bytes", "ms")):
        curves[row["node"], int(row["devices"])].append((int(row["bytes"]), float(row["ms"]) / 1e3))
    return {key: sorted(points) for key, points in sorted(curves.items())}


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        rows = list(csv.DictReader(path.read_text().splitlines()))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    missing = [name for name in columns if not rows or name not in rows[0]]
    if missing:
        raise ConfigError(f"{path} is no such profile: it has no rows with {', '.join(missing)}.")
    return rows


def reduced_errors(layers: Iterable[Layer], curves: Curves, node: str) -> list[float]:
    """Of the node's layers under tensor parallelism, all-reduces included; interpolated between measured sizes."""
    errors = []
    for layer in layers:
        points = curves.get((node, layer.devices))
        if points is not None and layer.gpu == node.partition("_")[0]:
            sizes, seconds = zip(*points, strict=True)
            errors.append(layer.error_with(float(np.interp(layer.hidden_bytes, sizes, seconds))))
    return errors


def all_reduce_errors(curves: Curves, node: str) -> list[float]:
    """Of the node's all-reduces."""
    gpu = accelerator(node.partition("_")[0])
    return [
        abs(all_reduce_seconds(num_bytes, devices, gpu) / seconds - 1)
        for (name, devices), points in curves.items()
        if name == node
        for num_bytes, seconds in points
    ]


def main() -> None:
    parser = arguments(__doc__, "python -m benchmarks.step_times --profiles profiles")
    parser.add_argument("--profiles", type=Path, required=True, help="a folder with layer_times.csv and all_reduce.csv")
    options = parser.parse_args()
    layers = read_layers(options.profiles / "layer_times.csv")
    curves = read_all_reduces(options.profiles / "all_reduce.csv")
    nodes = [node for node in dict.fromkeys(node for node, _ in curves) if node.partition("_")[0] in ACCELERATORS]
    errors = {"step_time_error": [layer.error for layer in layers]}
    for gpu in dict.fromkeys(layer.gpu for layer in layers):
        errors[f"step_time_error_{gpu}"] = [layer.error for layer in layers if layer.gpu == gpu]
    for node in nodes:
        errors[f"reduced_step_time_error_{node}"] = reduced_errors(layers, curves, node)
        errors[f"all_reduce_error_{node}"] = all_reduce_errors(curves, node)
    report = Report("step_times", GOALS)
    for name, values in errors.items():
        if values:
            report.figures |= {f"{name}_p50": median(values), f"{name}_max": max(values)}
    report.setting = {"rows": len(layers), "nodes": len(nodes)}
    report.publish(options)


if __name__ == "__main__":
    main()
