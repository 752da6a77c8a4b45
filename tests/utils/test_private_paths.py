"""What is published names no folder of the machine that it was made on."""
import pytest

from timm_longtail.utils.private_paths import cut_folders, without_folders


@pytest.mark.parametrize('command, published', [
    ('python train.py --data-dir /home/me/client/photos --lr 0.1', 'python train.py --data-dir photos --lr 0.1'),
    ('python train.py --dataset packed:/a/b.safetensors --data-dir $TIMM_LONGTAIL_DATA/x',
     'python train.py --dataset packed:b.safetensors --data-dir $TIMM_LONGTAIL_DATA/x'),
    ('python train.py --initial-checkpoint /home/me/output/RUN/export',
     'python train.py --initial-checkpoint RUN/export'),
    *[("python train.py --output 'runs/a b' --model hf-hub:me/x",) * 2],
    ("python train.py --data-dir='/home/me/client X/photos' --lr=0.1", 'python train.py --data-dir=photos --lr=0.1'),
    ('python train.py --output /home/me --results /data', "python train.py --output '~' --results data"),
    ('python train.py --method-kwargs "x=[\'/a/b\', \'/c/d\']"',
     'python train.py --method-kwargs \'x=[\'"\'"\'b\'"\'"\', \'"\'"\'d\'"\'"\']\''),
    ("it's no command line: /home/me/x", "it's no command line: x"),
])
def test_folders_of_a_machine_are_not_published(command, published):
    assert without_folders(command) == published


@pytest.mark.parametrize('text, published', [
    ('/home/me/client X/photos', 'photos'), ('/data', 'data'), ('/a/b/', 'b'), ('/', '/'), ('a / b', 'a / b'),
    ('/home/me', '~'), ('/Users/me/', '~'), ('/root', '~'), ('/home/me/export', 'export'),
    ('packed:/a/b.safetensors', 'packed:b.safetensors'), ('hfds//a/b', 'hfds/b'), ('file:///home/me/x', 'x'),
    ('see /a/b and (/c/d), not 1/2', 'see b and (d), not 1/2'),
    *[(text, text) for text in ('https://host/a/b', 'hfds/user/name', 'runs/a', '$TIMM_LONGTAIL_DATA/x', 'images/s')],
])
def test_absolute_paths_are_cut_to_their_last_name(text, published):
    assert cut_folders(text) == published
    assert cut_folders(published) == published


def test_the_home_of_this_account_has_no_name(monkeypatch):
    monkeypatch.setenv('HOME', '/srv/people/me')
    assert cut_folders('/srv/people/me') == '~' and cut_folders('/srv/people/me/x') == 'x'
