"""The report page in a real browser, headless: no error, no request, and what the script does."""
import json
import re
import shutil
import subprocess

import pytest

from timm_longtail.evaluation.report import page
from timm_longtail.evaluation.report.reading import read_reports

from ...support.run_folders import NASTY, write_run

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')

# stands in the head, before all else
LISTEN = '''
window.problems = [];
addEventListener('error', (event) => problems.push(String(event.message || event.target.outerHTML)), true);
addEventListener('securitypolicyviolation', (event) => problems.push(`blocked ${event.blockedURI}`));
window.alert = (text) => problems.push(`alert ${text}`);
'''

# acts as a reader would, and leaves what was seen as JSON in the page
ACT = '''
const column = (table, index) => [...document.querySelectorAll(`#${table} tbody tr`)]
  .filter((row) => !row.hidden).map((row) => row.cells[index].textContent.trim());
const click = (table, index) => document.querySelectorAll(`#${table} thead button`)[index].click();
const seen = {};

seen.names = [...document.querySelectorAll('#table-classes tbody .class-name')].map((name) => name.textContent);
click('table-classes', 2);
click('table-classes', 2);
seen.ascending = column('table-classes', 2).map(Number);
click('table-classes', 4);
seen.accuracy = column('table-classes', 4).map(Number);

const field = document.querySelector('select[data-filter="table-classes"]');
field.value = 'few';
field.dispatchEvent(new Event('input'));
seen.few = column('table-classes', 1);

const move = (element, x, y) => element.dispatchEvent(
  new PointerEvent('pointermove', {bubbles: true, clientX: x, clientY: y}));
const tip = document.getElementById('tip');
move(document.querySelector('#data .bar'), 50, 50);
seen.barTip = tip.textContent;
const svg = document.querySelector('[data-confusion]');
svg.scrollIntoView();
const box = svg.querySelector('.field').getBoundingClientRect();
move(svg, box.left + box.width / 20, box.top + box.height / 20);
seen.cellTip = tip.textContent;
move(document.body, 0, 0);
seen.tipIsHidden = tip.hidden;

document.querySelector('#curves [data-toggle]').click();
seen.off = [...document.querySelectorAll('#curves .off')].map((curve) => curve.dataset.key);
seen.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
seen.requests = performance.getEntriesByType('resource').map((entry) => entry.name)
  .filter((name) => !name.startsWith('data:'));
seen.problems = problems;
const answer = document.createElement('script');
answer.type = 'application/json';
answer.id = 'answer';
answer.textContent = JSON.stringify(seen).replaceAll('<', '\\\\u003c');
document.body.append(answer);
'''


@pytest.fixture(scope='module')
def seen(tmp_path_factory):
    """What a browser as narrow as a phone shows of a run with names of classes that look like markup."""
    if CHROMIUM is None:
        pytest.skip('no chromium')

    folder = tmp_path_factory.mktemp('browser')
    html = page.render(read_reports(write_run(folder / 'run')))
    html = html.replace('<head>', f'<head><script>{LISTEN}</script>', 1)
    html = html.replace('</body>', f'<script>{ACT}</script></body>', 1)
    (folder / 'page.html').write_text(html, encoding='utf-8')

    options = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--window-size=390,800',
               f'--user-data-dir={folder / "profile"}', '--enable-logging=stderr', '--virtual-time-budget=3000']
    command = [CHROMIUM, *options, '--dump-dom', (folder / 'page.html').as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)

    answer = re.search(r'<script type="application/json" id="answer">(.*?)</script>', done.stdout, re.DOTALL)
    assert answer, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if 'CONSOLE' in line]
    return {**json.loads(answer[1]), 'console': console}


def test_nothing_goes_wrong_and_nothing_leaves_the_page(seen):
    assert seen['problems'] == []
    assert seen['console'] == []
    assert seen['requests'] == []


def test_names_are_text(seen):
    assert set(seen['names']) == set(NASTY)


def test_a_heading_sorts_both_ways(seen):
    assert seen['ascending'] == sorted(seen['ascending']) and len(set(seen['ascending'])) == 10
    assert seen['accuracy'] == sorted(seen['accuracy'], reverse=True)


def test_a_group_is_filtered(seen):
    assert seen['few'] == ['Few', 'Few', 'Few']


def test_the_pointer_tells_what_it_is_on(seen):
    assert seen['barTip'] == f'\u2068{NASTY[0]}\u2069: 400 training images'
    assert re.fullmatch(rf'\u2068{re.escape(NASTY[0])}\u2069\npredicted as \u2068.*\u2069: [\d.]+ %', seen['cellTip'])
    assert seen['tipIsHidden']


def test_a_legend_switches_its_curve_off(seen):
    assert seen['off'] == ['train_loss']


def test_a_phone_does_not_scroll_sideways(seen):
    assert seen['wide'] <= 0
