"""`--seeds`: one run after the other, each with a folder and a command of its own, and the table of mean and spread."""
import json
import statistics
import sys

import pytest
import yaml
from accelerate.state import AcceleratorState

from timm_longtail.cli import train
from timm_longtail.config.train_options import parse_train_args
from timm_longtail.training.seeds import seeds_table
from timm_longtail.utils.errors import UserError

from ..support.runs import TINY


def test_seeds_one_after_the_other_and_resumed(tmp_path, monkeypatch, capsys):
    def run(*options):
        AcceleratorState._reset_state(reset_partial_state=False)
        argv = [*TINY, '--dataset', 'digits_lt', '--no-recipe', '--method', 'ce', '-b', '64', '--epochs', '1',
                '--output', str(tmp_path), '--experiment', 'run', *options]
        monkeypatch.setattr(sys, 'argv', ['train.py', *argv])
        train.main(argv)
        return capsys.readouterr().out

    run('--seeds', '3')
    weights = (tmp_path / 'run.s3' / 'export' / 'model.safetensors').read_bytes()
    printed = run('--resume', 'auto', '--seeds', '3', '5', '--lr', '0.1')

    # the first one was finished, and stays as it is
    assert printed.count('complete: nothing left to train') == 1
    assert (tmp_path / 'run.s3' / 'export' / 'model.safetensors').read_bytes() == weights
    assert sorted(path.name for path in tmp_path.iterdir()) == ['run.s3', 'run.s5']
    rows = [json.loads((tmp_path / f'run.s{seed}' / 'metrics.json').read_text()) for seed in (3, 5)]
    assert [row['seed'] for row in rows] == [3, 5]
    assert rows[1]['command'].endswith('--resume auto --lr 0.1 --seed 5') and '--seeds' not in rows[1]['command']
    assert yaml.safe_load((tmp_path / 'run.s5' / 'args.yaml').read_text())['seed'] == 5

    figures = [row['last']['all'] for row in rows]
    table = printed[printed.index('last epoch of 2 seeds'):].splitlines()
    assert [line.split('|')[1].strip() for line in table[3:]] == ['seed 3', 'seed 5', 'mean', 'standard deviation']
    shown = [float(line.split('|')[2]) for line in table[3:]]
    assert shown == pytest.approx([*figures, statistics.mean(figures), statistics.stdev(figures)], abs=0.0051)


def test_one_seed_has_no_spread_and_an_empty_group_no_mean():
    lines = seeds_table({'seed 0': {'all': 50.0, 'many': None, 'balanced': 40.0}}).splitlines()
    assert [cell.strip() for cell in lines[-2].split('|')[2:4]] == ['50.00', 'n/a']
    assert {cell.strip() for cell in lines[-1].split('|')[2:-1]} == {'n/a'}


@pytest.mark.parametrize('options, message', [
    (['--seeds', '0', '1', '--seed', '2'], 'give --seed or --seeds, not both'),
    (['--seeds', '0', '1', '0'], 'a seed is named twice'),
    (['--seeds', '0', '--resume', 'output/run'], 'goes on by --resume auto'),
    (['--seeds', '-1'], 'seeds must be'),
])
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        parse_train_args(['--no-recipe', *options])


def test_a_recipe_names_no_seeds(tmp_path):
    (tmp_path / 'r.yaml').write_text('seeds: [0, 1]\n')
    with pytest.raises(UserError, match='an option of the command line, not of a recipe'):
        parse_train_args(['-c', str(tmp_path / 'r.yaml')])
