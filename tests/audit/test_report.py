"""The report in a real headless Chromium: what it shows, what it lets run, its size and time."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ncp_envs import LEVEL_UNITS
from playwright.sync_api import Browser, Page, sync_playwright
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env

from ncp_rl import AutoNCP, NCPPolicy, equations
from ncp_rl.audit import Asked, Audit, Perturbation, Plan, Subject, audit_recording, explain, write_report
from ncp_rl.audit.intervals import Range
from ncp_rl.audit.perturb import Point
from ncp_rl.audit.questions.certificate import Certified
from ncp_rl.audit.questions.explain import ExplainQuestion
from ncp_rl.audit.questions.monitor import MonitorQuestion
from ncp_rl.audit.questions.perturbation import PerturbationQuestion, Sweep
from ncp_rl.audit.section import Grid
from ncp_rl.circuit import Circuit
from ncp_rl.kernels import EPSILON
from ncp_rl.recording import Recording, record_rollouts
from ncp_rl.runs import Interval
from tests.audit.episodes import pendulum, small_model

N_STEPS = 30
#: What the first pane has computed.
PANE = """() => {
    const {parts, episode, t} = panes[0], cell = episode.subject, v = episode.row("potentials", t);
    return {
        ...Object.fromEntries(Object.entries(parts).map(([name, values]) => [name, [...values]])),
        tau: [...timeConstants(cell, v, episode.row("sensory", t))],
        sentences: cell.actions.map((_, a) => sentence(cell, parts, v, episode.time[t], a)),
    };
}"""
ATTACK = "<img src=x onerror='window.hacked=1'>"
SCRIPT = "</script><script>window.hacked=2</script>"
LINK = '<a href="https://example.com">--pos</a>'


class Hostile(gym.Env[Any, Any]):
    """What it calls itself, and what it observes, is markup."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Discrete(3)
    observation_names = (ATTACK, SCRIPT, LINK)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), 1.0, False, False, {}

    def __str__(self) -> str:
        return SCRIPT + ATTACK


def swept() -> Asked:
    """Disturbances of two policies, as if they had been swept."""
    answer = Sweep(perturbation(), level_units={"sensor_noise": "share"})
    return Asked({"perturbation": answer}, tuple(PerturbationQuestion().verdicts(answer)), {})


def perturbation() -> Perturbation:
    def point(policy: str, condition: str, level: float) -> Point:
        mean = -100.0 * (1 + level)
        interval = Interval(mean, mean - 10, mean + 20)
        return Point(policy, condition, level, interval, interval, Interval(0.1, 0.0, 0.3), Interval(0.2, 0.1, 0.3))

    policies = ("ncp", "mlp" + ATTACK)
    levels = [("sensor_noise", 0.0), ("sensor_noise", 0.2), ("clamp command_0 at 0.10", 0.0)]
    points = tuple(point(policy, *level) for policy in policies for level in levels)
    return Perturbation({policy: point(policy, "nominal", 0.0) for policy in policies}, points, True, 5, 0)


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """A pendulum with pictures, and an environment whose names are markup; disturbances of two policies."""
    folder = tmp_path_factory.mktemp("recordings")
    frames = dict(max_episode_steps=N_STEPS, render_mode="rgb_array")
    venv = make_vec_env("ncp_envs:ncp/PendulumNoVel-v1", 4, seed=0, env_kwargs=frames)
    path = record_rollouts(small_model(venv), venv, folder / "a.mcap", n_episodes=4, images=True, progress_bar=False)
    venv.close()
    hostile = make_vec_env(lambda: gym.wrappers.TimeLimit(Hostile(), N_STEPS), 2, seed=0)
    kwargs = dict(
        wiring=AutoNCP(12),
        critic="mlp",
        features_extractor_kwargs=dict(receptors=2, names=Hostile.observation_names),
        action_names=(ATTACK, "stay", LINK),
    )
    model = RecurrentPPO(NCPPolicy, hostile, seed=0, policy_kwargs=kwargs)
    other = record_rollouts(model, hostile, folder / "b.mcap", n_episodes=2, progress_bar=False)
    subjects = (
        audit_recording(Recording.open(path), "pendulum", Plan(alpha=0.5)),
        audit_recording(Recording.open(other), f"hostile{SCRIPT}", Plan(alpha=0.5)),
    )
    return Audit(subjects, swept())


@pytest.fixture(scope="module")
def report(audit: Audit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(audit, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.fail("The report is tested in Chromium, which is missing: apt-get install -y chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Tab:
    """A page in a browser, with all that it said and asked for."""

    def __init__(self, chromium: Browser, **options: Any) -> None:
        self.context = chromium.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url))

    def _asked(self, url: str) -> None:
        if not url.startswith(("file:", "data:")):
            self.said.append(f"asked for {url}")

    def open(self, path: Path, fragment: str = "") -> Page:
        self.page.goto(f"{path.as_uri()}{fragment}")
        self.page.wait_for_selector("html[data-ready]")
        return self.page


@pytest.fixture
def tab(chromium: Browser) -> Iterator[Tab]:
    """Fails where the page said anything on the console, or asked for anything."""
    tab = Tab(chromium)
    yield tab
    tab.context.close()
    assert tab.said == []


def see_all(page: Page) -> None:
    """Scroll through the page until every plot that is shown is drawn."""
    for plot in page.locator(".plot[data-figure]").all():
        if plot.is_visible():
            plot.scroll_into_view_if_needed()
            plot.locator(".main-svg").first.wait_for()


def wait_until(page: Page, condition: str) -> None:
    """Playwright's own way of waiting evaluates strings, which the page's policy refuses."""
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"In vain: {condition}")


def clock(page: Page) -> str:
    return page.locator(".clock").first.inner_text()


def test_each_part_of_a_levels_unit_has_a_line() -> None:
    answer = Sweep(perturbation(), level_units={"sensor_noise": LEVEL_UNITS["action_noise"]})
    (grid,) = (part for part in PerturbationQuestion().section(answer) if isinstance(part, Grid))
    ((_, plot),) = grid.plots
    assert plot.figure["layout"]["xaxis"]["title"]["text"].split("<br>") == [
        "level [standard deviation,",
        "share of half the range;",
        "probability for discrete actions]",
    ]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
def test_everything_is_drawn_within_the_width_without_a_word_or_a_request(
    chromium: Browser, report: Path, width: int, scheme: Any
) -> None:
    tab = Tab(chromium, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = tab.open(report, "#r=0&e=1&t=3&n=command_0")
    see_all(page)
    for name in ("summary", "#compare"):
        for button in page.locator(name).all():
            if button.is_visible():
                button.click()
    see_all(page)
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": width - 50, "height": 900})
    page.emulate_media(media="print")
    page.pdf()
    boxes = [plot.bounding_box() for plot in page.locator("#certificate .plot").all() if plot.is_visible()]
    assert all(box is not None and box["height"] > 100 for box in boxes) and boxes
    assert tab.said == []
    tab.context.close()


def test_verdicts_come_first_each_with_its_sentence_and_a_link(tab: Tab, report: Path, audit: Audit) -> None:
    page = tab.open(report)
    lines = page.locator(".verdicts li:not(.skipped)").all()
    assert len(lines) == len(audit.verdicts)
    for line, verdict in zip(lines, audit.verdicts, strict=True):
        assert verdict.sentence in line.inner_text().replace("\n", " ")
        assert ("pass" if verdict.passed else "FAIL") in line.inner_text()
        target = line.locator("a").get_attribute("href")
        assert target is not None and page.locator(target).count() == 1
    assert page.locator("main > section").first.get_attribute("id") == "verdicts"
    assert "Receptors" in page.locator("#verdicts").inner_text()


def test_contributions_and_sentences_are_those_of_python(tab: Tab, report: Path, audit: Audit) -> None:
    page = tab.open(report)
    for r, subject in enumerate(audit.subjects):
        for e, episode in enumerate(subject.episodes):
            explanation = explain(subject.recording.circuit, episode)
            for t in (0, 1, 17, N_STEPS - 1):
                page.evaluate("([r, e, t]) => { Object.assign(state, {r, e, t}); return arrange(); }", [r, e, t])
                found = page.evaluate(PANE)
                expected = {"synapses": explanation.synaptic, "sensory": explanation.sensory, "leak": explanation.leak}
                for name, array in (expected | {"memory": explanation.memory}).items():
                    np.testing.assert_allclose(found[name], array[t], rtol=0, atol=1e-12)
                np.testing.assert_allclose(found["tau"], explanation.episode.tau[t], rtol=1e-5)
                sentences = [explanation.sentence(t, a) for a in range(len(explanation.circuit.action_names))]
                assert found["sentences"] == sentences
                assert page.locator(".why").inner_text() == sentences[0] + "."


def test_the_page_has_the_equations_of_python(tab: Tab, report: Path) -> None:
    """Wide open, shut, and with next to no leak, where epsilon is most of a neuron's conductance."""
    rng = np.random.default_rng(0)
    source, destination = np.arange(6), np.arange(6) // 2
    w, mu, v = rng.uniform(0, 1, 6), rng.normal(size=6), np.array([-1e4, 1e4, *rng.normal(size=4)])
    w[4:], sigma, gleak, cm = 0.0, rng.uniform(3, 8, 6), np.array([0.4, 0.0, 1e-9]), rng.uniform(0.1, 1, 3)
    synapses = dict(source=source, destination=destination, w=w, sigma=sigma, mu=mu)
    synapses = {name: values.tolist() for name, values in synapses.items()}
    cell = dict(synapses=synapses, sensory=synapses, cm=cm.tolist(), gleak=gleak.tolist(), epsilon=EPSILON)
    computed = "([cell, v]) => [[...openness(cell.synapses, v)], [...timeConstants(cell, v, v)]]"
    opened, tau = tab.open(report).evaluate(computed, [cell, v.tolist()])
    expected = equations.openness(v, sigma, mu)
    np.testing.assert_allclose(opened, expected, rtol=0, atol=1e-15)
    total = equations.conductance(gleak, np.bincount(destination, 2 * w * expected).astype(float))
    np.testing.assert_allclose(tau, equations.time_constant(cm, total), rtol=1e-12)


def test_halves_are_rounded_as_python_does(tab: Tab, report: Path) -> None:
    page = tab.open(report)
    values = [0.125, 0.375, -0.125, -0.625, 2.5, 0.005, 1.005, -0.001, 0.0, 12.875, 0.115]
    assert page.evaluate("values => values.map(fixed)", values) == [f"{value:.2f}" for value in values]
    assert page.evaluate("[fixed(-0), signed(-0), signed(0)]") == [f"{-0.0:.2f}", f"{-0.0:+.2f}", f"{0.0:+.2f}"]


def test_slider_buttons_and_keys_move_through_time(tab: Tab, report: Path, audit: Audit) -> None:
    page, episode = tab.open(report), audit.subjects[0].episodes[0]
    assert clock(page).startswith("step 0 of 29")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    assert clock(page) == f"step 11 of 29, {episode.time[11]:.2f} s"
    values = [row.inner_text() for row in page.locator(".row .value").all()]
    assert values[0] == f"{episode.observation[11, 0]:.2f}"
    assert values[2] == f"{episode.action_mean[11, 0]:.2f}"
    page.keyboard.press("ArrowLeft")
    page.locator("#back").click()
    assert clock(page).startswith("step 9 ")
    page.locator("#slider").fill("20")
    assert clock(page).startswith("step 20 ")
    picture = page.locator(".picture[data-kind=environment] img").get_attribute("src")
    page.locator("#slider").focus()
    page.keyboard.press("ArrowRight")
    assert clock(page).startswith("step 21 ")
    assert page.locator(".picture[data-kind=environment] img").get_attribute("src") != picture
    page.keyboard.press(" ")
    wait_until(page, "state.t === 29 && !playing")
    assert page.locator("#play").inner_text() == "Play"


def test_the_player_plays_on_while_panes_come_and_change(tab: Tab, report: Path) -> None:
    page = tab.open(report)
    for press in (
        lambda: page.locator("#compare").click(),
        lambda: page.locator(".recording").first.select_option("1"),
        lambda: page.locator(".episode").first.select_option("1"),
        lambda: page.locator("#compare").click(),
    ):
        page.evaluate("callbacks.seek(0); play(true)")
        press()
        hurry(page)
        wait_until(page, "state.t === lastStep() && !playing")
        assert page.locator("#play").inner_text() == "Play"


def hurry(page: Page) -> None:
    """Thirty seconds of an episode in one."""
    page.evaluate("byId('speed').options[4].value = 30; byId('speed').value = 30")


#: Chooses something of the page by the numbers that it is given, and does what can be done to it.
DO_ANYTHING = """([which, how]) => {
    const shown = (element) => element.getClientRects().length > 0;
    const things = [...document.querySelectorAll(
        "button, select, input, summary, .node, .row svg, .trace svg, .verdicts a, nav a, body")].filter(shown);
    const thing = things[which % things.length], fire = (type) => thing.dispatchEvent(new Event(type, {bubbles: true}));
    if (thing.tagName === "SELECT") {
        thing.selectedIndex = how % thing.options.length;
        fire("change");
    } else if (thing.tagName === "INPUT") {
        thing.value = how % (Number(thing.max) + 1);
        fire("input");
    } else if (thing.tagName === "BODY") {
        const key = ["ArrowRight", "ArrowLeft", " ", "Home", "End", "ArrowDown", "Enter"][how % 7];
        (document.activeElement || thing).dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
    } else if (thing.matches(".row svg, .trace svg")) {
        thing.scrollIntoView({block: "center"});
        const box = thing.getBoundingClientRect();
        return [box.left + (box.width * (how % 100)) / 99, box.top + box.height / 2];
    } else thing.dispatchEvent(new MouseEvent("click", {bubbles: true}));
    return null;
}"""


@pytest.mark.parametrize("seed", [0, 1])
def test_whatever_is_clicked_in_whatever_order_while_it_plays(chromium: Browser, report: Path, seed: int) -> None:
    tab, generator = Tab(chromium), random.Random(seed)
    page = tab.open(report)
    for _ in range(80):
        if generator.random() < 0.3:
            page.evaluate("if (!playing) byId('play').click()")
        trace = page.evaluate(DO_ANYTHING, [generator.randrange(10**6), generator.randrange(10**6)])
        if trace is not None:
            page.mouse.click(*trace)
        if generator.random() < 0.3:
            page.wait_for_timeout(generator.random() * 40)
    page.evaluate("play(false); callbacks.seek(0); play(true)")
    hurry(page)
    wait_until(page, "!playing && state.t === lastStep()")
    assert page.locator("#play").inner_text() == "Play"
    # What is on the page is what a page that is opened at this instant shows.
    for pane, expected in zip(
        page.evaluate(SHOWN), expected_at(chromium, report, page.evaluate(FRAGMENT)), strict=True
    ):
        assert len(pane) == len(expected)
        assert [one for one, other in zip(pane, expected, strict=True) if one != other] == []
    assert tab.said == []
    tab.context.close()


FRAGMENT = "`#${new URLSearchParams({r: state.r, e: state.e, t: state.t, a: state.a, n: state.n," + (
    " ...(state.c && {c: state.c.join('.')})})}`"
)
#: What each pane says: the selected neuron's trace with its axes, all numbers, all choices.
SHOWN = """panes.map(({root}) => [
    ...[...root.querySelectorAll(".clock, .why, .row, .neuron:not([hidden])")].map((part) => part.innerText),
    ...[...root.querySelectorAll(".row path, .neuron:not([hidden]) path")].map((path) => path.getAttribute("d")),
    ...[...root.querySelectorAll("select")].map((select) => select.value),
])"""


def expected_at(chromium: Browser, report: Path, fragment: str) -> Any:
    tab = Tab(chromium)
    page = tab.open(report, fragment)
    wait_until(page, "panes.every((pane) => pane.episode)")
    shown = page.evaluate(SHOWN)
    tab.context.close()
    return shown


def test_an_instant_can_be_linked_to(tab: Tab, report: Path) -> None:
    page = tab.open(report, "#r=0&e=2&t=13&n=command_1")
    assert clock(page).startswith("step 13 ") and page.locator(".episode").first.input_value() == "2"
    assert page.locator(".neuron h3").inner_text().startswith("command_1, command neuron")
    page.keyboard.press("ArrowRight")
    wait_until(page, "location.hash === '#r=0&e=2&t=14&n=command_1'")
    page.evaluate("location.hash = '#r=1&e=1&t=5&a=1'")
    wait_until(page, "panes[0].r === 1 && panes[0].t === 5")
    assert page.locator(".why").inner_text().startswith("stay ")
    assert page.locator(".action").first.input_value() == "1"
    page.evaluate("location.hash = '#r=99&e=-3&t=x&n=nobody'")
    wait_until(page, "panes[0].e === 0 && panes[0].t === 0")
    page.locator("nav a", has_text="Trees").click()
    assert clock(page).startswith("step 0 ")


def test_a_neuron_tells_its_time_constant_contributions_and_rule(tab: Tab, report: Path, audit: Audit) -> None:
    subject = audit.subjects[0]
    page = tab.open(report, "#r=0&e=0&t=9")
    wiring = subject.recording.circuit.wiring
    name = wiring.names[wiring.command][0]
    page.locator(".node", has_text=name).first.locator(".target").click()
    assert page.locator(".neuron h3").inner_text() == (
        f"{name}, command neuron: potential {subject.episodes[0].potentials[9, 1]:.2f}"
    )
    said = page.locator(".tau p").inner_text().split()
    low, high = (bound[1] for bound in subject.answers["dynamics"].tau_bounds)
    np.testing.assert_allclose(
        [float(said[i]) for i in (2, 5, 7)], [subject.episodes[0].tau[9, 1], low, high], rtol=6e-3
    )
    explanation = explain(subject.recording.circuit, subject.episodes[0])
    own = np.flatnonzero(explanation.cell.synapses.destination == 1)
    strongest = max(np.abs(explanation.synaptic[9, own]).max(initial=0), np.abs(explanation.sensory[9]).max())
    shown = [float(cell.inner_text()) for cell in page.locator(".receives .number").all()]
    assert 0 < max(map(abs, shown)) <= strongest + abs(explanation.memory[9, 1]) + 0.005
    assert page.locator(".rules li").count() >= len(subject.answers["trees"].trees[0].rules)
    assert page.locator(".neuron .rules [aria-current]").count() == 1
    page.locator(".node.selected").focus()
    page.keyboard.press("ArrowDown")
    assert not page.locator(".neuron h3").inner_text().startswith(f"{name},")


def test_two_are_compared_side_by_side(tab: Tab, report: Path) -> None:
    page = tab.open(report)
    page.locator("#compare").click()
    wait_until(page, "panes.length === 2 && panes[1].episode")
    left, right = (pane.bounding_box() for pane in page.locator(".pane").all())
    assert left is not None and right is not None and right["x"] >= left["x"] + left["width"]
    assert page.locator("#certificate [data-recording]:visible").count() == 2
    page.locator(".recording").nth(1).select_option("0")
    page.locator(".episode").nth(1).select_option("3")
    wait_until(page, "location.hash.endsWith('&c=0.3')")
    page.locator("#compare").click()
    assert page.locator(".pane").count() == 1
    page.locator(".recording").select_option("1")
    wait_until(page, "panes[0].r === 1 && panes[0].episode.subject === report.subjects[1]")
    assert page.locator("#certificate [data-recording='0']").is_hidden()


def table(page: Page, section: str, index: int = 0) -> dict[str, list[str]]:
    rows = page.locator(f"#{section} [data-recording='0'] table").nth(index).locator("tbody tr").all()
    return {row.locator("th").text_content() or "": row.locator("td").all_text_contents() for row in rows}


def test_numbers_are_those_of_audit_json(tab: Tab, report: Path, audit: Audit) -> None:
    page, found = tab.open(report), json.loads(json.dumps(audit.to_dict()))["subjects"][0]

    def shown(*values: float) -> list[str]:
        return [f"{value:.4g}" for value in values]

    certificate = found["certificate"]
    for name, cells in table(page, "certificate", 1).items():
        assert cells[:4] == shown(*_ends(certificate["box"][name]), *_ends(certificate["range"][name]))
    for name, cells in table(page, "certificate").items():
        assert cells[:4] == shown(*_ends(certificate["action"][name]), *found["provoked"][name])
    behaviour = table(page, "dynamics")
    for neuron in found["dynamics"]["neurons"]:
        keys = ("tau_bound_low", "tau_bound_high", "tau_low", "tau_median", "tau_high", "mean", "std")
        assert behaviour[neuron["name"]][:7] == shown(*(neuron[key] for key in keys))
    effects = table(page, "ablation")
    for effect in found["ablation"]:
        assert effects[effect["ablation"]] == shown(effect["rms"][0], effect["largest"][0])
    threshold = found["monitor"]["envelope"]["threshold"]
    assert table(page, "monitor")["conformal"][0] == f"{threshold:.4g}"
    rules = "\n".join(page.locator("#trees [data-recording='0'] li").all_text_contents())
    assert all(rule["rule"] in rules for tree in found["trees"]["trees"] for rule in tree["rules"])
    assert found["manifest"]["policy"]["sha256"] in (page.locator("#manifest").text_content() or "")


def _ends(bounds: Any) -> list[float]:
    return list(bounds.values()) if isinstance(bounds, dict) else list(bounds)


def test_hostile_text_is_shown_and_does_nothing(tab: Tab, report: Path, audit: Audit) -> None:
    page = tab.open(report, "#r=1&e=0&t=3&n=command_0")
    see_all(page)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("a[href^=http]").count() == 0
    assert SCRIPT in (page.locator("#manifest dd", has_text="img").first.text_content() or "")
    assert f"hostile{SCRIPT}" in page.locator("#verdicts h3").all_text_contents()
    names = page.locator(".row .name").all_text_contents()
    assert names[:3] == [ATTACK, SCRIPT, LINK]
    assert any(ATTACK in text for text in page.locator("#perturbation .legendtext").all_text_contents())


def test_the_policy_lets_no_other_script_run(chromium: Browser, report: Path) -> None:
    tab = Tab(chromium)
    page = tab.open(report)
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.x = 1'}))"
    )
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<b onclick=\"window.x=1\" id=b>b</b>')")
    page.evaluate("document.getElementById('b').click()")
    assert page.evaluate("window.x") is None
    assert page.evaluate("fetch('https://example.com').then(() => 1, () => 0)") == 0
    assert len(tab.said) >= 3 and not any(line.startswith("asked for") for line in tab.said)
    tab.context.close()


def test_where_nothing_is_certified_the_page_says_why(tab: Tab, audit: Audit, tmp_path: Path) -> None:
    subject = audit.subjects[0]
    answer: Certified = subject.answers["certificate"]
    nowhere = Range(*np.full((2, subject.recording.circuit.wiring.units), np.nan))
    broken = replace(answer.certificate, violations=("w of a -> b is negative",), box=nowhere, range=nowhere)
    answers = {**subject.answers, "certificate": replace(answer, certificate=broken)}
    page = tab.open(write_report(Audit((replace(subject, answers=answers),)), tmp_path / "broken.html"))
    assert "Nothing is certified: w of a -> b is negative" in page.locator("#certificate").inner_text()
    page.keyboard.press("ArrowRight")
    assert clock(page).startswith("step 1 ")


class Unexplained(ExplainQuestion):
    def not_for(self, circuit: Circuit) -> str | None:
        return None if ATTACK in circuit.action_names else "Attribution is for other cells."


def test_a_recording_that_is_not_explained_is_shown_without_the_player(tab: Tab, audit: Audit, tmp_path: Path) -> None:
    questions = (Unexplained(), MonitorQuestion())
    subjects = tuple(
        audit_recording(subject.recording, subject.name, Plan(alpha=0.5), questions=questions)
        for subject in audit.subjects
    )
    page = tab.open(write_report(Audit(subjects, questions=questions), tmp_path / "one.html"), "#r=0&e=0&t=2")
    assert page.locator(".recording option").all_text_contents() == [f"hostile{SCRIPT}"]
    assert clock(page).startswith("step 2 ")
    assert page.locator("#monitor [data-recording]:visible").count() == 2
    assert "Attribution is for other cells." in page.locator("#verdicts .skipped").first.inner_text()
    assert "pendulum is not in the player. Attribution is for" in page.locator("#player .notice").first.inner_text()
    page.locator("#verdicts a[data-choose='0']", has_text="monitor").click()
    page.locator("#compare").click()
    wait_until(page, "panes.length === 2 && panes[1].r === 1")
    page = tab.open(write_report(Audit(subjects[:1], questions=questions), tmp_path / "none.html"))
    see_all(page)
    assert page.locator("#player").is_hidden() and page.locator("#monitor .plot").first.is_visible()


def test_what_does_not_fit_is_left_out_and_the_page_says_so(audit: Audit, tmp_path: Path) -> None:
    whole = write_report(audit, tmp_path / "whole.html").stat().st_size
    path = write_report(audit, tmp_path / "small.html", max_bytes=whole - 60_000)
    assert path.stat().st_size < whole - 60_000
    tiny = write_report(audit, tmp_path / "tiny.html", max_bytes=5_000).read_text()
    assert "The page has room for 1 of the 4 episodes of pendulum" in tiny


@pytest.fixture(scope="module")
def ten_thousand_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on 10 episodes of 1,000 steps of 32 neurons."""
    folder = tmp_path_factory.mktemp("large")
    venv = pendulum(10, 1000)
    path = record_rollouts(small_model(venv, AutoNCP(32)), venv, folder / "a.mcap", progress_bar=False)
    subject: Subject = audit_recording(Recording.open(path), "pendulum", Plan(n_moved_steps=5))
    return write_report(Audit((subject,)), folder / "report.html")


def test_ten_episodes_of_a_thousand_steps_are_small_and_soon_there(chromium: Browser, ten_thousand_steps: Path) -> None:
    assert ten_thousand_steps.stat().st_size < 10_000_000
    milliseconds = []
    for _ in range(3):
        tab = Tab(chromium)
        page = tab.open(ten_thousand_steps, "#e=9&t=999")
        assert clock(page).startswith("step 999 of 999")
        milliseconds.append(int(page.evaluate("document.documentElement.dataset.ready")))
        assert tab.said == []
        tab.context.close()
    assert min(milliseconds) < 2000, milliseconds


def test_pages_of_the_same_audit_are_the_same(audit: Audit, report: Path, tmp_path: Path) -> None:
    again = write_report(audit, tmp_path / "again.html")
    assert again.read_bytes() == report.read_bytes()
