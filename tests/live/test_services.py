"""The standard gRPC services and the small calls beside Generate."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.live.conftest import CONTEXT_TOKENS, Live

pytestmark = pytest.mark.ray


def test_health_is_served_beside_each_service(split: Live) -> None:
    for address, service in ((split.address, "baton.v1.Inference"), (split.admin_address, "baton.v1.Admin")):
        with grpc.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for name in ("", service):
                answer = stub.Check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_each_service_at_its_own_address_only(split: Live) -> None:
    services = []
    for address in (split.address, split.admin_address):
        with grpc.insecure_channel(address) as channel:
            services.append(set(ProtoReflectionDescriptorDatabase(channel).get_services()))
    beside = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert services == [{"baton.v1.Inference", *beside}, {"baton.v1.Admin", *beside}]


def test_the_model_can_be_described_and_its_tokenizer_called(split: Live) -> None:
    with split.client() as client:
        model = client.model()
        ids = client.tokenize("a b")
        answer = client.generate("a b", max_tokens=2, ignore_eos=True)
    assert (model.name, model.context_tokens, model.dtype) == ("test", CONTEXT_TOKENS, "float32")
    assert model.architecture == "LlamaForCausalLM"
    assert len(ids) == 3
    assert answer.prompt_tokens == 3


def test_the_cluster_shows_its_pools_and_workers(split: Live) -> None:
    cluster = split.wait_idle()
    assert [(pool.role, [worker.name for worker in pool.workers]) for pool in cluster.pools] == [
        ("prefill", ["prefill-0"]),
        ("decode", ["decode-0"]),
    ]
    for pool in cluster.pools:
        for worker in pool.workers:
            assert worker.pages_total == worker.pages_free + worker.pages_cached == 400
    assert len({worker.pid for pool in cluster.pools for worker in pool.workers}) == 2
    assert cluster.settings["page_size"] == "16"


def test_log_probabilities_come_with_every_token(split: Live) -> None:
    with split.client() as client:
        answer = client.generate([9, 8, 7], max_tokens=6, logprobs=4, ignore_eos=True)
    for token in answer.tokens:
        assert token.logprob is not None
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 4
        assert token.top_logprobs[0] == (token.id, token.logprob)
