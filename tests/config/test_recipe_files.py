"""What a recipe's file may hold: the values that can be typed; all else is an error of one line."""
import os
from pathlib import Path

import pytest
import yaml

from timm_longtail.config.parser import plain
from timm_longtail.config.recipe import read_recipe
from timm_longtail.config.train_options import parse_train_args, train_parser
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.files import read_yaml

BCL = ['--model', 'bcl_resnet32', '--dataset', 'cifar100_lt']
CE = ['--no-recipe', '--model', 'resnet20_cifar', '--method', 'ce']


def write(folder: Path, text: str | bytes, name: str = 'recipe.yaml') -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize('line, expected', [
    ('model_ema: true', True), ('model_ema: no', False), ('model_ema: "no"', False), ('model_ema: off', False),
    ('channels_last: false', False),
    ('mixed_precision: no', 'no'), ('mixed_precision: bf16', 'bf16'), ('mixed_precision:', None),
    ('lr: 5e-4', 5e-4), ('lr: "5e-4"', 5e-4), ('lr: 1', 1.0), ('lr: 0', 0.0), ('lr: .5', 0.5),
    ('epochs: 10', 10), ('epochs: 10.0', 10), ('epochs: 1e1', 10), ('epochs: "10"', 10),
    ('seed: 010', 10), ('batch_size:', None), ('batch_size: ~', None),
    ('decay_milestones: [3, 4]', [3, 4]), ('decay_milestones: 3', [3]), ('tracker: wandb', ['wandb']),
    ('mean: [0.5, 0, 1]', [0.5, 0.0, 1.0]),
    ('method_kwargs: {tau: 5e-1, views: [a, b]}', {'tau': 0.5, 'views': ['a', 'b']}), ('method_kwargs:', {}),
    ('experiment: 2024-01-01', '2024-01-01'), ('experiment: 1:30', '1:30'), ('experiment: on', 'on'),
])
def test_a_value_of_a_recipe_is_what_it_is_on_the_command_line(line, expected, tmp_path):
    name = line.partition(':')[0]
    value = read_recipe(write(tmp_path, line), train_parser())[name]
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize('text, words', [
    ('lr:', 'lr must be a number, at least 0, got None'),
    ('lr: [0.1]', 'lr must be a number, at least 0, got [0.1]'),
    ('lr: true', 'lr must be a number, at least 0, got True'),
    ('lr: .nan', 'lr must be at least 0, got nan'),
    ('lr: .inf', 'lr must be at least 0 and at most 1e+09, got inf'),
    ('lr: {a: 1}', "lr must be a number, at least 0, got {'a': 1}"),
    ('epochs: 10.5', 'epochs must be a whole number, in [1, 1000000], got 10.5'),
    ('epochs: 0', 'epochs must be in [1, 1000000], got 0'),
    ('epochs: ' + '9' * 4000, 'epochs must be in [1, 1000000], got 999'),
    ('epochs: ' + '9' * 5000, 'is damaged or not a recipe: Exceeds the limit'),
    ('model_ema: maybe', "model_ema must be true or false, got 'maybe'"),
    ('model_ema: 1', 'model_ema must be true or false, got 1'),
    ('model_ema:', 'model_ema must be true or false, got None'),
    ('mixed_precision: bf8', "mixed_precision must be one of no, bf16, fp16, got 'bf8'"),
    ('mixed_precision: [no]', "mixed_precision must be one of no, bf16, fp16, got ['no']"),
    ('tracker: [wandb, 3]', 'tracker must be one of tensorboard, wandb, trackio, got 3'),
    ('experiment: 3', 'experiment must be text, got 3: put it in quotes'),
    ('experiment: [a]', "experiment must be text, got ['a']"),
    ('decay_milestones: []', 'decay_milestones must be one value or more'),
    ('decay_milestones: [3, x]', "decay_milestones must be a whole number, at least 1, got 'x'"),
    ('decay_milestones: [[3]]', 'decay_milestones must be a whole number, at least 1, got [3]'),
    ('mean: [0.5]', 'mean must be 3 values, got [0.5]'),
    ('model_kwargs: 3', 'model_kwargs must be options and their values, got 3'),
    ('model_kwargs: [a]', "model_kwargs must be options and their values, got ['a']"),
    ('model_kwargs: {"a b": 1}', "model_kwargs must be options and their values, got the name 'a b'"),
    ('lr: 0.1\nlr: 0.2', "is damaged or not a recipe: 'lr' is there twice"),
    ('method_kwargs: {tau: 1, tau: 2}', "is damaged or not a recipe: 'tau' is there twice"),
    ('1: 2', 'is damaged or not a recipe: the key 1 is not text'),
    ('[a]: 2', "is damaged or not a recipe: the key ['a'] is not text"),
    ('<<: {lr: 1}', "unknown option '<<'"),
    ('config: other.yaml', "unknown option 'config'"),
    ('x' * 1000 + ': 1', 'unknown option'),
    ('lr: !!python/object/apply:os.getcwd []', 'is damaged or not a recipe: could not determine a constructor'),
    ('lr: [0.1', 'is damaged or not a recipe: while parsing'),
    ('lr: 0.1\n--- \nlr: 0.2', 'is damaged or not a recipe: expected a single document'),
    ('a: &a [*a]', 'is damaged or not a recipe'),
    ('[' * 5000, 'is damaged or not a recipe: it is nested more than 30 levels deep'),
    ('lr: \0', 'is damaged or not a recipe: unacceptable character'),
    ('- lr', 'is not a recipe: it holds no `name: value` lines'),
    (b'lr: 0.1  # \xe9', 'is not a recipe: it is not UTF-8'),
], ids=lambda text: str(text)[:30])
def test_a_recipe_that_cannot_be_is_one_short_line(text, words, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as error:
        read_recipe(path, train_parser())
    line = str(error.value)
    assert line.startswith(str(path)) and words in line
    assert '\n' not in line and len(line) < len(str(path)) + 400


@pytest.mark.parametrize('text, message', [
    ('method: bcl\nwieght_decay: 0.1\n', "unknown option 'wieght_decay'; did you mean weight_decay"),
    ('method: bcl\nconfig: other.yaml\n', "unknown option 'config'"),
    ('method: bclx\n', "unknown method 'bclx'; did you mean bcl"),
    ('method: bcl\nlr: fast\n', 'lr.*fast'),
    ('- method\n- bcl\n', 'bcl_resnet32.cifar100_lt_if100.yaml'),
    ('method: [bcl\n', 'bcl_resnet32.cifar100_lt_if100.yaml'),
    ('epochs: 0\n', r'yaml: epochs must be in \[1, 1000000\], got 0$'),
])
@pytest.mark.parametrize('given', [True, False])
def test_a_recipe_that_does_not_fit_is_one_line(text, message, given, tmp_path):
    path = write(tmp_path, text, 'bcl_resnet32.cifar100_lt_if100.yaml')
    with pytest.raises(UserError, match=message) as error:
        parse_train_args([*BCL, '-c', str(path)] if given else BCL, recipe_folder=tmp_path)
    assert '\n' not in str(error.value)


def test_numbers_that_yaml_reads_as_text(tmp_path):
    path = write(tmp_path, 'method: bcl\nweight_decay: 5e-4\n', 'bcl_resnet32.cifar100_lt_if100.yaml')
    args = parse_train_args(BCL, recipe_folder=tmp_path)

    assert args.weight_decay == 5e-4 and args.recipe == path


def test_aliases_stand_for_a_small_document_only(tmp_path):
    small = 'base: &base [a, b]\nviews: *base\n'
    assert read_yaml(write(tmp_path, small))['views'] == ['a', 'b']
    lines = ['a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]']
    lines += [f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 10)}]' for i in range(1, 12)]  # 10^12 values
    with pytest.raises(UserError, match='it holds more than 10000 values'):
        read_yaml(write(tmp_path, '\n'.join(lines)))


def test_a_file_without_content_is_an_empty_mapping(tmp_path):
    assert read_yaml(write(tmp_path, '# a comment\n')) == {}


@pytest.mark.parametrize('kind, words', [
    ('missing', 'no recipe at'), ('folder', 'is a folder, not a recipe'), ('pipe', 'is not a regular file')])
def test_a_recipe_that_is_no_file_does_not_hang(kind, words, tmp_path):
    path = tmp_path / 'recipe.yaml'
    if kind == 'folder':
        path.mkdir()
    if kind == 'pipe':
        os.mkfifo(path)
    with pytest.raises(UserError, match=words):
        parse_train_args(['-c', str(path)])


def test_both_batch_sizes_in_a_recipe(tmp_path):
    path = write(tmp_path, 'model: resnet20_cifar\nbatch_size: 8\nglobal_batch_size: 8\n')
    with pytest.raises(UserError, match='not both'):
        parse_train_args(['-c', str(path)])


def test_what_a_run_writes_of_its_options_is_read_back(tmp_path):
    """`args.yaml` is written by PyYAML's own rules."""
    args = plain(parse_train_args([*CE, '--mixed-precision', 'no', '--weight-decay', '5e-4', '--experiment', 'on']))
    assert read_yaml(write(tmp_path, yaml.safe_dump(args))) == args
