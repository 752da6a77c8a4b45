"""The Hub, both ways: the real client against a stand-in on loopback."""
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from timm_longtail.export.card import write_card
from timm_longtail.utils.version import __version__

from ..support import forks
from ..support.exports import DIGITS, FILES, ROOT, contents, edit_provenance
from ..support.hub_server import Hub

# calls `main` once for each line that it reads: importing timm takes seconds
_PUSH = '''
import contextlib, io, json, os, sys, traceback
from timm_longtail.utils.errors import UserError
from timm_longtail.cli.push import main
for line in sys.stdin:
    os.environ.pop('HF_TOKEN', None)
    call = json.loads(line)
    if call['token']:
        os.environ['HF_TOKEN'] = call['token']
    reply, out = {'error': None}, io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            main(call['argv'])
    except UserError as e:
        reply['error'] = str(e)
    except BaseException:
        reply['error'] = traceback.format_exc()
    print(json.dumps({**reply, 'lines': out.getvalue().splitlines()}), flush=True)
'''


_LOAD = '''
import json, re, sys
import timm
import timm_longtail
from huggingface_hub import hf_hub_download
from PIL import Image
from safetensors.torch import load_file
from timm_longtail.data import create_dataset, create_loader
from timm_longtail.training.loop import evaluate
from timm_longtail.evaluation.evaluators import LongTailEvaluator

test_set = create_dataset('digits_lt', 'test')
Image.fromarray(test_set.images[0].permute(1, 2, 0).numpy()).save('image.png')
replies = []
for repo in sys.argv[2:]:
    model = timm.create_model(f'hf-hub:{repo}', pretrained=True).eval()
    own, cfg = load_file(sys.argv[1] + '/model.safetensors'), model.pretrained_cfg
    equal = own.keys() == model.state_dict().keys() and all(
        own[k].dtype == v.dtype and bool((own[k] == v).all()) for k, v in model.state_dict().items())
    config = json.load(open(hf_hub_download(repo, 'config.json')))
    loader = create_loader(test_set, ('eval',), batch_size=256, training=False, mean=cfg['mean'], std=cfg['std'])
    metrics = evaluate(model, loader, LongTailEvaluator(config['timm_longtail']['shot_counts']))

    card = open(hf_hub_download(repo, 'README.md')).read()
    block = re.search('```python\\n(.*?)```', card, re.DOTALL)[1]
    shown = {}
    exec(re.sub('hf-hub:[^\\']*', f'hf-hub:{repo}', block), shown)
    replies.append({'equal': equal, 'correct': metrics['class_correct'], 'total': metrics['class_total'],
                    'label': shown['label'], 'shape': list(shown['logits'].shape)})
print(json.dumps(replies))
'''


def environment(url, home):
    """Return the variables of a client: its Hub, a home of its own, no token but what a test gives."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'HUGGING'))}
    return {**kept, 'HF_ENDPOINT': url, 'HF_HOME': str(home), 'HF_HUB_DISABLE_XET': '1', 'OMP_NUM_THREADS': '1',
            'HF_HUB_DISABLE_TELEMETRY': '1', 'HF_HUB_DISABLE_PROGRESS_BARS': '1', 'NO_PROXY': '127.0.0.1,localhost',
            'PYTHONPATH': str(ROOT)}


@pytest.fixture(scope='module')
def hub():
    with Hub() as server:
        yield server


@pytest.fixture(scope='module')
def client(hub, tmp_path_factory):
    """A server of processes that know this Hub: its client, which timm imports, reads then where it is."""
    home = tmp_path_factory.mktemp('home')
    server = forks.Server('timm_longtail', env=environment(hub.url, home), origin=forks.bare())
    yield server
    server.close()


@pytest.fixture(scope='module')
def push(client):
    """Return a function that runs `push` in a process of its own: (lines printed, message of the UserError or None)."""
    process = forks.Process('-c', _PUSH, env=client.env, stdin=forks.PIPE, server=client)

    def call(folder, repo, *options, token='hf_alice'):
        call = {'token': token, 'argv': [str(folder), '--repo-id', repo, *options]}
        process.stdin.write(json.dumps(call) + '\n')
        process.stdin.flush()
        reply = json.loads(process.stdout.readline())
        return reply['lines'], reply['error']
    yield call
    process.communicate()


@pytest.fixture
def folder(tmp_path):
    """A copy of the released digits model, to be spoiled."""
    return Path(shutil.copytree(DIGITS, tmp_path / 'export'))


@pytest.mark.script
def test_pushed_and_loaded_again(hub, client, push, tmp_path):
    for large in (False, True):  # how the weights are stored
        repo, hub.large, begin = f'alice/large-{large}', large, len(hub.requests)
        lines, error = push(DIGITS, repo)
        assert error is None
        assert lines[0].startswith('bcl_resnet20.digits_lt_if20: README.md ')
        assert 'model.safetensors 1094.2 kB' in lines[0]
        assert '| last epoch |  89.30 |  97.22 |  92.30 |  82.17 |' in lines
        found = hub.repositories[repo]
        sha, files = found.find('main')
        assert lines[-3:] == [f'{hub.url}/{repo}/commit/{sha}', 'load it with, after `import timm_longtail`,',
                              f'timm.create_model(\'hf-hub:{repo}\', pretrained=True)']
        assert {name: content for name, content in files.items() if name != '.gitattributes'} == contents(DIGITS)
        assert found.messages == ['initial commit', f'bcl_resnet20.digits_lt_if20, by timm_longtail {__version__}']
        requests = hub.requests[begin:]
        assert requests[:2] == ['POST /api/validate-yaml', 'POST /api/repos/create']
        assert sum(request.startswith('PUT /storage/') for request in requests) == large

    done = forks.run('-c', _LOAD, DIGITS, 'alice/large-False', 'alice/large-True', cwd=tmp_path, env=client.env,
                     server=client)
    assert done.returncode == 0, done.stderr
    stated = json.loads((DIGITS / 'config.json').read_text())['timm_longtail']['metrics']
    for large, loaded in zip((False, True), json.loads(done.stdout), strict=True):
        assert loaded['equal']
        assert (loaded['correct'], loaded['total']) == (stated['class_correct'], stated['class_total'])
        assert sum(loaded['total']) == 355
        assert loaded['label'] in list('0123456789') and loaded['shape'] == [1, 10]
        assert f'GET /alice/large-{large}/resolve/main/README.md' in hub.requests


@pytest.mark.script
def test_pushed_twice(hub, push, folder):
    first, _ = push(folder, 'alice/twice')
    found = hub.repositories['alice/twice']
    number = len(hub.repositories)
    assert push(folder, 'alice/twice')[0] == first  # nothing has changed: the same commit
    assert len(found.messages) == 2

    stale = {'pytorch_model.bin': b'of another', 'runs/events.out': b'log'}
    found.commit('main', {**hub.files('alice/twice'), **stale}, 'by hand')
    edit_provenance(folder, seed=7)
    write_card(folder)
    assert 'holds other files, such as pytorch_model.bin' in push(folder, 'alice/twice')[1]
    assert hub.files('alice/twice').keys() >= stale.keys()
    second, error = push(folder, 'alice/twice', '--message', 'Seed 7', '--replace')
    assert error is None and second[-3] != first[-3]
    assert found.messages[2:] == ['by hand', 'Seed 7'] and len(hub.repositories) == number
    assert sorted(hub.files('alice/twice')) == ['.gitattributes', *FILES]
    assert b'training seed 7' in hub.files('alice/twice')['README.md']


@pytest.mark.script
def test_private_and_a_branch(hub, push):
    lines, error = push(DIGITS, 'alice/private', '--private', '--revision', 'v2')
    assert error is None and 'to alice/private@v2' in lines
    assert lines[-1] == 'timm.create_model(\'hf-hub:alice/private@v2\', pretrained=True)'
    found = hub.repositories['alice/private']
    assert found.private and sorted(hub.files('alice/private', 'v2')) == ['.gitattributes', *FILES]
    assert list(hub.files('alice/private')) == ['.gitattributes']
    assert push(DIGITS, 'alice/private', '--private', '--revision', 'v2')[1] is None  # the branch is there by now


@pytest.mark.script
@pytest.mark.parametrize('options, token, words', [
    (['alice/new'], None, 'no token for the Hub: give one with `hf auth login`, or put it into $HF_TOKEN'),
    (['alice/new'], 'hf_wrong', '{url} does not accept the token (401): give a valid one with `hf auth login`'),
    (['alice/new'], 'hf_reader', 'the token may not write to alice/new (403)'),
    (['bob/new'], 'hf_alice', 'the token may not write to bob/new (403)'),
    (['bob/public'], 'hf_alice', 'the token may not write to bob/public (403)'),
    (['bob/public', '--private'], 'hf_bob', 'bob/public is there already and public'),
    (['bob/public', '--revision', 'refs/pr/1'], 'hf_bob', 'bob/public has no revision refs/pr/1'),
    (['datasets/bob/public'], 'hf_bob', "'datasets/bob/public' is no name of a model repository"),
])
def test_what_the_hub_refuses(options, token, words, hub, push):
    push(DIGITS, 'bob/public', token='hf_bob')
    before = {name: list(found.messages) for name, found in hub.repositories.items()}
    begin = len(hub.requests)
    lines, error = push(DIGITS, *options, token=token)
    assert words.format(url=hub.url) in error and '\n' not in error
    assert {name: found.messages for name, found in hub.repositories.items()} == before
    assert not any('load it' in line for line in lines)
    if token is None or options[0].startswith('datasets/'):
        assert hub.requests[begin:] == []


@pytest.mark.script
def test_the_card_is_validated_before_anything_is_created(hub, push, folder):
    text = (folder / 'README.md').read_text()
    (folder / 'README.md').write_text(text.replace('license: "apache-2.0"', 'license: "of-my-own"'))
    _, error = push(folder, 'alice/unlicensed')
    assert f'{hub.url} refuses alice/unlicensed: ' in error and '"license' in error and '\n' not in error
    assert 'alice/unlicensed' not in hub.repositories


@pytest.mark.script
def test_a_hub_that_is_down(hub, push):
    with hub.down():
        _, error = push(DIGITS, 'alice/down')
    assert error.startswith(f'cannot reach {hub.url}: ') and '\n' not in error
    assert push(DIGITS, 'alice/down')[1] is None  # and up again


# calls `push_model` and `load_exported` of a Hub that is ill; they may take two seconds, of which a test waits for six
_ILL = '''
import json, sys, time
from timm_longtail.export import hub, loading
from timm_longtail.utils.errors import UserError
hub.SLOWEST = loading.SLOWEST = 1e9
loading.ANSWER_SECONDS = 2.0
for line in sys.stdin:
    call = json.loads(line)
    begin, error = time.monotonic(), None
    try:
        if call['name'] == 'push':
            hub.push_model(call['folder'], call['repo'], token='hf_alice', timeout=2.0)
        else:
            loading.load_exported('hf-hub:' + call['repo'])
    except UserError as e:
        error = str(e)
    print(json.dumps({'error': error, 'seconds': time.monotonic() - begin}), flush=True)
'''


@pytest.fixture(scope='module')
def patient(client):
    """Return a function that pushes, or loads, in a process of its own: (message of the UserError, seconds)."""
    process = forks.Process('-c', _ILL, env=client.env, stdin=forks.PIPE, server=client)

    def call(name, repo, folder=DIGITS):
        process.stdin.write(json.dumps({'name': name, 'repo': repo, 'folder': str(folder)}) + '\n')
        process.stdin.flush()
        reply = json.loads(process.stdout.readline())
        return reply['error'], reply['seconds']
    yield call
    process.communicate()


@pytest.mark.script
@pytest.mark.parametrize('how, at, words', [
    ('stall', 'POST /api/repos/create', '(did not answer within 2 seconds|cannot reach .*timed out)'),
    ('drip', 'POST /api/repos/create', 'did not answer within 2 seconds'),
    ('stall', 'objects/batch', 'did not answer within 2.*seconds'),
    ('stall', 'PUT /storage/', 'did not answer within 2.*seconds'),
    ('stall', '/commit/', '(did not answer within 2.* seconds|cannot reach .*timed out)'),
    (503, 'POST /api/repos/create', 'answers 503 for alice/ill: out of order'),
    (500, '/commit/', 'answers 500 for alice/ill: out of order'),
])
def test_push_to_a_hub_that_is_ill(how, at, words, hub, patient):
    hub.large = True
    hub.repositories.pop('alice/ill', None)
    hub.objects.clear()
    with hub.sick(how, at):
        error, seconds = patient('push', 'alice/ill')
    assert re.search(words, error) and hub.url in error and '\n' not in error
    assert seconds < 6


@pytest.mark.script
@pytest.mark.parametrize('how, at', [
    ('stall', '/config.json'), ('drip', 'GET /alice/well/resolve/'), ('stall', '/model.safetensors'),
    ('stall', 'GET /storage/'), (503, '/config.json'), (502, '/model.safetensors'),
])
def test_load_from_a_hub_that_is_ill(how, at, hub, push, patient, client):
    hub.large = True
    if 'alice/well' not in hub.repositories:
        assert push(DIGITS, 'alice/well')[1] is None
    shutil.rmtree(Path(client.env['HF_HOME']) / 'hub', ignore_errors=True)  # what was downloaded before
    with hub.sick(how, at):
        error, seconds = patient('load', 'alice/well')
    assert error.startswith('cannot load hf-hub:alice/well: ') and hub.url in error and '\n' not in error
    assert seconds < 10


@pytest.mark.script
def test_push_is_interrupted(hub, client):
    env = {**client.env, 'HF_TOKEN': 'hf_alice'}
    with hub.sick('stall', '/api/repos/create'):
        process = forks.Process('-m', 'timm_longtail', 'push', DIGITS, '--repo-id', 'alice/stopped', env=env, cwd=ROOT,
                                server=client)
        late = time.monotonic() + 60
        while 'POST /api/repos/create' not in hub.requests[-1:]:
            assert time.monotonic() < late, hub.requests
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 130 and error.strip() == 'stopped by SIGINT'
