"""Cards: what they state; and foreign text in them is text, whichever field it stands in."""
import copy
from html.parser import HTMLParser

import pytest
import timm
import yaml
from huggingface_hub import ModelCard

from timm_longtail.export import markdown, metadata
from timm_longtail.export.card import model_card
from timm_longtail.export.folder import export_model
from timm_longtail.export.loading import load_exported
from timm_longtail.export.metadata import is_ours, model_name

from ..support.exports import MEAN, METRICS, NAMES, PROVENANCE, STD, build

HOSTILE = [
    '<script>alert(1)</script>', '<img src=x onerror=alert(1)>', '&lt;b&gt; &amp; <b>', '<!-- comment', '&#35;',
    '# heading', '- item', '1. item', '> quote', '| a | b |', 'a|b', '**bold** _em_ ~~gone~~', '=====', '-----', '~~~',
    '[link](javascript:alert(1))', '![image](http://x/y.png)', '[a]: http://x', 'http://x.y www.x.y a@b.c',
    '`code`', '``', '` ` `', '```\n# out of the fence\n```', 'a\n\n# heading\n', 'a\r\nb', 'a\n===', '\t tab',
    '---\nlicense: mit\n---', '\n---\n', "it's", '"quoted"', "'; import os; '", '\\', '\\"', 'a\\|b', 'x' * 300,
    '\x00\x1b[31m', '\u202egnp.exe', '\u200f\u05d0\u05d1', '\u2028x', '\udce9', '\U0001f600 \u732b',
    '{{ template }}', '$\\alpha$ $$x$$', ': - ? ! & * % @', 'null', 'true', '1.0', '~', '', ' ',
]


class Elements(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ''
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, *sorted(attrs)))

    def handle_comment(self, data):
        self.found.append(('comment', data))

    def handle_data(self, data):
        self.text += data


def rendered(text):
    """Return the page that a renderer of Markdown makes, with tables and fences."""
    return Elements(pytest.importorskip('markdown').markdown(text, extensions=['tables', 'fenced_code']))


@pytest.mark.parametrize('text', HOSTILE)
def test_foreign_text_is_shown_as_text(text):
    inline, cell, span = markdown.escape_text(text), markdown.escape_cell(text), markdown.code_span(text)
    block = markdown.code_block(text, 'bash')
    for line in (inline, cell, span):
        assert len(line.splitlines()) <= 1 and all(c.isprintable() for c in line)
    for tag in ('<', '>'):
        assert tag not in inline + cell
    assert rendered(f'before {inline} after').found == [('p',)]
    assert rendered(f'before {span} after').found == [('p',), ('code',)]

    row = ('tr',), ('td',), ('td',)
    page = rendered(f'| a | b |\n|---|---|\n| {cell} | after |')
    assert [element[:1] for element in page.found] == [
        ('table',), ('thead',), ('tr',), ('th',), ('th',), ('tbody',), *row] and page.text.rstrip().endswith('after')

    fence, *inside, end = block.splitlines()
    assert fence == f'{end}bash' and set(end) == {'`'} and not any(line.startswith(end) for line in inside)
    assert rendered(f'before\n\n{block}\n\nafter').found[0] == ('p',)


@pytest.mark.parametrize('text', ['bcl_resnet20.digits_lt_if20', 'cc-by-4.0', '0.1.0', 'tau = 1, chosen (x)'])
def test_harmless_text_is_not_escaped(text):
    assert markdown.escape_text(text) == text and markdown.code_span(text) == f'`{text}`'


@pytest.mark.parametrize('text', HOSTILE)
def test_metadata_holds_any_text(text):
    metadata = {'license': text, 'tags': [text, 'x'], 'model-index': [{'name': text, 'value': 1.5, 'at': None}]}
    block = markdown.front_matter(metadata)
    begin, *inside, end = block.splitlines()
    assert begin == end == '---' and block.isascii()
    assert not any(line.startswith('---') for line in inside)
    assert yaml.safe_load('\n'.join(inside)) == metadata


@pytest.fixture
def reference():
    """The content of a config in which every field that a card shows is there."""
    provenance = {
        'version': '0.1.0', 'tag': 'x', 'method': 'bcl', 'dataset': 'x', 'dataset_name': 'x', 'hub_id': 'x',
        'imbalance_factor': 20., 'seed': 3, 'data_seed': 4, 'subset_hash': 'x', 'subset_order': 'x', 'note': 'x',
        'class_counts': [2, 1], 'recipe': 'x', 'command': 'x', 'initial_checkpoint': 'x',
        'metrics': {'all': 61.25, 'many': 80.5, 'medium': 55., 'few': 12.3},
        'stage_1': {'source': 'x', 'method': 'x', 'epochs': 'x', 'command': 'x'},
        'weights': {'sha256': 'x', 'dtype': 'x'},
    }
    return {
        'architecture': 'bcl_resnet20', 'num_classes': 2, 'label_names': ['a', 'b'],
        'pretrained_cfg': {'input_size': [3, 32, 32], 'license': 'x'}, 'timm_longtail': provenance,
    }


# the functions are tested over all of them, the fields over those that end the most
BREAKING = [
    '<script>alert(1)</script>\n\n# heading\n\n- item', '`</code>`` ```\n```\n~~~\n<b>x</b>', '"\n---\n\n# body | cell',
    '\u202e[link](http://x) **bold** _em_',
]

# every text of a config that its card shows
FIELDS = [
    'timm_longtail.tag', 'timm_longtail.dataset', 'timm_longtail.dataset_name', 'timm_longtail.hub_id',
    'timm_longtail.subset_hash', 'timm_longtail.subset_order', 'timm_longtail.seed', 'timm_longtail.data_seed',
    'timm_longtail.version', 'timm_longtail.note', 'timm_longtail.recipe', 'timm_longtail.command',
    'timm_longtail.initial_checkpoint', 'timm_longtail.stage_1.source', 'timm_longtail.stage_1.method',
    'timm_longtail.stage_1.epochs', 'timm_longtail.stage_1.command', 'timm_longtail.method',
    'timm_longtail.weights.dtype', 'timm_longtail.weights.sha256', 'pretrained_cfg.license',
]


@pytest.mark.parametrize('field', FIELDS)
def test_no_field_of_a_card_breaks_out(field, reference):
    """Whatever a field holds, the card has the elements that it has with a harmless word there."""
    *places, key = field.split('.')

    def card_with(text):
        content = copy.deepcopy(reference)
        place = content
        for name in places:
            place = place[name]
        place[key] = text
        return model_card(content)

    plain = ModelCard(card_with('harmless'), ignore_metadata_errors=True)
    elements = rendered(plain.text).found
    for text in BREAKING:
        found = ModelCard(card_with(text), ignore_metadata_errors=True)
        assert rendered(found.text).found == elements, text
        assert set(found.data.to_dict()) == set(plain.data.to_dict()), text
        if field == 'timm_longtail.dataset':
            assert {result.dataset_name for result in found.data.eval_results} == {text}


def test_class_names_are_data(tmp_path):
    names = HOSTILE[:10]
    model = timm.create_model('resnet20_cifar', num_classes=10, layers=(1, 1, 1))
    folder = export_model(model, tmp_path / 'export', class_names=names)
    _, content = load_exported(folder)
    assert content['label_names'] == names
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert list(loaded.pretrained_cfg['label_names']) == names
    assert not [name for name in names if name in (folder / 'README.md').read_text()]


def test_the_line_that_loads_the_model_is_python_whatever_it_is_called(reference):
    for text in (*BREAKING, "it's", '"""', '\\', "'; import os; '"):
        content = copy.deepcopy(reference)
        content['timm_longtail']['tag'] = text
        block = model_card(content).split('python\n', 1)[1].split('\n```')[0]
        compile(block, 'card', 'exec')


def test_an_architecture_is_ours_wherever_the_file_of_the_card_lies(monkeypatch):
    monkeypatch.setattr(metadata, '__package__', 'timm_longtail.publish')
    assert is_ours('bcl_resnet20') and not is_ours('resnet18') and not is_ours('no_such_model')
    monkeypatch.setattr(timm, 'model_entrypoint', lambda name: type('F', (), {'__module__': 'timm_longtail_more.x'}))
    assert not is_ours('bcl_resnet20')


def test_card_parses_and_has_the_four_metrics(tmp_path):
    folder = export_model(build(), tmp_path / 'export', PROVENANCE, MEAN, STD, (3, 32, 32), NAMES)
    card = ModelCard.load(folder / 'README.md')

    # the block at its head
    assert card.data.library_name == 'timm' and card.data.license == 'apache-2.0'
    assert card.data.pipeline_tag == 'image-classification' and 'long-tailed' in card.data.tags
    assert card.data.model_name == 'bcl_resnet20.digits_lt_if20'

    results = {result.metric_name: result for result in card.data.eval_results}
    labels = {'Top-1 (all)': 'all', 'Many-shot': 'many', 'Medium-shot': 'medium', 'Few-shot': 'few'}
    assert {name: result.metric_value for name, result in results.items()} == {
        label: round(METRICS[key], 4) for label, key in labels.items()}
    assert {result.dataset_name for result in results.values()} == {'digits_lt'}
    assert {result.metric_type for result in results.values()} == {'accuracy'}

    # what people read
    for part in ('| last epoch |  61.25 |  80.50 |  55.00 |  12.35 |', 'imbalance factor 20,',
                 'subset hash `abcdef012345`', 'data seed 4, training seed 3', 'import timm_longtail',
                 'python train.py --seed 3', 'Method: `bcl`', '55 images: 10 of the largest class, 1 of the smallest',
                 'https://arxiv.org/abs/2207.09052'):
        assert part in card.content, part


@pytest.mark.parametrize('architecture, method, name', [
    ('bcl_resnet20', 'bcl', 'bcl_resnet20.digits_lt_if20'), ('bcl_resnet20', 'crt', 'bcl_resnet20.crt.digits_lt_if20'),
    ('resnet20_cifar', 'ce', 'resnet20_cifar.digits_lt_if20'), ('resnet18', 'ce', 'resnet18.digits_lt_if20'),
    ('resnet20_cifar', 'pc_comp', 'resnet20_cifar.pc_comp.digits_lt_if20'),
])
def test_an_export_is_called_by_its_method_where_that_is_not_the_default(architecture, method, name):
    assert model_name({'architecture': architecture, 'timm_longtail': {**PROVENANCE, 'method': method}}) == name
    assert model_name({'architecture': architecture, 'timm_longtail': {}}) == architecture


@pytest.mark.parametrize('architecture, method, name', [
    ('bcl_resnet20', 'bcl', 'bcl_resnet20.bcl-third.digits_lt_if20'),
    ('resnet20_cifar', 'balanced_softmax', 'resnet20_cifar.balanced_softmax-third.digits_lt_if20'),
])
def test_experiments_with_a_recipe_have_names_of_their_own(architecture, method, name):
    provenance = {**PROVENANCE, 'method': method, 'experiment': 'third'}
    without_recipe = model_name({'architecture': architecture, 'timm_longtail': {**provenance, 'recipe': None}})
    assert '-third' not in without_recipe

    provenance['recipe'] = 'timm_longtail/config/recipes/some.yaml'
    assert model_name({'architecture': architecture, 'timm_longtail': provenance}) == name

    provenance['experiment'] = 'a third, of it'  # no name of a repository
    assert model_name({'architecture': architecture, 'timm_longtail': provenance}) == name.replace(
        '-third', '-a-third-of-it')


def test_card_of_an_empty_group_and_of_no_metrics(tmp_path):
    folder = export_model(build(), tmp_path / 'a', {**PROVENANCE, 'metrics': {**METRICS, 'few': None}})
    card = ModelCard.load(folder / 'README.md')
    assert [result.metric_name for result in card.data.eval_results] == ['Top-1 (all)', 'Many-shot', 'Medium-shot']
    assert '|    n/a |' in card.content
    card = ModelCard.load(export_model(build(), tmp_path / 'b') / 'README.md')
    assert not card.data.eval_results and '## Result' not in card.content and '## Training' not in card.content
    assert 'None' not in card.content and '## Citation' not in card.content


@pytest.mark.parametrize('method, num_classes, metrics, said', [
    ('moco', 0, METRICS, ['| vote of neighbours |', 'The 200 nearest training images vote', 'model.num_features']),
    ('rais', 4, {'all': 61.25}, [
        '61.25 % of the rotations of the test images are recognised', 'with 4 outputs', '# [1, 4]']),
])
def test_card_of_a_model_that_was_trained_without_classes(method, num_classes, metrics, said, tmp_path):
    model = timm.create_model('resnet20_cifar', num_classes=num_classes)
    provenance = {**PROVENANCE, 'method': method, 'metrics': metrics}
    card = ModelCard.load(export_model(model, tmp_path / 'a', provenance) / 'README.md')
    assert not card.data.eval_results and 'An image classifier' not in card.content
    assert card.data.pipeline_tag == 'image-feature-extraction'
    for part in [*said, 'trained without their classes']:
        assert part in card.content, part


def test_card_of_a_set_that_was_not_cut(tmp_path):
    folder = export_model(build(), tmp_path / 'a', {**PROVENANCE, 'imbalance_factor': 1})
    text = (folder / 'README.md').read_text()
    assert 'Protocol: not cut; largest class over smallest 10, subset hash' in text
    assert 'imbalance factor' not in text
