"""Rates of gateways come from the totals in their reports."""

from __future__ import annotations

from baton.protocol.gateway_messages import GatewayLoad
from baton.router.gateway_rates import WINDOW_S, GatewayRates, Rates


def _load(tokens: int) -> GatewayLoad:
    return GatewayLoad(streams=1, tokens=tokens, requests=tokens // 10, cpu_s=tokens / 1000)


def test_a_rate_is_the_difference_of_totals_over_the_latest_seconds() -> None:
    rates = GatewayRates()
    for second in range(20):
        rates.report("gateway-0", "first", _load(100 * second if second < 10 else 1000 + 500 * (second - 10)), second)
    assert rates.rates("gateway-0") == Rates(500.0, 50.0, 0.5)
    assert WINDOW_S < 9


def test_one_report_gives_no_rate() -> None:
    rates = GatewayRates()
    rates.report("gateway-0", "first", _load(100), 1.0)
    assert rates.rates("gateway-0") == rates.rates("unknown") == Rates()


def test_a_restarted_gateway_begins_again() -> None:
    rates = GatewayRates()
    for second in range(3):
        rates.report("gateway-0", "first", _load(1000 * second), second)
    rates.report("gateway-0", "second", _load(10), 3.0)
    assert rates.rates("gateway-0") == Rates()
    rates.report("gateway-0", "second", _load(30), 5.0)
    assert rates.rates("gateway-0").tokens_per_s == 10.0


def test_gateways_that_have_left_are_forgotten() -> None:
    rates = GatewayRates()
    for second in range(2):
        for name in ("gateway-0", "gateway-1"):
            rates.report(name, "first", _load(100 * second), second)
    rates.keep({"gateway-1"})
    assert rates.rates("gateway-0") == Rates()
    assert rates.rates("gateway-1").tokens_per_s == 100.0
