"""What a run says before it trains."""
import pytest

from timm_longtail.training.start import start_lines

from ..support.runs import digits, make_run

VIT = [
    '--img-size', '16', '--model', 'vit_tiny_patch16_224',
    '--model-kwargs', 'img_size=16', 'patch_size=8', 'depth=2', 'embed_dim=32', 'num_heads=2']


def warnings(*options: str) -> list[str]:
    """Return the warnings of a run of 8 updates."""
    _, run = make_run('ce', *options)
    return [line for line in start_lines(run, digits(), None) if line.startswith('warning:')]


def test_an_average_that_stays_at_the_start_is_warned_of():
    line, = warnings('--model-ema', '--model-ema-decay', '0.9')

    assert '--model-ema-decay 0.9 over 8 updates leaves 43 %' in line  # 0.9 ** 8
    assert '--model-ema-warmup' in line


@pytest.mark.parametrize('options', [
    ['--model-ema', '--model-ema-decay', '0.7'], ['--model-ema', '--model-ema-warmup'], ['--model-ema-decay', '0.9']])
def test_an_average_that_leaves_the_start_is_not(options):
    assert not warnings(*options)


@pytest.mark.parametrize('tune, words', [
    ('adaptformer', 'adaptformer(bottleneck=2)'),  # 10 classes over twice 2 blocks, down to a power of two
    ('adaptformer(bottleneck=16)', 'adaptformer(bottleneck=16)'),
    ('bias', 'bias'),
])
def test_what_a_tuning_chose_is_said(tune, words):
    _, run = make_run('ce', *VIT, '--tune', tune)

    line = next(line for line in start_lines(run, digits(), None) if line.startswith('model:'))

    assert line.endswith(f'M are trained ({words})')


@pytest.mark.parametrize('options, words', [
    (['--head', 'cosine'], ' M parameters, head cosine(scale=25); '),
    (['--head', 'cosine(scale=16)'], ' M parameters, head cosine(scale=16); '),
    (['--head', 'linear'], ' M parameters; '),
])
def test_a_cosine_classifier_is_said(options, words):
    _, run = make_run('ce', *options)

    line = next(line for line in start_lines(run, digits(), None) if line.startswith('model:'))

    assert words in line


@pytest.mark.parametrize('options, line', [
    (['--opt', 'nmuon', '--lr', '3e-3', '--weight-decay', '0.1', '--sched', 'step'],
     'optimizer: nmuon, learning rate 0.003, momentum 0.9, weight decay 0.1; step schedule'),
    (['--opt', 'momentum', '--momentum', '0.8', '--lr', '0.05', '--warmup-epochs', '1'],
     'optimizer: momentum, learning rate 0.05, momentum 0.8, weight decay 0.0005; cosine schedule, '
     '1 epochs of warm-up'),
])
def test_the_optimizer_is_said(options, line):
    _, run = make_run('ce', *options)

    assert line in start_lines(run, digits(), None)
