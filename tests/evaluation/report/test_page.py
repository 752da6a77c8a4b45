"""The report page: what it holds, that it is text where it should be, and that it needs nothing else."""
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from timm_longtail.evaluation.report import entries, page
from timm_longtail.evaluation.report.reading import read_reports
from timm_longtail.evaluation.report.run_report import Gallery, Picture, Predictions
from timm_longtail.utils.errors import UserError

from ...support.run_folders import COUNTS, NASTY, write_run

SECTIONS = [
    'results', 'data', 'classes', 'confusion', 'mistakes', 'curves', 'calibration', 'norms', 'gallery', 'about',
]


class Page(HTMLParser):
    """Reads the elements of a page, and the text of those that have an id or are class names."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.class_names: list[str] = []
        self._is_name = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        self._is_name = attributes.get('class') == 'class-name'
        if self._is_name:
            self.class_names.append('')

    def handle_endtag(self, tag):
        self._is_name = False

    def handle_data(self, data):
        if self._is_name:
            self.class_names[-1] += data

    def ids(self, tag: str) -> list[str]:
        return [attributes['id'] for name, attributes in self.elements if name == tag and 'id' in attributes]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp('runs') / 'run')


@pytest.fixture(scope='module')
def html(run):
    reports = read_reports(run)
    # any data URI will do
    picture = Picture('data:image/jpeg;base64,AAAA', 9, 0, 0.99)
    reports[0].gallery = Gallery([picture], [Picture('data:image/jpeg;base64,BBBB', 9)])
    return page.render(reports)


def changed(run: Path, **columns) -> Path:
    """Change columns of the `metrics.json` of a run; returns its folder."""
    row = json.loads((run / 'metrics.json').read_text())
    (run / 'metrics.json').write_text(json.dumps({**row, **columns}))
    return run


def test_every_section_is_there(html):
    assert Page(html).ids('section') == SECTIONS


def test_names_of_classes_are_text(html):
    read = Page(html)
    tags = [name for name, _ in read.elements]

    assert set(read.class_names) == set(NASTY)
    # our script, and the data of one confusion
    assert tags.count('script') == 2
    assert not any(attributes.get('src') == 'x' for _, attributes in read.elements)
    assert '{{ 7 * 7 }}' in html and '<td>49' not in html


def test_nothing_lies_outside_of_the_page(html):
    outside = []
    for _, attributes in Page(html).elements:
        for name in ('src', 'href', 'xlink:href', 'action', 'srcset', 'data'):
            link = attributes.get(name) or ''
            if link and not link.startswith(('data:', '#')):
                outside.append(link)

    assert outside == []
    assert not re.search(r'https?://|url\(|@import', html)


def test_folders_of_the_machine_are_not_shown(html):
    assert '/home/ada' not in html
    assert '--data-dir photos' in html
    assert 'local-dir:first/export, trained with bcl' in html


def test_the_figures_of_the_run_are_shown(html, run):
    figures = read_reports(run)[0].figures

    cells = re.findall(r'data-label="(\w+)" data-value="[^"]*">\s*([\d.]+)', html)

    assert dict(cells)['All'] == f'{figures["all"]:.1f}'
    assert dict(cells)['Few'] == f'{figures["few"]:.1f}'


def test_seeds_are_a_mean_and_a_spread_beside_another_method(tmp_path):
    for seed in range(2):
        write_run(tmp_path / 'all' / f'bcl.s{seed}', seed=seed)
    write_run(tmp_path / 'all' / 'ce.s0', seed=5, method='ce')

    reports = read_reports(tmp_path / 'all')
    html = page.render(reports)

    values = [report.figures['few'] for report in reports if report.name.startswith('bcl')]
    mean, spread = sum(values) / 2, abs(values[0] - values[1]) / 2 ** 0.5
    assert 'Comparison of 2 models' in html and 'bcl, 2 seeds' in html
    assert f'{mean:.1f} <small>± {spread:.1f}</small>' in ' '.join(html.split())
    assert Page(html).ids('section') == SECTIONS


def test_runs_of_other_classes_are_refused(tmp_path):
    first = read_reports(write_run(tmp_path / 'a'))
    other = read_reports(write_run(tmp_path / 'b', [f'class {c}' for c in range(10)]))

    with pytest.raises(UserError, match='a and b have other classes'):
        page.render(first + other)


def test_what_is_missing_is_said(tmp_path):
    run = write_run(tmp_path / 'run', predictions=False)
    (run / 'summary.csv').unlink()
    (run / 'export' / 'config.json').unlink()

    html = page.render(read_reports(run))

    assert Page(html).ids('section') == [name for name in SECTIONS if name != 'curves']
    assert html.count('--predictions') == 3  # confusion, mistakes, calibration
    assert 'the run has no export' in html


def test_thousands_of_classes_fit_into_three_megabytes(run, monkeypatch):
    num_classes = 8142
    # seconds of drawing, which the size does not depend on
    monkeypatch.setattr(entries, 'bootstrap_intervals', lambda *_: {'all': (10.0, 20.0)})
    report, = read_reports(run)
    counts = [max(2, int(1000 * 500 ** (-label / num_classes))) for label in range(num_classes)]
    report.class_names = [f'Genus {label // 20} species {label}' for label in range(num_classes)]
    report.class_counts = report.shot_counts = counts
    report.class_total = [3] * num_classes
    report.class_correct = [1] * num_classes
    report.weight_norms = [float(count) for count in counts]
    target = np.repeat(np.arange(num_classes), 3)
    predicted = np.where(np.arange(len(target)) % 3, target * 7 % num_classes, target)
    report.predictions = Predictions([''] * len(target), target, predicted, np.full(len(target), 0.7))

    html = page.render([report])

    assert report.class_names[-1] in html
    assert len(html.encode()) < 3e6


def test_a_page_that_cannot_be_written_costs_no_run(tmp_path, capsys):
    run = write_run(tmp_path / 'run')
    (run / 'summary.csv').write_text('epoch,train_loss\n0,many\n')

    page.write_page_of_run(run)

    printed = capsys.readouterr().out
    assert printed.startswith('no report page: ') and 'summary.csv' in printed
    assert not (run / page.PAGE).exists()


@pytest.mark.parametrize('name', ['', 'args.yaml'])
def test_a_folder_without_results_is_refused(name, tmp_path):
    if name:
        (tmp_path / name).write_text('seed: 0\n')

    with pytest.raises(UserError, match='has no metrics.json'):
        read_reports(tmp_path)


def test_predictions_of_another_model_are_refused(tmp_path):
    run = write_run(tmp_path / 'run')
    (run / 'predictions.csv').write_text('image,target,predicted,confidence\na.jpg,0,10,0.5\n')

    with pytest.raises(UserError, match=r'classes outside 0\.\.9'):
        read_reports(run)


def test_class_names_and_counts_are_read(run):
    report, = read_reports(run)

    assert report.class_names == NASTY
    assert report.class_counts == COUNTS


@pytest.mark.parametrize('columns, start', [
    ({'model': 'local-dir:/home/ada/first/export', 'pretrained': True}, 'weights of local-dir:first/export'),
    ({'model': 'resnet50.a1_in1k', 'pretrained': True}, 'pretrained weights of timm'),
    ({'model': 'local-dir:first/export', 'pretrained': True, 'initial_checkpoint': '/home/ada/a.pth'}, 'a.pth'),
    ({'model': 'local-dir:first/export', 'pretrained': False}, 'from scratch'),
])
def test_the_weights_that_a_run_began_with_are_named(columns, start, tmp_path):
    report, = read_reports(changed(write_run(tmp_path / 'run'), **columns))

    assert report.facts['Start'] == start


@pytest.mark.parametrize('columns, trained', [
    ({'tune': 'lora', 'head': 'cosine', 'init_classifier': 'class_means'},
     'lora, head cosine, classifier started at class_means'),
    ({'init_classifier': 'text:/home/ada/texts.safetensors'}, 'classifier started at text:texts.safetensors'),
    ({}, None),
])
def test_where_the_classifier_started_is_said(columns, trained, tmp_path):
    report, = read_reports(changed(write_run(tmp_path / 'run'), **columns))

    assert report.facts.get('What is trained') == trained


@pytest.mark.parametrize('factor, counts, words', [
    (1, COUNTS, 'not cut; largest class over smallest 80'),  # 400 over 5
    (1, [30] * 10, None),
    (100.0, COUNTS, '100'),
])
def test_the_imbalance_of_a_set_that_was_not_cut_is_that_of_its_counts(factor, counts, words, tmp_path):
    report, = read_reports(changed(write_run(tmp_path / 'run', counts=counts), imbalance_factor=factor))

    assert report.facts.get('Imbalance factor') == words
