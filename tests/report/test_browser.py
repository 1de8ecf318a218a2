"""The report in a real browser: accessible, and no name runs a script.

``ROBUSTKD_AXE`` is the path of axe.min.js, from ``npm pack axe-core``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from robustkd.report import write_html

from .conftest import make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
AXE = os.environ.get("ROBUSTKD_AXE", "")
DOES = "document.documentElement.dataset.broken=1"
HOSTILE = (
    f"<script>{DOES}</script>",
    f'"><img src=x onerror="{DOES}">',
    f"'><svg onload='{DOES}'>",
    f"</style></title></textarea><script>{DOES}</script>",
    f"<a href=javascript:{DOES}>a</a>",
)
# Wider parts are allowed in a box that scrolls.
WIDEST = """
const page = document.documentElement;
page.dataset.widest = [...document.querySelectorAll('body *')]
  .filter(each => !each.closest('.wide') && !each.closest('svg'))
  .filter(each => each.getBoundingClientRect().right > page.clientWidth + 1)
  .map(each => each.tagName + ' ' + each.className + ' ' + each.textContent.trim().slice(0, 40));
"""
RUN_AXE = """
axe.run(document, {resultTypes: ['violations']}).then(found => {
  const told = document.createElement('pre');
  told.id = 'found';
  told.textContent = JSON.stringify(found.violations.map(
    each => [each.impact, each.id, each.nodes.map(node => node.html.slice(0, 200))]));
  document.body.append(told);
});
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


def dom(page: Path, home: Path, *, dark: bool = False, width: int = 1280) -> str:
    """What the browser makes of a page after its scripts have run."""
    done = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"),
            f"--user-data-dir={home}",
            f"--window-size={width},3000",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        check=True,
        text=True,
        timeout=120,
    )
    return done.stdout


def unprotected(page: str) -> str:
    """The page without the policy that forbids scripts, so that only escaping protects it."""
    changed, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert count == 1
    return changed


def records(names) -> dict[str, object]:
    epochs = [
        {"epoch": 1.0 + i, "loss": 9.0 / (1 + i), "validation": 0.5, names[0]: 0.1}
        for i in range(3)
    ]
    detox = {
        "stages": [names[1]],
        "mean_mask": [0.1],
        "variance_ratio": [0.5],
        "accuracy_before": 0.9,
        "accuracy_after": 0.88,
        "curve": [
            {
                "variance_weight": 1.0,
                "accuracy": 0.88,
                "variance_ratio": 0.5,
                "within_budget": True,
            }
        ],
    }
    return {
        "teacher_file": {"name": names[2], "bytes": 9, "ignored": list(names), names[3]: names[4]},
        "classes": list(names),
        "epochs": epochs,
        "kept": 2,
        "detox": detox,
        "by_class": {
            "images": [10] * len(names),
            "teacher": [9] * len(names),
            "student": [5] * len(names),
        },
        "left_out": dict.fromkeys(names, 1),
        "networks": {"teacher": {"bytes": 9, "macs": 9}, "student": {"bytes": 4, "macs": None}},
        "audit": {"teacher": audit(names), "student": audit(names)},
    }


def audit(names) -> dict[str, object]:
    member = {"strength": 0, "family": names[0], "target": 1, "share": 0.9, "beside": 0.1}
    led = {"p_value": 0.3, "suspect": 1, "said": names[2], "counts": True, "member": member}
    verdict = {"word": "suspicious", "suspect": 1, "p_value": 1e-9, "reason": names[3]}
    return {
        "verdict": verdict,
        "suspected_class": names[1],
        "evidence": {names[4]: led},
        "pictures": {"before": [0, 1, 2], "after": [1, 1, 1]},
    }


def found(arrays) -> dict[str, np.ndarray]:
    """The arrays of a demo, and those of an audit."""
    images = np.random.default_rng(0).random((3, 1, 8, 8))
    names = [
        f"audit/{who}/{when}" for who in ("teacher", "student") for when in ("before", "after")
    ]
    return {**arrays, **dict.fromkeys(names, images)}


def hostile(write, arrays) -> Path:
    arrays[f"mask/default/{HOSTILE[1]}"] = arrays["mask/default/group1"]
    arrays[f"predictions/{HOSTILE[0]}"] = arrays["labels"]
    names = dict(zip(("data", "pair", "attack"), HOSTILE, strict=False))
    return write(
        [
            make_run(method=method, acc=acc, asr=None, ra=None, n_acc=500, **names)
            for method, acc in (("teacher", 0.99), (HOSTILE[4], 0.7))
        ],
        arrays=found(arrays),
        records=records(HOSTILE),
        config={"arch": HOSTILE[0], "student": HOSTILE[1], HOSTILE[2]: {HOSTILE[3]: HOSTILE[4]}},
        environment={HOSTILE[0]: HOSTILE[1]},
    )


def test_no_name_runs_a_script(write, arrays, tmp_path):
    page = write_html(hostile(write, arrays))
    text = page.read_text(encoding="utf-8")
    page.write_text(unprotected(text), encoding="utf-8")
    assert 'data-broken="1"' not in dom(page, tmp_path / "home")
    # The same page with a script of its own shows that the browser would have run one.
    page.write_text(unprotected(text).replace("</body>", f"<script>{DOES}</script></body>"))
    assert 'data-broken="1"' in dom(page, tmp_path / "home")
    page.write_text(text.replace("</body>", f"<script>{DOES}</script></body>"))
    assert 'data-broken="1"' not in dom(page, tmp_path / "home")


@pytest.mark.parametrize("names", ["usual", "hostile", "long"])
def test_no_table_is_cut_on_a_phone(write, arrays, tmp_path, names):
    long = ["Pneumonoultramicroscopicsilicovolcanoconiosis" * 2, "a name_of.several-parts " * 9]
    if names == "hostile":
        page = write_html(hostile(write, arrays))
    else:
        known = [f"class {i}" for i in range(5)] if names == "usual" else (long * 3)[:5]
        page = write_html(write(arrays=found(arrays), records=records(known)))
    text = unprotected(page.read_text(encoding="utf-8")).replace("<details>", "<details open>")
    page.write_text(text.replace("</body>", f"<script>{WIDEST}</script></body>"), encoding="utf-8")
    shown = dom(page, tmp_path / "home", width=390)
    (told,) = re.findall(r'data-widest="([^"]*)"', shown)
    assert told == "", "these elements are wider than the page"


@pytest.mark.skipif(not AXE, reason="ROBUSTKD_AXE names no axe.min.js")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("names", ["usual", "hostile"])
def test_axe_finds_no_violation(write, arrays, tmp_path, names, width, dark):
    if names == "hostile":
        folder = hostile(write, arrays)
    else:
        folder = write(arrays=found(arrays), records=records([f"class {i}" for i in range(30)]))
    page = write_html(folder)
    text = unprotected(page.read_text(encoding="utf-8")).replace("<details>", "<details open>")
    script = f"<script>{Path(AXE).read_text(encoding='utf-8')}</script><script>{RUN_AXE}</script>"
    page.write_text(text.replace("</body>", f"{script}</body>"), encoding="utf-8")
    shown = dom(page, tmp_path / "home", dark=dark, width=width)
    (told,) = re.findall(r'<pre id="found">(.*?)</pre>', shown, re.DOTALL)
    assert json.loads(unescape(told)) == []
