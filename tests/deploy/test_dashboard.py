"""The dashboard and the alerts ask for metrics, and labels, that a daemon exports."""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.scraping import busy_daemon, scraped
from tests.source_tree import ROOT

DASHBOARD = json.loads((ROOT / "deploy/grafana/rockbed.json").read_text())
PROMETHEUS = ROOT / "deploy" / "prometheus"
ALERTS = [
    rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
OF_PROMETHEUS = {"up": set[str]()}  # made by the scrape itself
OF_SCRAPE = {"instance", "job"}  # labels that it adds
NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
# A selector is a name followed by {...}, or by [...], or by nothing; a function's name is followed by "(".
SELECTOR = re.compile(r"\b([a-zA-Z_][a-zA-Z0-9_]*)\b(?!\s*\()(?:\{([^}]*)\})?")
GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
OPERATORS = {"and", "or", "unless", "by", "without", "on", "ignoring", "bool", "offset"}


def asked(expr: str) -> tuple[dict[str, set[str]], set[str]]:
    """The metrics that an expression names, each with the labels that it matches, and the labels it groups by."""
    groups = {label.strip() for names in GROUPING.findall(expr) for label in names.split(",")}
    rest = re.sub(r"\[[^]]*\]", "", GROUPING.sub("", STRING.sub('""', expr)))
    found: dict[str, set[str]] = {}
    for name, matchers in SELECTOR.findall(rest):
        if name not in OPERATORS:
            found.setdefault(name, set()).update(NAME.findall(matchers))
    return found, groups


def unknown(expr: str, exported: dict[str, set[str]]) -> Iterator[str]:
    """What an expression asks for and nobody exports."""
    metrics, groups = asked(expr)
    for name, labels in metrics.items():
        if name not in exported:
            yield f"{name}: no such metric"
        else:
            lacking = (labels | groups) - exported[name] - OF_SCRAPE
            yield from (f"{name} has no label {label}" for label in sorted(lacking))


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Name of a series -> its labels."""
    with busy_daemon(tmp_path_factory.mktemp("exported")) as daemon:
        families = scraped(daemon).values()
    samples = [sample for family in families for sample in family.samples]
    return OF_PROMETHEUS | {sample.name: set(sample.labels) for sample in samples}


def test_every_panel_asks_for_what_is_exported(exported: dict[str, set[str]]) -> None:
    wrong = [
        f"{panel['title']}: {problem}"
        for panel in panels()
        for target in panel["targets"]
        for problem in unknown(target["expr"], exported)
    ]
    assert wrong == []


def test_every_alert_asks_for_what_is_exported(exported: dict[str, set[str]]) -> None:
    wrong = [f"{alert['alert']}: {problem}" for alert in ALERTS for problem in unknown(alert["expr"], exported)]
    assert wrong == []


def test_the_variables_ask_for_what_is_exported(exported: dict[str, set[str]]) -> None:
    queries = [v["query"]["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
    for query in queries:
        match = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
        assert match
        assert list(unknown(f"sum by ({match[2]}) ({match[1]})", exported)) == []


@pytest.mark.parametrize(
    ("expr", "problems"),
    [
        ('sum by (method) (rate(known_total{code="a{b}"}[5m])) / known_total', []),
        ('rate(unknown_total{group=~"$group"}[$__rate_interval])', ["unknown_total: no such metric"]),
        ("sqrt(known_total / other)", ["other: no such metric"]),
        ('known_total{group="1"}', ["known_total has no label group"]),
        ("sum by (group, instance) (known_total)", ["known_total has no label group"]),
        ('known_total{method="x"} > 0.5 and up == 0', []),
    ],
)
def test_what_an_expression_asks_for_is_understood(expr: str, problems: list[str]) -> None:
    assert list(unknown(expr, OF_PROMETHEUS | {"known_total": {"method", "code"}})) == problems


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(p["x"] >= 0 and p["x"] + p["w"] <= 24 and p["w"] > 0 and p["h"] > 0 for p in places)
    overlapping = [
        (a, b)
        for a, b in itertools.combinations(places, 2)
        if a["x"] < b["x"] + b["w"]
        and b["x"] < a["x"] + a["w"]
        and a["y"] < b["y"] + b["h"]
        and b["y"] < a["y"] + a["h"]
    ]
    assert overlapping == []


def test_the_data_source_is_a_variable_everywhere() -> None:
    names = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert names == ["datasource", "job", "instance", "group"]
    sources = [panel["datasource"] for panel in panels()]
    sources += [target["datasource"] for panel in panels() for target in panel["targets"]]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)


def test_prometheus_scrapes_the_server_and_reads_the_alerts() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert [(PROMETHEUS / name).is_file() for name in config["rule_files"]] == [True]
    (scrape,) = config["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": ["rockbed:9400"]}]
    # the alert that nobody answers goes by the job's name
    (down,) = (alert for alert in ALERTS if alert["alert"] == "RockbedDown")
    assert f'job="{scrape["job_name"]}"' in down["expr"]


def test_every_alert_says_what_it_is_about() -> None:
    assert len({alert["alert"] for alert in ALERTS}) == len(ALERTS)
    for alert in ALERTS:
        assert set(alert) == {"alert", "expr", "for", "labels", "annotations"}
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"]["summary"]
