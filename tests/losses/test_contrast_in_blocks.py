"""Supervised contrast in blocks of anchors: equal to the whole, and smaller in memory."""
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks import losses as benchmark
from timm_longtail.losses import _common

from ..support import forks
from ..support.loss_cases import CASES, LargestTensor, make_sample

CONTRAST = {name: CASES[name] for name in ('sup_con_loss', 'balanced_sup_con_loss')}
each_contrast = pytest.mark.parametrize('case', CONTRAST.values(), ids=CONTRAST)


def make_large_sample(dtype=torch.float64):
    """231 rows, row 0 alone of its class, and some of 60 classes without any."""
    generator = torch.Generator().manual_seed(5)
    target = (torch.rand(231, generator=generator) ** 3 * 59).long() + 1
    target[0] = 0
    embeddings, prototypes = (
        F.normalize(torch.randn(size, 16, generator=generator, dtype=torch.float64)).to(dtype) for size in (231, 60)
    )
    assert target.bincount(minlength=60).min() == 0 and target.bincount()[0] == 1
    return replace(make_sample(), embeddings=embeddings, prototypes=prototypes, target=target)


@each_contrast
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize('block_size', [1, 5000, 33333])
def test_blocks_equal_the_whole(case, reduction, dtype, tolerance, block_size, monkeypatch):
    sample = make_large_sample(dtype)
    weight = torch.linspace(-1, 2, 231).to(dtype)  # each anchor has a gradient of its own

    def weighted_loss(sample):
        loss = case(sample, reduction=reduction)
        return (loss * weight).sum() if reduction == 'none' else loss

    expected = case.value_and_gradients(sample, weighted_loss)
    monkeypatch.setattr(_common, 'BLOCK_SIZE', block_size)
    torch.testing.assert_close(
        case.value_and_gradients(sample, weighted_loss), expected, rtol=tolerance, atol=tolerance)


@each_contrast
def test_nothing_is_larger_than_a_block(case, monkeypatch):
    """Neither in the forward nor in the backward pass; embeddings and gradients [B + C, D] are smaller still."""
    sample = make_large_sample()
    with LargestTensor() as largest:
        case.value_and_gradients(sample)
    assert largest.size >= 231 ** 2  # the whole
    monkeypatch.setattr(_common, 'BLOCK_SIZE', 6000)
    with LargestTensor() as largest:
        case.value_and_gradients(sample)
    assert 5000 < largest.size <= 6000


@each_contrast
def test_blocks_without_gradients(case, monkeypatch):
    sample = make_large_sample()
    expected = case(sample)
    monkeypatch.setattr(_common, 'BLOCK_SIZE', 5000)
    with torch.no_grad():
        torch.testing.assert_close(case(sample), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('name, terms', [('sup_con', 24), ('balanced_sup_con', 27)])
def test_benchmark(name, terms, monkeypatch, capsys):
    monkeypatch.setattr(_common, 'BLOCK_SIZE', _common.BLOCK_SIZE)  # it sets its own, which ends with this test
    for block_size in ('60', '9999'):
        monkeypatch.setattr(sys, 'argv', [
            'losses.py', '--loss', name, '--rows', '24', '--classes', '3', '--width', '4', '--repeats', '1',
            '--block-size', block_size])
        benchmark.main()
    blocks, plain = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (blocks['rows'], blocks['classes'], blocks['block_size'], plain['block_size']) == (24, 3, 60, 9999)
    assert blocks['ps_per_product'] == pytest.approx(blocks['seconds'] * 1e12 / (24 * terms * 4))
    assert blocks['value'] == pytest.approx(plain['value'], rel=1e-5)
    assert blocks['gradient_norm'] == pytest.approx(plain['gradient_norm'], rel=1e-5)
    assert 0 < blocks['before_mb'] <= blocks['peak_mb']


MEASURE_BOTH = """
import ctypes, json
# what is freed goes back to the system at once, so that the peak is what was held (3 is M_MMAP_THRESHOLD)
ctypes.CDLL(None).mallopt(-3, 1000000)
from benchmarks.losses import measure, parser
args = parser.parse_args(['--width', '8', '--repeats', '1', '--block-size', str(2 ** 20)])
blocks = measure(args, rows=4096, classes=500)
args.block_size = 2 ** 40
print(json.dumps([blocks, measure(args, rows=4096, classes=500)]))
"""


@pytest.mark.script
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_memory():
    """One matrix of 4096 x 4596 similarities is 75 MB; the plain form holds four and more of them."""
    done = forks.run('-c', MEASURE_BOTH, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    blocks, plain = json.loads(done.stdout)
    assert blocks['value'] == pytest.approx(plain['value'], rel=1e-5)
    assert blocks['peak_mb'] - blocks['before_mb'] < 100  # 300 more if the blocks were kept for the backward pass
    assert plain['peak_mb'] - plain['before_mb'] > 280
