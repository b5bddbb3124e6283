"""Paged attention with FlashInfer's kernels, planned once per step and run per layer.

A layer's pages are a strided view `[pages, 2, page_size, kv_heads, head_dim]` ("NHD") of pages with heads outermost:
the kernels and `append_paged_kv_cache` read the strides of page, position and head from the tensor; K and V have the
same ones, and the last dimension is contiguous. A step's decodes go to the decode kernel, on tensor cores where four or
more query heads share a KV head; its chunks go to the prefill kernel, causal and aligned to the end of their keys.

`plan` takes host arrays from host memory: reading an indptr back from the device would wait for the device.
"""

from __future__ import annotations

from typing import Any

import torch

from baton.engine.attention.backend import BatchLayout
from baton.engine.attention.device_backend import DeviceBackend, Recording
from baton.engine.attention.plan_metadata import PlanMetadata, plan_metadata, workspace_bytes
from baton.engine.staging import GrowingStagingBuffer
from baton.protocol.errors import ConfigError
from baton.protocol.worker import PageLayout

VERSION = "0.6.6"  # The FlashInfer whose calls and kernel names are used here; pyproject.toml requires the same.
KERNEL_DTYPES = (torch.float16, torch.bfloat16)
HEAD_DIMS = (64, 128, 256)
TENSOR_CORE_GROUP = 4
DECODE_KERNELS = "fa2"
_CPU_SMS = 1
_GRAPH_INTS_BYTES = 1 << 20  # For the plan of a captured decode step: some 20 bytes per sequence.


def has_kernels(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether FlashInfer has attention kernels for pages of this element type and head dimension."""
    return dtype in KERNEL_DTYPES and head_dim in HEAD_DIMS


def load_flashinfer() -> Any:
    """The library; raises `ConfigError`, with the command to install it, when it is missing or of another version."""
    try:
        import flashinfer
    except ImportError as error:
        raise ConfigError(
            f"Serving on a GPU needs FlashInfer, which cannot be imported ({error}): "
            "pip install '.[cuda]' in Baton's checkout."
        ) from None
    if flashinfer.__version__ != VERSION:
        raise ConfigError(
            f"FlashInfer {flashinfer.__version__} is installed, but only {VERSION} is supported by Baton: "
            f"pip install 'flashinfer-python=={VERSION}'."
        )
    return flashinfer


class FlashInferAttention:
    """`AttentionBackend` for pages `[num_pages, kv_heads, num_layers, 2, page_size, head_dim]` of 16-bit elements.

    `kernels` names the prefill kernels: "fa2", or "fa3" (Hopper only). Decode on tensor cores uses fa2's prefill
    kernel, else a decode kernel. `max_batch` bounds the number of sequences that decode.
    """

    def __init__(self, pages: torch.Tensor, num_heads: int, kernels: str = "fa2", max_batch: int = 256) -> None:
        library = self.library = load_flashinfer()
        _, self._kv_heads, num_layers, _, self._page_size, self._head_dim = pages.shape
        self._num_heads = num_heads
        self._dtype = pages.dtype
        self.device = pages.device
        self._layers = [pages[:, :, layer].permute(0, 2, 3, 1, 4) for layer in range(num_layers)]
        self.tensor_cores = num_heads // self._kv_heads >= TENSOR_CORE_GROUP
        num_bytes = workspace_bytes(max_batch, num_heads, self._kv_heads, self._head_dim, _multiprocessors(self.device))
        # All wrappers share one, because their kernels run one after the other. FlashInfer requires zeros at first.
        self.workspace = torch.zeros(num_bytes, dtype=torch.uint8, device=self.device)
        self._decode = library.BatchDecodeWithPagedKVCacheWrapper(
            self.workspace, "NHD", use_tensor_cores=self.tensor_cores, backend=DECODE_KERNELS
        )
        self._decode_planned = False  # The first plan chooses the kernels.
        self._prefill = library.BatchPrefillWithPagedKVCacheWrapper(self.workspace, "NHD", backend=kernels)
        self._staging = GrowingStagingBuffer(self.device)

    @property
    def shape(self) -> dict[str, Any]:
        """The arguments of every decode plan that describe the model and its pages."""
        return {
            "num_qo_heads": self._num_heads,
            "num_kv_heads": self._kv_heads,
            "head_dim": self._head_dim,
            "page_size": self._page_size,
            "q_data_type": self._dtype,
            "kv_data_type": self._dtype,
        }

    def plan(self, layout: BatchLayout) -> None:
        """Prepare a step; the previous step must have ended on the device."""
        host, device = self._staging.put(plan_metadata(layout).tensors)
        self.plan_staged(layout, PlanMetadata.of(host), PlanMetadata.of(device))

    def plan_staged(self, layout: BatchLayout, host: PlanMetadata, device: PlanMetadata) -> None:
        """As `plan`, for metadata in pinned memory of which the copy to the device has been queued."""
        num_decodes = layout.num_decodes
        self._metadata, self._num_decodes = device, num_decodes
        self._num_chunks = len(host.last_page_len) - num_decodes
        num_pages = int(host.indptr[num_decodes])
        if num_decodes:
            self._plan_decodes(host, device, num_decodes, device.indices[:num_pages])
        if self._num_chunks:
            self._prefill.plan(
                qo_indptr=host.prefill_qo_indptr,
                paged_kv_indptr=host.prefill_indptr,
                paged_kv_indices=device.indices[num_pages:],
                paged_kv_last_page_len=host.last_page_len[num_decodes:],
                num_qo_heads=self._num_heads,
                num_kv_heads=self._kv_heads,
                head_dim_qk=self._head_dim,
                page_size=self._page_size,
                causal=True,
                q_data_type=self._dtype,
                kv_data_type=self._dtype,
            )

    def _plan_decodes(self, host: PlanMetadata, device: PlanMetadata, count: int, indices: torch.Tensor) -> None:
        indptr, last_page_len = host.indptr[: count + 1], host.last_page_len[:count]
        if not self._decode_planned:
            self._decode.plan(indptr=indptr, indices=indices, last_page_len=last_page_len, **self.shape)
            self._decode_planned = True
            return
        # `plan` would iterate over the lengths in Python, 2 µs each, and copy arrays that are on the device already.
        self.library.fast_decode_plan(
            self._decode,
            indptr=device.indptr[: count + 1],
            indices=indices,
            last_page_len=last_page_len,
            global_override_indptr_cpu=indptr,
            **self.shape,
        )
        # It plans with the host's lengths and leaves them to the kernel, which must read those on the device.
        self._decode._paged_kv_last_page_len_buf = device.last_page_len[:count]

    def run(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        pages = self.append(layer, k, v, self._metadata)
        out = q.new_empty(q.shape)
        decodes = self._num_decodes
        if decodes:
            self._decode.run(q[:decodes], pages, out=out[:decodes])
        if self._num_chunks:
            self._prefill.run(q[decodes:], pages, out=out[decodes:])
        return out

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor, device: PlanMetadata) -> torch.Tensor:
        """Write a layer's new keys and values into its pages; returns their view."""
        pages = self._layers[layer]
        self.library.append_paged_kv_cache(
            append_key=k,
            append_value=v,
            batch_indices=device.batch_indices,
            positions=device.positions,
            paged_kv_cache=pages,
            kv_indices=device.indices,
            kv_indptr=device.indptr,
            kv_last_page_len=device.last_page_len,
            kv_layout="NHD",
        )
        return pages


class GraphDecodeAttention:
    """`LayerAttention` of one captured decode step, which reads fixed device addresses.

    `device` are views of a buffer that is rewritten before each replay; `device.indices` has the maximum length.
    """

    def __init__(self, attention: FlashInferAttention, device: PlanMetadata, ints: torch.Tensor) -> None:
        """`ints` is device memory for FlashInfer's plan, shared by all captured steps (`graph_ints`)."""
        self._attention = attention
        self._device = device
        self._wrapper = attention.library.BatchDecodeWithPagedKVCacheWrapper(
            attention.workspace,
            "NHD",
            use_cuda_graph=True,
            use_tensor_cores=attention.tensor_cores,
            paged_kv_indptr_buffer=device.indptr,
            paged_kv_indices_buffer=device.indices,
            paged_kv_last_page_len_buffer=device.last_page_len,
            backend=DECODE_KERNELS,
        )
        self._wrapper.reset_workspace_buffer(attention.workspace, ints)
        self._planned = False

    def plan_staged(self, host: PlanMetadata) -> None:
        """Plan a replay; the copy of `host` to the buffer behind `device` has been queued before."""
        step = {"indptr": host.indptr, "last_page_len": host.last_page_len, **self._attention.shape}
        if self._planned:
            # This variant does not copy into the wrapper's buffers, which are already written.
            self._attention.library.fast_decode_plan(
                self._wrapper,
                indices=self._device.indices[: len(host.indices)],
                global_override_indptr_cpu=host.indptr,
                **step,
            )
        else:
            self._wrapper.plan(indices=host.indices, **step)
            self._planned = True

    def run(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        pages = self._attention.append(layer, k, v, self._device)
        out = q.new_empty(q.shape)
        self._wrapper.run(q, pages, out=out)
        return out


def graph_ints(device: torch.device) -> torch.Tensor:
    """Device memory for the plans of captured steps, which are replayed one after the other."""
    return torch.empty(_GRAPH_INTS_BYTES, dtype=torch.uint8, device=device)


def recording(attention: FlashInferAttention) -> Recording:
    """Records decode steps of this attention; they share the memory of their plans."""
    ints = graph_ints(attention.device)
    return lambda places: GraphDecodeAttention(attention, places, ints)


def workspace_bytes_on(device: torch.device, max_batch: int, num_heads: int, layout: PageLayout) -> int:
    """What a `FlashInferAttention` will take for its workspace."""
    sms = _multiprocessors(device)
    return workspace_bytes(max_batch, num_heads, layout.num_kv_heads, layout.head_dim, sms)


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else _CPU_SMS


BACKEND = DeviceBackend(has_kernels, workspace_bytes_on, FlashInferAttention, recording)
