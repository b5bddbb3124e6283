"""The FlashInfer functions that Baton calls, computed in float64 on the device of the tensors: slow but simple.

Names, order and meaning of the arguments are FlashInfer 0.6.6's (test_flashinfer_calls.py compares them). Arguments
that Baton passes by position are positional here, all others keywords. Strides and element types are checked as its
kernels check them.
"""

from __future__ import annotations

import torch

__version__ = "0.6.6"


def append_paged_kv_cache(
    *,
    append_key: torch.Tensor,
    append_value: torch.Tensor,
    batch_indices: torch.Tensor,
    positions: torch.Tensor,
    paged_kv_cache: torch.Tensor,
    kv_indices: torch.Tensor,
    kv_indptr: torch.Tensor,
    kv_last_page_len: torch.Tensor,
    kv_layout: str = "NHD",
) -> None:
    k_pages, v_pages = _pages(paged_kv_cache, kv_layout)
    _check_ints(batch_indices, positions, kv_indices, kv_indptr, kv_last_page_len)
    assert append_key.stride(-1) == append_value.stride(-1) == 1
    assert len(kv_indptr) == len(kv_last_page_len) + 1
    assert len(batch_indices) == len(positions) == len(append_key)
    page_size = k_pages.shape[1]
    pages = kv_indices[kv_indptr[batch_indices] + positions // page_size]
    k_pages[pages, positions % page_size] = append_key
    v_pages[pages, positions % page_size] = append_value


class BatchDecodeWithPagedKVCacheWrapper:
    """One query per sequence."""

    def __init__(
        self,
        float_workspace_buffer: torch.Tensor,
        kv_layout: str = "NHD",
        *,
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
        paged_kv_indptr_buffer: torch.Tensor | None = None,
        paged_kv_indices_buffer: torch.Tensor | None = None,
        paged_kv_last_page_len_buffer: torch.Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        assert backend == "fa2", "auto may become other kernels than those that were compiled"
        assert float_workspace_buffer.dtype == torch.uint8
        self._device = float_workspace_buffer.device
        self._layout, self._fixed, self._planned = kv_layout, use_cuda_graph, False
        self._paged_kv_indptr_buf = paged_kv_indptr_buffer
        self._paged_kv_indices_buf = paged_kv_indices_buffer
        self._paged_kv_last_page_len_buf = paged_kv_last_page_len_buffer
        assert not use_cuda_graph or len(self._buffers) == 3

    @property
    def _buffers(self) -> tuple[torch.Tensor, ...]:
        """The arrays that the kernel reads."""
        buffers = (self._paged_kv_indptr_buf, self._paged_kv_indices_buf, self._paged_kv_last_page_len_buf)
        return tuple(buffer for buffer in buffers if buffer is not None)

    def _set_buffers(self, indptr: torch.Tensor, indices: torch.Tensor, last_page_len: torch.Tensor) -> None:
        self._paged_kv_indptr_buf = indptr
        self._paged_kv_indices_buf = indices
        self._paged_kv_last_page_len_buf = last_page_len

    def reset_workspace_buffer(self, float_workspace_buffer: torch.Tensor, int_workspace_buffer: torch.Tensor) -> None:
        assert float_workspace_buffer.dtype == int_workspace_buffer.dtype == torch.uint8

    def plan(
        self,
        *,
        indptr: torch.Tensor,
        indices: torch.Tensor,
        last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
    ) -> None:
        _check_ints(indptr, indices, last_page_len)
        assert int(indptr[0]) == 0
        assert len(indices) == int(indptr[-1])
        assert num_qo_heads % num_kv_heads == 0
        if self._fixed:
            for buffer, values in zip(self._buffers, (indptr, indices, last_page_len), strict=True):
                buffer[: len(values)] = values
        else:
            self._set_buffers(indptr.to(self._device), indices, last_page_len.to(self._device))
        self._planned = True

    def run(self, q: torch.Tensor, paged_kv_cache: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        assert self._planned
        qo_indptr = torch.arange(len(q) + 1)
        assert len(self._buffers[2]) == len(q)
        _attend(q, paged_kv_cache, self._layout, qo_indptr, self._buffers, out)
        return out


def fast_decode_plan(
    self: BatchDecodeWithPagedKVCacheWrapper,
    *,
    indptr: torch.Tensor,
    indices: torch.Tensor,
    last_page_len: torch.Tensor,
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    q_data_type: torch.dtype,
    kv_data_type: torch.dtype,
    global_override_indptr_cpu: torch.Tensor,
) -> None:
    """In a captured step it leaves the wrapper's buffers alone: they hold the step's arrays already. In any other it
    takes the arrays as they are, though it reads `last_page_len` on the host.
    """
    assert self._planned, "the kernels are chosen by the first, full plan"
    assert torch.equal(global_override_indptr_cpu, indptr.cpu())
    if not self._fixed:
        self._set_buffers(indptr, indices, last_page_len.cpu())
        return
    for buffer, values in zip(self._buffers, (indptr, indices, last_page_len), strict=True):
        assert torch.equal(buffer[: len(values)], values)


class BatchPrefillWithPagedKVCacheWrapper:
    """Several queries per sequence, at the last positions of its keys."""

    def __init__(self, float_workspace_buffer: torch.Tensor, kv_layout: str = "NHD", *, backend: str = "auto") -> None:
        assert float_workspace_buffer.dtype == torch.uint8
        assert backend in ("fa2", "fa3")
        self._layout = kv_layout

    def plan(
        self,
        *,
        qo_indptr: torch.Tensor,
        paged_kv_indptr: torch.Tensor,
        paged_kv_indices: torch.Tensor,
        paged_kv_last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        causal: bool,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
    ) -> None:
        _check_ints(qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        assert causal
        assert int(qo_indptr[0]) == int(paged_kv_indptr[0]) == 0
        assert len(paged_kv_indices) == int(paged_kv_indptr[-1])
        self._qo_indptr = qo_indptr
        self._buffers = (paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)

    def run(self, q: torch.Tensor, paged_kv_cache: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        assert len(q) == int(self._qo_indptr[-1])
        _attend(q, paged_kv_cache, self._layout, self._qo_indptr, self._buffers, out)
        return out


def rmsnorm(input: torch.Tensor, weight: torch.Tensor, eps: float, *, out: torch.Tensor) -> torch.Tensor:
    assert input.dim() in (2, 3)
    assert len(input), "a grid of no blocks cannot be launched"
    out.copy_(_norm(input, weight, eps))
    return out


def fused_add_rmsnorm(input: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    assert input.dim() == residual.dim() == 2
    assert input.stride(-1) == residual.stride(-1) == 1
    residual.add_(input)
    input.copy_(_norm(residual, weight, eps))


def silu_and_mul(input: torch.Tensor) -> torch.Tensor:
    assert input.is_contiguous()
    assert input.shape[-1] * input.element_size() % 16 == 0
    gate, up = input.double().chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(input.dtype)


def apply_rope_with_cos_sin_cache_inplace(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    head_size: int,
    cos_sin_cache: torch.Tensor,
    *,
    is_neox: bool,
) -> None:
    assert is_neox
    assert cos_sin_cache.dtype == torch.float32
    assert cos_sin_cache.is_contiguous()
    assert positions.is_contiguous()
    half = head_size // 2
    cos, sin = (part.double().unsqueeze(1) for part in cos_sin_cache[positions].split(half, dim=-1))
    for part in (query, key):
        heads = part.view(part.shape[0], -1, head_size)  # fails, as FlashInfer does, where strides do not allow it
        first, second = heads[..., :half].double(), heads[..., half:].double()
        heads[..., :half] = (first * cos - second * sin).to(part.dtype)
        heads[..., half:] = (second * cos + first * sin).to(part.dtype)


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x64 = x.double()
    return (x64 * (x64.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.double()).to(x.dtype)


def _pages(cache: torch.Tensor, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V, indexed by page, position and head as `paged_kv_t` (page.cuh) and fa3's sparse_mainloop.cuh do: through
    any strides, which are 32-bit numbers, equal for K and V, and a multiple of the 16 bytes that a thread copies.
    """
    assert layout == "NHD"
    assert cache.dim() == 5
    k, v = cache.unbind(dim=1)
    assert k.stride() == v.stride()
    assert k.stride(-1) == 1
    for part in (k, v):
        assert all(0 < stride < 1 << 32 for stride in part.stride())
        assert all(stride * part.element_size() % 16 == 0 for stride in part.stride()[:-1])
        assert part.storage_offset() * part.element_size() % 16 == 0
    return k, v


def _check_ints(*arrays: torch.Tensor) -> None:
    for array in arrays:
        assert array.dtype == torch.int32
        assert array.is_contiguous()


def _attend(
    q: torch.Tensor,
    cache: torch.Tensor,
    layout: str,
    qo_indptr: torch.Tensor,
    tables: tuple[torch.Tensor, ...],
    out: torch.Tensor,
) -> None:
    k_pages, v_pages = _pages(cache, layout)
    indptr, indices, last_page_len = tables
    page_size = k_pages.shape[1]
    group = q.shape[1] // k_pages.shape[2]
    for index in range(len(qo_indptr) - 1):
        rows = slice(int(qo_indptr[index]), int(qo_indptr[index + 1]))
        pages = indices[int(indptr[index]) : int(indptr[index + 1])]
        length = (len(pages) - 1) * page_size + int(last_page_len[index])
        keys = k_pages[pages].flatten(0, 1)[:length].double().repeat_interleave(group, dim=1)
        values = v_pages[pages].flatten(0, 1)[:length].double().repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q[rows].double(), keys) / q.shape[-1] ** 0.5
        count = scores.shape[1]
        past = torch.arange(length) <= torch.arange(length - count, length).unsqueeze(1)
        weights = scores.masked_fill(~past.to(scores.device), float("-inf")).softmax(dim=-1)
        out[rows] = torch.einsum("hqk,khd->qhd", weights, values).to(out.dtype)
