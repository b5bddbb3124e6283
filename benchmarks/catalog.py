"""Every benchmark and reliability run: its full run, its promised figures and their directions, the code it measures.

Pure. A run of any size gives each promised figure. `python -m benchmarks.all` and the tests run what is listed here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

MOONCAKE, AZURE = "mooncake_conversation.jsonl", "azure_2023_conversation.csv"
PROFILES = "profiles"  # A folder
RECORDINGS = {MOONCAKE: "--trace", AZURE: "--trace", PROFILES: "--profiles"}  # With the flag that takes each
ROUTER = "baton/gateway router baton/links baton/protocol baton/config benchmarks/router_measures.py"
ENGINE = "baton/engine decode_worker baton/protocol"
CLUSTER = "router prefill_worker decode_worker kv_transfer baton"
SIMULATED = "baton/simulator router baton/protocol"
MOCKS = "benchmarks/router_sides.py benchmarks/stream_clients.py benchmarks/mock_baton.py"
POLICIES = "cache_aware,conductor,kv_router,latency_headroom,least_loaded,power_of_two,predicted_latency"
POLICIES += ",predicted_latency_no_refusals,random,round_robin"
LENGTH_ERRORS = "mae_ratio_to_median mae_tokens miss_of_p90 prediction_us"
LENGTHS = "mae_tokens_of_median coverage_p{50,75,90}"


@dataclass(frozen=True)
class Benchmark:
    """One run, or a second setting of a run that is published under a name of its own.

    Figures are words; {a,b} stands for both a and b. A word with * stands for figures that some runs have; all others
    are promised.
    """

    name: str
    title: str
    paths: str  # of the code whose changes outdate its figures
    higher: str = ""  # figures that should be high
    lower: str = ""
    neutral: str = ""  # figures that are neither better nor worse
    arguments: str = ""  # of the full run
    module: str = ""  # benchmarks.NAME when not given
    own_test: str = ""  # the test that runs it, if the smoke test of all does not

    @property
    def module_name(self) -> str:
        return self.module or f"benchmarks.{self.name}"

    @cached_property
    def promised(self) -> tuple[str, ...]:
        """The figures that every run has."""
        named = expand(f"{self.higher} {self.lower} {self.neutral}")
        return tuple(name for name in named if "*" not in name)

    @property
    def recording(self) -> str | None:
        """The recorded data that it reads, or None."""
        return next((word for word in self.arguments.split() if word in RECORDINGS), None)

    @property
    def code_paths(self) -> tuple[str, ...]:
        return (f"{self.module_name.replace('.', '/')}.py", *self.paths.split())

    def direction(self, figure: str) -> str | None:
        """Which way a figure is better, "higher" or "lower"; None for a neutral or unknown figure."""
        ways = [
            (way, expand(text)) for way, text in (("", self.neutral), ("lower", self.lower), ("higher", self.higher))
        ]
        named = [way for way, names in ways if figure in names]
        matching = [way for way, names in ways if any(fnmatchcase(figure, name) for name in names)]
        return next(iter((*named, *matching)), "") or None


def expand(text: str) -> tuple[str, ...]:
    """The words of a text, with {a,b} expanded to both alternatives."""
    found: list[str] = []
    for word in text.split():
        choice = re.search(r"\{([^}]*)\}", word)
        if choice is None:
            found.append(word)
        else:
            ways = (word[: choice.start()] + way + word[choice.end() :] for way in choice[1].split(","))
            found += [one for way in ways for one in expand(way)]
    return tuple(found)


BENCHMARKS = (
    Benchmark(
        "engine",
        "the engine against transformers and vLLM",
        f"{ENGINE} benchmarks/engine_peers.py benchmarks/vllm_side.py benchmarks/vllm_peer.py",
        higher="ratio_to_{generate_batch,static_generate} prefill_ratio_to_matmul decode_ratio_to_linear tokens_per_s "
        "{generate_batch,static_generate}_tokens_per_s ratio_to_* *tokens_per_s *tokens_per_s_* answers_equal_to_*",
        lower="ttft_ms tpot_ms",
    ),
    Benchmark(
        "step_host",
        "a decode step without its computation",
        f"{ENGINE} baton/worker",
        lower="{host_ms_before_launch,host_ms_after,plan_ms,flat_batch_ms,staging_ms,absorb_ms,report_ms}_"
        "{b1_1k,b16_1k,b64_1k,b256_1k,b64_4k,b256_4k}",
    ),
    Benchmark(
        "handoff",
        "the handoff against raw NIXL",
        "kv_transfer prefill_worker decode_worker baton/worker",
        higher="ratio_to_raw_nixl {path_gb_per_s,ratio_to_raw_nixl,ratio_to_memcpy}_{1,16,64}_mib path_* ratio_to_*",
        lower="stall_ratio stall_ms descriptors_per_gb descriptors_per_gb_{1_to_2,2_to_1,4_to_1}",
    ),
    Benchmark(
        "swap",
        "swap against recomputation of preempted sequences",
        ENGINE,
        higher="swap_{out,in}_gib_s_{128,512,960}",
        lower="resume_{ratio_swap_to_recompute,by_swap_ms,by_recompute_ms}_{128,512,960} "
        "serving_time_ratio_swap_to_recompute",
        neutral="serving_swap_outs serving_recomputes",
    ),
    Benchmark(
        "streaming",
        "latency added by the gateway",
        f"{ROUTER} {MOCKS}",
        lower="added_{ttft,per_token}_ms_p50 added_{ttft,per_token}_ms_{p50,p99}_{1,16,64}_streams "
        "added_{ttft,per_token}_ms_{p50,p99}_python_client_{1,16,64}_streams",
    ),
    Benchmark(
        "router",
        "gateway and router against other routers",
        f"{ROUTER} {MOCKS} benchmarks/router_peers.py benchmarks/mock_http.py benchmarks/open_loop.py "
        "benchmarks/arrivals.py",
        higher="{requests_per_s,kept_per_s,open_achieved_per_s_20_per_s}_{grpc,http} two_gateways_ratio_grpc "
        "requests_ratio_{grpc,http}_to_* kept_ratio_{grpc,http}_to_* open_achieved_*",
        lower="{gateway,router,front}_cpu_{ms_per_request,us_per_token}_{grpc,http} "
        "{gateway,router}_cpu_ms_per_request_of_{100,10000}_{grpc,http} "
        "open_added_{ttft,per_token}_ms_{p50,p99}_{20_per_s,50_pct}_{grpc,http} "
        "added_* open_added_* gateway_cpu_* router_cpu_* front_cpu_*",
        neutral="messages_per_request_{grpc,http} requests_per_s_without_router_{grpc,http} "
        "requests_per_s_{1_gateways,2_gateways}_grpc "
        "messages_per_request_* requests_per_s_* kept_per_s_*",
    ),
    Benchmark(
        "policies",
        "placement policies under one simulator",
        SIMULATED,
        higher="goodput_ratio_{to_round_robin,to_best_peer,without_refusals} peak_goodput_ratio_to_best_peer "
        f"{{goodput,attainment,attainment_of_the_longest_tenth}}_{{{POLICIES}}} goodput_* attainment_*",
        lower=f"ttft_p99_ratio_to_best_peer ttft_s_p99_{{{POLICIES}}}",
        neutral="offered_requests_per_s",
        arguments=f"--trace {MOONCAKE} --requests 2000 --scales 4 8 14 --jobs 2",
    ),
    Benchmark(
        "planner",
        "the pool planner under the simulator",
        SIMULATED,
        higher="goodput_ratio_to_{best_static,no_change}_{shifting,steady} goodput_* attainment_*",
        neutral="role_switches_{shifting,steady}",
        arguments="--jobs 2",
    ),
    Benchmark(
        "rebalance",
        "changing the pools while they serve",
        CLUSTER,
        higher="tokens_per_s_share_during_switch",
        lower="switch_{idle,busy}_s switch_{idle,busy}_s_max migration_gap_decode_steps_{max,p90,median} "
        "stream_gap_s_max_during_switches requests_failed tokens_wrong",
        neutral="undisturbed_gap_decode_steps_{max,p99} decode_step_ms requests_served",
    ),
    Benchmark(
        "random_commands",
        "random commands of an operator",
        CLUSTER,
        lower="answers_wrong pages_leaked",
        neutral="commands answers migrations",
        arguments="--minutes 5 --seed 1",
        module="tests.reliability.random_commands",
    ),
    Benchmark(
        "chaos",
        "faults at random",
        f"{CLUSTER} deploy",
        lower="tokens_{wrong,missing,repeated} requests_failed_{unexplained,explained} pages_leaked "
        "recovery_s_{p50,p99}",
        neutral="minutes faults requests_done requests_left_by_client",
        arguments="--minutes 30 --seed 30",
        own_test="tests/live/test_chaos.py",
        module="tests.reliability.chaos",
    ),
    Benchmark(
        "overload",
        "five times too much",
        f"{CLUSTER} deploy",
        higher="goodput_ratio_overload_to_saturation saturation_requests_per_s goodput_at_{1x,5x}",
        lower="requests_failed refused_without_hint pages_leaked refusal_s_p50 {gateway,router}_mib_{before,grown} "
        "worker_mib_grown_max recovery_s",
        neutral="requests_{sent,done,late,slow,refused} queued_max live_max",
        arguments="--seconds 20 --seed 1",
        own_test="tests/live/test_overload.py",
        module="tests.reliability.overload",
    ),
    Benchmark(
        "router_restart",
        "a restart of the router",
        CLUSTER,
        higher="rest_ratio streams_continued",
        lower="gap_{ms,steps}_max_router_killed {gap,rest}_s_{p50,max}_{continued,computed_again}",
        neutral="streams step_s_{p50,max}_{continued,computed_again}",
        module="tests.reliability.router_restart",
    ),
    Benchmark(
        "output_length",
        "accuracy of predicted output lengths",
        "router/policy baton/simulator/trace.py",
        lower=LENGTH_ERRORS,
        neutral=LENGTHS,
        arguments=f"--trace {MOONCAKE}",
    ),
    Benchmark(
        "output_length_azure",
        "accuracy of predicted output lengths, on a second trace",
        "router/policy baton/simulator/trace.py",
        lower=LENGTH_ERRORS,
        neutral=LENGTHS,
        arguments=f"--trace {AZURE}",
        module="benchmarks.output_length",
    ),
    Benchmark(
        "fidelity",
        "the simulator against a live cluster",
        f"{SIMULATED} baton/worker prefill_worker decode_worker",
        lower="ttft_error tpot_error",
        neutral="{ttft_ms,ttft_p90_ms,tpot_ms,served_whole}_{live,simulated}",
    ),
    Benchmark(
        "simulator",
        "the speed of the simulator",
        SIMULATED,
        higher="events_per_s",
        lower="wall_s event_cost_ratio_to_first_quarter",
        neutral="events requests output_tokens simulated_s",
        arguments=f"--trace {MOONCAKE}",
    ),
    Benchmark(
        "step_times",
        "the simulator's step times against measured ones",
        "baton/simulator/layer_time.py baton/simulator/hardware.py",
        lower="step_time_error_{p50,max} step_time_error_* reduced_step_time_error_* all_reduce_error_*",
        arguments=f"--profiles {PROFILES}",
    ),
    Benchmark(
        "placement",
        "placement decisions per second",
        "router/policy",
        higher="decisions_per_s_{10,100,1000}",
        lower="bytes_per_cached_page {match_us,bytes_per_cached_page}_{10,100,1000}",
    ),
    Benchmark(
        "core",
        "the router's core per request, over cluster sizes",
        SIMULATED,
        higher="{attainment,attainment_longest_tenth,events_per_s}_{8,32,96,512}{,_busy} "
        "core_requests_per_s_1000_workers",
        lower="core_ms_per_request_{8,32,96,512}{,_busy} core_ratio_512_to_8{,_busy}",
    ),
    Benchmark(
        "abort_storm",
        "nine of ten clients leave",
        CLUSTER,
        higher="throughput_share_{after_2s,worst} tokens_per_s_{before,after}",
        lower="answers_wrong pages_leaked",
        neutral="clients_left answers",
        module="tests.reliability.abort_storm",
    ),
    Benchmark(
        "soak",
        "memory and pages over a long time",
        f"{CLUSTER} deploy",
        higher="peak_requests_per_s",
        lower="requests_failed requests_left_out answers_wrong pages_leaked {gateway,router}_mib "
        "{gateway,router}_mib_per_hour worker_mib_per_hour_max",
        neutral="minutes requests_done",
        arguments="--minutes 30 --load 0.8",
        module="tests.reliability.soak",
    ),
    Benchmark(
        "fuzz",
        "made-up bytes for every parser",
        "tests/fuzz baton router",
        lower="failures longest_s memory_peak_mib",
        neutral="inputs inputs_read",
        arguments="--minutes 10 --seed 1",
        module="tests.reliability.fuzz",
    ),
)
BY_NAME = {one.name: one for one in BENCHMARKS}
